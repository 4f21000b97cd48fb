"""What another MLflow server holds, read through its API into a database of the present schema.

It is read from the host, whose routes, proxies, certificates and 127.0.0.1 lead to servers that no container reaches.
"""

import json
import math
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mlstack import settings
from mlstack.errors import MlstackError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, LoggedModel, Metric, Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from requests import Response

USERNAME, PASSWORD = "IMPORT_USERNAME", "IMPORT_PASSWORD"
_CLIENT = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")  # of MLflow's client; the stack has its own in .env
CONNECTIONS = 8
PAGE = 1000
TIMEOUT = 120  # seconds without an answer, as of MLflow's client
BLOCK = 1024 * 1024  # bytes
LARGEST = 1.7976931348623157e308  # stands for infinity in MLflow's tables
ANY_STAGE = 3  # MLflow's ViewType.ALL
MODEL_STATUS = {"PENDING": 1, "READY": 2, "FAILED": 3}
_NAMESPACE = uuid.uuid4()  # of this import: other servers have experiments of the same number
_IS_PROMPT = "mlflow.prompt.is_prompt"  # MLflow's tag
_NOT_SUPPORTED = (404, 405, 501)  # of a server that is older than the call


@contextmanager
def account(url: str) -> Iterator[None]:
    """MLflow's client uses the server at `url` with the account of IMPORT_USERNAME, not with the stack's."""
    import mlflow

    before = {name: settings.of_shell(name) for name in _CLIENT}
    login = {name: settings.of_shell(given) for name, given in zip(_CLIENT, (USERNAME, PASSWORD), strict=True)}
    settings.forget(_CLIENT)
    settings.publish({name: value for name, value in login.items() if value})
    mlflow.set_tracking_uri(url)
    try:
        yield
    finally:
        settings.forget(_CLIENT)
        settings.publish({name: value for name, value in before.items() if value})


