"""The documented calls of MLflow's public REST API, in an order in which each has something to work on.

`<name>` stands for what an earlier call answered: each step may keep a value of its answer under a name.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    method: str
    path: str
    fields: dict[str, Any]
    keep: str = ""  # the name, and where in the answer: "run=run.info.run_id"


def _post(path: str, keep: str = "", **fields: Any) -> Step:
    return Step("POST", path, fields, keep)


def _get(path: str, keep: str = "", **fields: Any) -> Step:
    return Step("GET", path, fields, keep)


POINT = {"key": "loss", "value": 0.5, "timestamp": 1000, "step": 2}
DATASET = {"dataset": {"name": "d", "digest": "1", "source_type": "s", "source": "{}"}, "tags": [{"key": "k", "value": "v"}]}
MODEL = '{"run_id": "<run>", "artifact_path": "model", "utc_time_created": "2026-01-01 00:00:00", "flavors": {}}'
STEPS = (
    _post("experiments/create", "experiment=experiment_id", name="example", tags=[{"key": "team", "value": "ours"}]),
    _post("experiments/create", name="example"),
    _post("experiments/search", max_results=2, filter="name = 'example'", order_by=["name ASC"], view_type="ACTIVE_ONLY"),
    _get("experiments/search", max_results=2),
    _get("experiments/get", experiment_id="<experiment>"),
    _get("experiments/get-by-name", experiment_name="example"),
    _get("experiments/get-by-name", experiment_name="none such"),
    _post("experiments/update", experiment_id="<experiment>", new_name="renamed"),
    _post("experiments/set-experiment-tag", experiment_id="<experiment>", key="k", value="v"),
    _post("experiments/delete-experiment-tag", experiment_id="<experiment>", key="k"),
    _post("runs/create", "run=run.info.run_id", experiment_id="<experiment>", user_id="me", run_name="one", start_time=1000,
          tags=[{"key": "t", "value": "v"}]),
    _post("runs/create", "other=run.info.run_id", experiment_id="<experiment>"),
    _post("runs/create", experiment_id="99999"),
    _post("runs/log-metric", run_id="<run>", **POINT),
    _post("runs/log-metric", run_uuid="<run>", key="by_uuid", value=1, timestamp=1),
    _post("runs/log-batch", run_id="<run>", metrics=[POINT], params=[{"key": "p", "value": "v"}],
          tags=[{"key": "t", "value": "2"}]),
    _post("runs/log-parameter", run_id="<run>", key="q", value="1"),
    _post("runs/log-parameter", run_id="<run>", key="q", value="2"),
    _post("runs/set-tag", run_id="<run>", key="u", value="1"),
    _post("runs/delete-tag", run_id="<run>", key="u"),
    _post("runs/delete-tag", run_id="<run>", key="u"),
    _post("runs/log-inputs", run_id="<run>", datasets=[DATASET]),
    _post("runs/log-model", run_id="<run>", model_json=MODEL),
    _post("runs/update", run_id="<run>", status="FINISHED", end_time=2000, run_name="two"),
    _get("runs/get", run_id="<run>"),
    _get("runs/get", run_uuid="<run>"),
    _get("metrics/get-history", run_id="<run>", metric_key="loss"),
    _get("metrics/get-history", run_id="<run>", metric_key="none such"),
    _post("runs/search", experiment_ids=["<experiment>"], filter="metrics.loss < 1 and params.p = 'v'", run_view_type="ALL",
          max_results=1, order_by=["metrics.loss DESC"]),
    _post("runs/search", "token=next_page_token", experiment_ids=["<experiment>"], max_results=1),
    _post("runs/search", experiment_ids=["<experiment>"], max_results=1, page_token="<token>"),
    _post("runs/search", experiment_ids=["<experiment>"], filter="nonsense"),
    _get("artifacts/list", run_id="<run>"),
    _post("runs/delete", run_id="<run>"),
    _post("runs/log-metric", run_id="<run>", **POINT),
    _get("runs/get", run_id="<run>"),
    _post("runs/restore", run_id="<run>"),
    _post("runs/log-metric", run_id="<run>", **POINT),
    _post("registered-models/create", name="m", tags=[{"key": "k", "value": "v"}], description="d"),
    _post("registered-models/create", name="m"),
    _get("registered-models/get", name="m"),
    _post("registered-models/rename", name="m", new_name="n"),
    Step("PATCH", "registered-models/update", {"name": "n", "description": "other"}),
    _post("registered-models/set-tag", name="n", key="a", value="b"),
    Step("DELETE", "registered-models/delete-tag", {"name": "n", "key": "a"}),
    _get("registered-models/search", filter="name LIKE 'n%'", max_results=3, order_by="name ASC"),
    _post("model-versions/create", name="n", source="mlflow-artifacts:/<experiment>/<run>/artifacts/model", run_id="<run>",
          tags=[{"key": "k", "value": "v"}], description="first"),
    _post("model-versions/create", name="n", source="mlflow-artifacts:/<experiment>/<run>/artifacts/../../x", run_id="<run>"),
    _get("model-versions/get", name="n", version="1"),
    _get("model-versions/get", name="n", version="99"),
    _get("model-versions/get-download-uri", name="n", version="1"),
    Step("PATCH", "model-versions/update", {"name": "n", "version": "1", "description": "changed"}),
    _post("model-versions/transition-stage", name="n", version="1", stage="Production", archive_existing_versions=True),
    _post("registered-models/get-latest-versions", name="n", stages=["Production"]),
    _get("model-versions/search", filter="name = 'n'", max_results=5),
    _post("model-versions/set-tag", name="n", version="1", key="a", value="b"),
    Step("DELETE", "model-versions/delete-tag", {"name": "n", "version": "1", "key": "a"}),
    _post("registered-models/alias", name="n", alias="champion", version="1"),
    _get("registered-models/alias", name="n", alias="champion"),
    Step("DELETE", "registered-models/alias", {"name": "n", "alias": "champion"}),
    _get("registered-models/alias", name="n", alias="champion"),
    Step("DELETE", "model-versions/delete", {"name": "n", "version": "1"}),
    Step("DELETE", "registered-models/delete", {"name": "n"}),
    _post("logged-models", "logged=model.info.model_id", experiment_id="<experiment>", name="lm", source_run_id="<run>"),
    _get("logged-models/<logged>"),
    _post("runs/log-metric", run_id="<run>", model_id="<logged>", key="of_model", value=1, timestamp=1, step=0),
    _post("runs/log-batch", run_id="<run>", metrics=[POINT | {"model_id": "<logged>", "key": "of_model_2"}]),
    Step("PATCH", "logged-models/<logged>", {"status": "LOGGED_MODEL_READY"}),
    _post("logged-models/search", experiment_ids=["<experiment>"], max_results=2),
    _get("logged-models/<logged>"),
    Step("DELETE", "logged-models/<logged>", {}),
    _post("experiments/delete", experiment_id="<experiment>"),
    _post("runs/log-metric", run_id="<run>", **POINT),
    _post("runs/create", experiment_id="<experiment>"),
    _post("experiments/restore", experiment_id="<experiment>"),
    _post("runs/log-metric", run_id="<run>", **POINT),
    _get("users/current"),
    _get("nonsense"),
    _post("nonsense"),
    Step("PUT", "runs/log-metric", {}),
)  # fmt: skip
