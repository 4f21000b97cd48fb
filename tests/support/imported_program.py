"""What another MLflow holds before it is imported: `python imported_program.py fill` creates it, `… read` prints all of it.

A program of its own, so that any version of MLflow can run it. It uses MLFLOW_TRACKING_URI and its account.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

NOW = 1_700_000_000_000
PROMPT = "tags.`mlflow.prompt.is_prompt` = 'true'"
IS_3 = int(mlflow.__version__.partition(".")[0]) >= 3
TEXT = 'it\'s "ünïcode" \\ ⚗\ttab\nline'


def fill(client: MlflowClient) -> None:
    experiment = client.create_experiment("wine", tags={"team": "ours", "note": TEXT})
    parent = client.create_run(experiment, NOW, {"mlflow.user": "ada", "note": TEXT}, "parent").info.run_id
    child = client.create_run(experiment, NOW + 1, {"mlflow.parentRunId": parent}, "child").info.run_id
    points = [Metric("loss", 1 / (step + 1), NOW + step, step) for step in range(500)]
    odd = [Metric("odd/deep", float(value), NOW, step) for step, value in enumerate(("nan", "inf", "-inf", "1e-300", "0"))]
    client.log_batch(parent, points, [Param("alpha", "0.5"), Param("text", TEXT)], [RunTag("kind", "x" * 3000)])
    client.log_batch(child, odd)
    for _ in range(2):  # the same point twice: a file store keeps both
        client.log_metric(child, "twice", 1, NOW, 0)
    client.log_dict(parent, {"a": 1}, "files/deep/ümlaut 日本.json")
    client.log_text(child, "b" * 100_000, "with space & +.txt")
    client.log_text(child, "", "empty.txt")
    client.set_terminated(parent, "FINISHED", NOW + 1000)
    client.set_terminated(child, "FAILED", NOW + 2000)
    log_dataset(parent)
    in_default = client.create_run("0", NOW, run_name="in the default experiment").info.run_id
    client.log_text(in_default, "default", "note.txt")
    deleted = client.create_run(experiment, NOW, run_name="deleted").info.run_id
    client.delete_run(deleted)
    client.delete_experiment(client.create_experiment("given up"))
    client.create_registered_model("classifier", {"kind": "test"}, "a model")
    for run in (parent, child):
        source = f"{client.get_run(run).info.artifact_uri}/files"
        client.create_model_version("classifier", source, run, {"checked": "yes"}, description="good")
    client.set_registered_model_alias("classifier", "champion", "2")
    if IS_3:
        fill_3(client, experiment, parent)


def log_dataset(run: str) -> None:
    import pandas

    with mlflow.start_run(run, log_system_metrics=False):
        dataset = mlflow.data.from_pandas(pandas.DataFrame({"a": [1.0]}), name="wine data")
        mlflow.log_input(dataset, "training", {"split": "a"})
    MlflowClient().set_terminated(run, "FINISHED", NOW + 1000)


def fill_3(client: MlflowClient, experiment: str, run: str) -> None:
    model = client.create_logged_model(experiment, "forest", run, {"t": "u"}, {"depth": "3"}, "sklearn")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "MLmodel").write_text("flavors: {}\n")
        client.log_model_artifacts(model.model_id, folder)
    client.finalize_logged_model(model.model_id, "READY")
    client.log_metric(run, "accuracy", 0.9, NOW, 0, model_id=model.model_id)
    mlflow.set_experiment(experiment_id=experiment)
    for text in ("Answer {{question}}", "Answer {{question}} shortly"):
        client.register_prompt("greeting", text, commit_message=TEXT, tags={"t": "u"})
    client.set_prompt_alias("greeting", "best", 2)
    client.set_prompt_tag("greeting", "_mlflow_experiment_ids", f",{experiment},")

    @mlflow.trace(name="answer", attributes={"a": 1})
    def answer(question: str) -> str:
        with mlflow.start_span("inner") as span:
            span.set_inputs({"q": question})
        return question.upper()

    answer(TEXT)
    trace = mlflow.get_last_active_trace_id()
    mlflow.flush_trace_async_logging()
    client.set_trace_tag(trace, "reviewed", "yes")
    mlflow.log_feedback(trace_id=trace, name="good", value=True, rationale="short")


def read(client: MlflowClient, prefix: str = "") -> dict[str, Any]:
    """Everything that the client can see, without what is another server's: ids of experiments, addresses of files."""
    experiments = sorted(pages(client.search_experiments, view_type=3), key=lambda experiment: experiment.name)
    with tempfile.TemporaryDirectory() as folder:
        return {
            "experiments": {
                experiment.name.removeprefix(prefix): read_experiment(client, experiment, folder)
                for experiment in experiments
                if experiment.name.startswith(prefix)
            },
            "models": [
                read_model(client, model, prefix)
                for model in pages(client.search_registered_models)
                if model.name.startswith(prefix)
            ],
            "prompts": [
                read_prompt(client, prompt, prefix)
                for prompt in pages(client.search_registered_models, filter_string=PROMPT)
                if prompt.name.startswith(prefix)
            ],
        }


