"""All private names of MLflow that the service `gateway-jobs` uses: no other file of it imports one.

At an upgrade a test reports those that have changed (docs/upgrading-mlflow.md).
"""

from collections.abc import Callable
from typing import Any

from mlflow.server.handlers import _get_job_store
from mlflow.server.jobs import _job_subproc_entry as entry
from mlflow.server.jobs import utils
from mlflow.store.db.utils import create_sqlalchemy_engine_with_retry
from mlflow.store.tracking import sqlalchemy_store
from mlflow.store.tracking.dbmodels.models import SqlAssessmentDailyRollup, SqlSpanCostDailyRollup, SqlTraceMetricDailyRollup
from sqlalchemy import delete

_jobs: Any = utils
_entry: Any = entry
run_job: Callable[[], None] = _entry._main


def replace_entry(module: str) -> None:
    """Replaces the module that the process of a job runs."""
    _jobs._JOB_ENTRY_MODULE = module


def delete_rollups(uri: str) -> None:
    """Deletes the rollups of traces, which are computed from these again. Days that are noted as changed stay noted."""
    engine = create_sqlalchemy_engine_with_retry(uri)
    with engine.begin() as connection:
        for table in (SqlTraceMetricDailyRollup, SqlSpanCostDailyRollup, SqlAssessmentDailyRollup):
            connection.execute(delete(table))
    engine.dispose()


def creator(job_id: str) -> str | None:
    """The account that started a job; None without accounts."""
    name: str | None = _get_job_store().get_job(job_id).creator
    return name


def replace_archives(of_trace: Callable[[Any], str]) -> None:
    """Replaces where a trace's archived spans are read."""
    stores: Any = sqlalchemy_store
    stores.get_archive_uri_for_trace = of_trace


def replace_optimization(
    run: Callable[[Callable[..., Any]], Callable[..., Any]],
    predict: Callable[[str], Callable[..., Any]],
    check: Callable[[str, dict[str, Any] | None], None],
    call: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> None:
    """Replaces how a job that optimizes a prompt runs, asks the prompt's model, and calls models at all."""
    from mlflow.genai.optimize import job
    from mlflow.genai.utils import llm_utils

    optimization: Any = job
    calls: Any = llm_utils
    create = optimization._create_optimizer

    def created(kind: str, config: dict[str, Any] | None) -> Any:
        check(kind, config)
        return create(kind, config)

    optimization._build_predict_fn = predict
    optimization._create_optimizer = created
    optimization.optimize_prompts_job = run(optimization.optimize_prompts_job)
    calls._call_llm = call(calls._call_llm)


def prompt(uri: str) -> Any:
    """A version of a prompt."""
    from mlflow.genai.prompts import load_prompt

    return load_prompt(uri)


def ask(model: str, messages: list[dict[str, Any]]) -> str:
    """The answer of a model to a chat."""
    from mlflow.genai.utils import llm_utils

    calls: Any = llm_utils
    answer: str = calls._call_llm(model, messages).choices[0].message.content
    return answer


def endpoint_exists(name: str) -> bool:
    """Whether the gateway has an endpoint of this name."""
    from mlflow.exceptions import MlflowException
    from mlflow.server.handlers import _get_tracking_store

    try:
        _get_tracking_store().get_gateway_endpoint(name=name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True
