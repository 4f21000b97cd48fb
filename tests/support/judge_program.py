"""In a notebook: traces, a judge whose model is behind the gateway, and mlflow.genai.evaluate with it. Writes JSON."""

import json
import os
from pathlib import Path

import mlflow
from mlflow.genai.judges import make_judge
from mlflow.tracking._tracking_service.utils import _get_store

os.environ["MLFLOW_MODEL_CATALOG_URI"] = ""  # the test's network answers no look-up of prices
mlflow.set_experiment("judged")
# A client that is not told the server's version within three seconds stores spans as artifacts, which MLflow's jobs do not read.
store = _get_store()
while store._get_server_version(store.get_host_creds()) is None:
    store._get_server_version.cache_clear()


@mlflow.trace
def answer(question: str) -> str:
    return f"I do not know: {question}"


for question in ("What is MLflow?", "What is a run?"):
    answer(question)
mlflow.flush_trace_async_logging()
traces = mlflow.search_traces(return_type="list")
judge = make_judge(
    name="helpful",
    instructions="Is the answer in {{ outputs }} helpful for {{ inputs }}? Answer yes or no.",
    model="gateway:/stub",
    feedback_value_type=str,
)
verdict = judge(inputs={"question": "?"}, outputs={"answer": "!"})
evaluated = mlflow.genai.evaluate(data=traces, scorers=[judge])
results = {
    "verdict": verdict.value,
    "evaluated": list(evaluated.result_df["helpful/value"]),
    "traces": [trace.info.trace_id for trace in traces],
    "experiment": traces[0].info.experiment_id,
    "scorer": json.dumps(judge.model_dump()),
}
Path("/tmp/judged.json").write_text(json.dumps(results))  # noqa: S108