def read_experiment(client: MlflowClient, experiment: Any, folder: str) -> dict[str, Any]:
    ids = [experiment.experiment_id]
    runs = pages(lambda **page: client.search_runs(ids, run_view_type=3, **page))
    content = {
        "tags": {key: value for key, value in experiment.tags.items() if not key.startswith("mlstack.")},
        "stage": experiment.lifecycle_stage,
        "runs": sorted((read_run(client, run, folder) for run in runs), key=lambda run: str(run["id"])),
    }
    if IS_3:
        content["models"] = [read_logged(model, folder) for model in pages(client.search_logged_models, experiment_ids=ids)]
        content["traces"] = [read_trace(trace) for trace in pages(client.search_traces, locations=ids)]
    return content


def read_run(client: MlflowClient, run: Any, folder: str) -> dict[str, Any]:
    info, data = run.info, run.data
    return {
        "id": info.run_id,
        "info": [info.run_name, info.user_id, info.status, info.start_time, info.end_time, info.lifecycle_stage],
        "params": dict(data.params),
        "tags": dict(data.tags),
        "latest": {key: repr(value) for key, value in sorted(data.metrics.items())},
        "metrics": {
            key: sorted({(m.step, m.timestamp, repr(m.value)) for m in client.get_metric_history(info.run_id, key)})
            for key in sorted(data.metrics)
        },
        "inputs": [
            [used.dataset.name, used.dataset.digest, used.dataset.source, sorted((tag.key, tag.value) for tag in used.tags)]
            for used in run.inputs.dataset_inputs
        ],
        "artifacts": artifacts(lambda path: client.list_artifacts(info.run_id, path), info.artifact_uri, folder),
    }


def artifacts(list_files: Any, uri: str, folder: str, path: str | None = None) -> dict[str, str]:
    checksums = {}
    for item in list_files(path):
        if item.is_dir:
            checksums |= artifacts(list_files, uri, folder, item.path)
        else:
            # Of MLflow 2.22, no client can download a name that is not Latin: its files are read where they are.
            stored = os.environ.get("ARTIFACTS") and Path(os.environ["ARTIFACTS"], *urlsplit(uri).path.split("/"), item.path)
            local = stored or Path(mlflow.artifacts.download_artifacts(f"{uri}/{item.path}", dst_path=folder))
            checksums[item.path] = hashlib.sha256(local.read_bytes()).hexdigest()
    return checksums


def read_logged(model: Any, folder: str) -> dict[str, Any]:
    Path(folder, model.model_id).mkdir()
    path = mlflow.artifacts.download_artifacts(f"models:/{model.model_id}", dst_path=f"{folder}/{model.model_id}")
    return {
        "id": model.model_id,
        "info": [model.name, model.model_type, model.source_run_id, str(model.status), model.creation_timestamp],
        "params": model.params,
        "tags": model.tags,
        "metrics": [[metric.key, metric.value, metric.step, metric.run_id] for metric in model.metrics or []],
        "file": Path(path, "MLmodel").read_text(),
    }


def read_trace(trace: Any) -> dict[str, Any]:
    info = trace.info
    return {
        "id": info.trace_id,
        "info": [info.request_time, info.execution_duration, str(info.state), info.request_preview, info.response_preview],
        "tags": {key: value for key, value in info.tags.items() if not key.startswith(("mlflow.artifact", "mlflow.trace."))},
        "spans": sorted([span.name, span.span_id, str(span.inputs), str(span.outputs)] for span in trace.data.spans),
        "assessments": [[item.name, item.value, item.rationale] for item in info.assessments],
    }


def read_model(client: MlflowClient, model: Any, prefix: str) -> dict[str, Any]:
    versions = pages(lambda **page: client.search_model_versions(f"name='{model.name}'", **page))
    return {
        "name": model.name.removeprefix(prefix),
        "info": [model.description, dict(model.tags), model.creation_timestamp],
        "aliases": {alias: str(version) for alias, version in model.aliases.items()},
        "versions": sorted(
            [int(v.version), v.source.partition(v.run_id)[2], v.run_id, v.status, v.description, dict(v.tags)] for v in versions
        ),
    }


def read_prompt(client: MlflowClient, prompt: Any, prefix: str) -> dict[str, Any]:
    tags = dict(prompt.tags)
    experiments = [client.get_experiment(number).name for number in tags.pop("_mlflow_experiment_ids", "").split(",") if number]
    versions = pages(client.search_model_versions, filter_string=f"name = '{prompt.name}' AND {PROMPT}")
    return {
        "name": prompt.name.removeprefix(prefix),
        "info": [prompt.description, tags, prompt.creation_timestamp],
        "experiments": [name.removeprefix(prefix) for name in experiments],
        "aliases": {alias: str(version) for alias, version in prompt.aliases.items()},
        "versions": sorted([int(v.version), v.status, v.description, dict(v.tags)] for v in versions),
    }


def pages(search: Any, **arguments: Any) -> list[Any]:
    items, token = [], None
    while True:
        page = search(page_token=token, **arguments)
        items += page
        token = page.token
        if not token:
            return items


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        fill(MlflowClient())
    else:
        json.dump(read(MlflowClient(), *sys.argv[2:]), sys.stdout, sort_keys=True, indent=1)