def read(url: str, database: sqlite3.Connection, traces: TextIO, announce: Callable[[str], None]) -> list[str]:
    """Reads everything that the account may read. Raises MlstackError when the server does not answer it.

    Returns what could not be read.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    problems: list[str] = []
    with account(url), ThreadPoolExecutor(CONNECTIONS) as pool:
        client = MlflowClient(url, url)
        try:
            experiments = list(_pages(client.search_experiments, view_type=ANY_STAGE, max_results=PAGE))
            for experiment in experiments:
                _read_experiment(client, pool, experiment, database, announce)
                database.commit()
            _read_registry(client, database, announce)
            database.commit()
            read_traces = _unread_traces if _is_of_mlflow_2(url) else partial(_read_traces, pool, traces, announce)
            for experiment in experiments:
                problems += read_traces(client, experiment)
        except MlflowException as error:
            raise MlstackError(
                f"{url} did not answer as an MLflow server does: {error.message[:300]}",
                "Nothing was imported.",
                f"check FROM, and {USERNAME} and {PASSWORD} in the environment if the server has accounts",
            ) from error
    return problems


def download_from_page(url: str, run: str, name: str, folder: Path) -> Path:
    """A run's artifact, from the address that MLflow's page uses. Raises OSError when the server does not answer with it."""
    target = folder / "artifact"
    with _answer(f"{url}/get-artifact", run_uuid=run, path=name) as answer, target.open("wb") as file:
        answer.raise_for_status()
        for block in answer.iter_content(BLOCK):
            file.write(block)
    return target


def _is_of_mlflow_2(url: str) -> bool:
    with _answer(f"{url}/version") as answer:
        return bool(answer.ok and answer.text.startswith("2."))


def _answer(url: str, **wanted: str) -> "Response":
    import requests  # as MLflow's client: the same proxies and certificates

    username, password = settings.of_shell(USERNAME), settings.of_shell(PASSWORD)
    return requests.get(url, wanted, auth=(username, password) if username else None, stream=True, timeout=TIMEOUT)


def _read_experiment(
    client: "MlflowClient",
    pool: ThreadPoolExecutor,
    experiment: "Experiment",
    database: sqlite3.Connection,
    announce: Callable[[str], None],
) -> None:
    _insert(
        database,
        "experiments",
        {
            "experiment_id": int(experiment.experiment_id),
            "name": experiment.name,
            "artifact_location": experiment.artifact_location,
            "lifecycle_stage": experiment.lifecycle_stage,
            "creation_time": experiment.creation_time,
            "last_update_time": experiment.last_update_time,
        },
    )
    for key, value in experiment.tags.items():
        _insert(database, "experiment_tags", {"experiment_id": int(experiment.experiment_id), "key": key, "value": value})
    runs = _pages(client.search_runs, experiment_ids=[experiment.experiment_id], run_view_type=ANY_STAGE, max_results=PAGE)
    for count, run in enumerate(runs, 1):
        histories = pool.map(lambda key, run=run: (key, client.get_metric_history(run.info.run_id, key)), run.data.metrics)
        _insert_run(database, run, dict(histories))
        if count % PAGE == 0:
            announce(f"reading {experiment.name}: {count} runs")
    models = _supported(lambda: list(_pages(client.search_logged_models, experiment_ids=[experiment.experiment_id])))
    for model in models:
        _insert_model(database, model)


def _insert_run(database: sqlite3.Connection, run: "Run", histories: Mapping[str, Iterable["Metric"]]) -> None:
    info, tags = run.info, run.data.tags
    _insert(
        database,
        "runs",
        {
            "run_uuid": info.run_id,
            "name": info.run_name,
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": info.user_id,
            "status": info.status,
            "start_time": info.start_time,
            "end_time": info.end_time,
            "source_version": "",
            "lifecycle_stage": info.lifecycle_stage,
            "artifact_uri": info.artifact_uri,
            "experiment_id": int(info.experiment_id),
            # The API does not say when it was deleted.
            "deleted_time": info.end_time or info.start_time if info.lifecycle_stage == "deleted" else None,
        },
    )
    for table, values in (("params", run.data.params), ("tags", tags)):
        for key, value in values.items():
            _insert(database, table, {"key": key, "value": value, "run_uuid": info.run_id})
    for key, history in histories.items():
        points = {(point.step, point.timestamp, *_stored(point.value)) for point in history}
        for table, rows in (("metrics", points), ("latest_metrics", [max(points)] if points else [])):
            database.executemany(
                f"INSERT INTO {table} (key, run_uuid, step, timestamp, value, is_nan) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608
                [(key, info.run_id, *row) for row in rows],
            )
    for used in run.inputs.dataset_inputs if run.inputs else []:
        _insert_dataset_input(database, info.experiment_id, info.run_id, used)
    for read in (run.inputs.model_inputs if run.inputs else None) or []:
        _insert_link(database, ("RUN_INPUT", info.run_id), ("MODEL_INPUT", read.model_id))
    for written in (run.outputs.model_outputs if run.outputs else None) or []:
        _insert_link(database, ("RUN_OUTPUT", info.run_id), ("MODEL_OUTPUT", written.model_id), written.step)


def _insert_dataset_input(database: sqlite3.Connection, experiment: str, run: str, used: Any) -> None:
    dataset = used.dataset
    identifier = str(uuid.uuid5(_NAMESPACE, f"{experiment}/{dataset.name}/{dataset.digest}"))  # the API does not give MLflow's
    _insert(
        database,
        "datasets",
        {
            "dataset_uuid": identifier,
            "experiment_id": int(experiment),
            "name": dataset.name,
            "digest": dataset.digest,
            "dataset_source_type": dataset.source_type,
            "dataset_source": dataset.source,
            "dataset_schema": dataset.schema,
            "dataset_profile": dataset.profile,
        },
        verb="INSERT OR IGNORE",  # several runs use it
    )
    link = _insert_link(database, ("DATASET", identifier), ("RUN", run))
    for tag in used.tags:
        _insert(database, "input_tags", {"input_uuid": link, "name": tag.key, "value": tag.value})


def _insert_link(database: sqlite3.Connection, source: tuple[str, str], target: tuple[str, str], step: int = 0) -> str:
    """Adds a row of `inputs` between two things, given by type and id; returns its id, which the API does not give."""
    link = str(uuid.uuid5(_NAMESPACE, "/".join((*source, *target))))
    row = {
        "input_uuid": link,
        "source_type": source[0],
        "source_id": source[1],
        "destination_type": target[0],
        "destination_id": target[1],
        "step": step,
    }
    _insert(database, "inputs", row)
    return link


def _insert_model(database: sqlite3.Connection, model: "LoggedModel") -> None:
    shared = {"model_id": model.model_id, "experiment_id": int(model.experiment_id)}
    _insert(
        database,
        "logged_models",
        {
            **shared,
            "name": model.name,
            "artifact_location": model.artifact_location,
            "creation_timestamp_ms": model.creation_timestamp,
            "last_updated_timestamp_ms": model.last_updated_timestamp,
            "status": MODEL_STATUS[str(model.status)],
            "lifecycle_stage": "active",
            "model_type": model.model_type,
            "source_run_id": model.source_run_id,
            "status_message": model.status_message,
        },
    )
    for key, value in (model.params or {}).items():
        _insert(database, "logged_model_params", {**shared, "param_key": key, "param_value": value})
    for key, value in (model.tags or {}).items():
        _insert(database, "logged_model_tags", {**shared, "tag_key": key, "tag_value": value})
    for metric in model.metrics or []:
        row = {
            **shared,
            "metric_name": metric.key,
            "metric_timestamp_ms": metric.timestamp,
            "metric_step": metric.step,
            "metric_value": metric.value,
            "run_id": metric.run_id,
            "dataset_name": metric.dataset_name,
            "dataset_digest": metric.dataset_digest,
        }
        _insert(database, "logged_model_metrics", row)


def _read_registry(client: "MlflowClient", database: sqlite3.Connection, announce: Callable[[str], None]) -> None:
    announce("reading the model registry")
    # A search without this filter leaves prompts out, which are registered models with this tag.
    kinds: tuple[tuple[str | None, dict[str, str]], ...] = ((None, {}), (f"tags.`{_IS_PROMPT}` = 'true'", {_IS_PROMPT: "true"}))
    for kind, own_tags in kinds:
        for model in _pages(client.search_registered_models, filter_string=kind, max_results=PAGE):
            _insert_registered(database, model, model.tags | own_tags)  # a model does not tell that one of its tags
        for version in _pages(client.search_model_versions, filter_string=kind, max_results=PAGE):
            _insert_version(database, version, version.tags | own_tags)


def _insert_registered(database: sqlite3.Connection, model: "RegisteredModel", tags: Mapping[str, str]) -> None:
    times = {"creation_time": model.creation_timestamp, "last_updated_time": model.last_updated_timestamp}
    _insert(database, "registered_models", {"name": model.name, "description": model.description, **times})
    for key, value in tags.items():
        _insert(database, "registered_model_tags", {"name": model.name, "key": key, "value": value})
    for alias, version in model.aliases.items():
        _insert(database, "registered_model_aliases", {"name": model.name, "alias": alias, "version": int(version)})


def _insert_version(database: sqlite3.Connection, version: "ModelVersion", tags: Mapping[str, str]) -> None:
    shared = {"name": version.name, "version": int(version.version)}
    row = {
        **shared,
        "creation_time": version.creation_timestamp,
        "last_updated_time": version.last_updated_timestamp,
        "description": version.description,
        "user_id": version.user_id,
        "current_stage": version.current_stage,
        "source": version.source,
        "run_id": version.run_id,
        "status": version.status,
        "status_message": version.status_message,
        "run_link": version.run_link,
    }
    _insert(database, "model_versions", row)
    for key, value in tags.items():
        _insert(database, "model_version_tags", {**shared, "key": key, "value": value})


def _unread_traces(client: "MlflowClient", experiment: "Experiment") -> list[str]:
    """A server of MLflow 2 lists its traces to a later client, and answers with an error when that asks for one."""
    count = len(_trace_infos(client, experiment))
    return [f"{experiment.name}: {count} traces, which a server of MLflow 2 does not give to later clients"] if count else []


def _trace_infos(client: "MlflowClient", experiment: "Experiment") -> list[Any]:
    ids = [experiment.experiment_id]
    return _supported(
        lambda: [trace.info for trace in _pages(client.search_traces, locations=ids, include_spans=False, max_results=100)]
    )


def _read_traces(
    pool: ThreadPoolExecutor, traces: TextIO, announce: Callable[[str], None], client: "MlflowClient", experiment: "Experiment"
) -> list[str]:
    from mlflow.exceptions import MlflowException

    announce(f"reading the traces of {experiment.name}")

    def trace_or_problem(info: Any) -> tuple[str, str]:
        try:
            return json.dumps(client.get_trace(info.trace_id, display=False).to_dict()), ""
        except MlflowException as error:
            return "", f"trace {info.trace_id}: {error.message}"

    problems = []
    for text, problem in pool.map(trace_or_problem, _trace_infos(client, experiment)):
        if text:
            traces.write(f"{text}\n")
        else:
            problems.append(problem)
    return problems


def _supported(call: Callable[[], list[Any]]) -> list[Any]:
    """The result of a call that an older server does not have: then there is nothing to read."""
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except MlflowException as error:
        if error.get_http_status_code() in _NOT_SUPPORTED:
            return []
        raise


def _pages(search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token, **arguments)
        yield from page
        token = page.token
        if not token:
            return


def _stored(value: float) -> tuple[float, bool]:
    """A number as MLflow's tables have it, and whether it is NaN."""
    return (0.0, True) if math.isnan(value) else (max(-LARGEST, min(LARGEST, value)), False)


def _insert(database: sqlite3.Connection, table: str, row: Mapping[str, Any], verb: str = "INSERT") -> None:
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    database.execute(f"{verb} INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))
