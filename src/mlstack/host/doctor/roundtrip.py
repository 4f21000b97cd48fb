"""What a user's code does with MLflow, once: a run, an artifact up and down, and no leftovers. Prints the results as JSON.

The doctor runs this program on the host and in the Jupyter container, with the account and the address that are set
there. It uses MLflow's client and nothing of mlstack, so that it also runs in images that are older than this file.
"""

import base64
import hashlib
import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 10  # seconds
LEFT_AFTER = 600  # seconds
SIZE = 300_000  # bytes: more than one packet and one buffer, less than a second
TAG = "mlstack.doctor"


def main() -> None:
    results: dict[str, Any] = {"errors": {}, "run": None}
    uri = os.environ["MLFLOW_TRACKING_URI"].rstrip("/")

    def step(name: str, action: Callable[[], Any]) -> bool:
        try:
            results[name] = action()
        except Exception as error:  # noqa: BLE001 # each is reported, by kind
            results["errors"][name] = {"kind": type(error).__name__, "said": str(error), "status": _status(error)}
        return name not in results["errors"]

    if step("server", lambda: _get(f"{uri}/version").strip()):
        import mlflow

        results["client"] = mlflow.__version__
        client = mlflow.MlflowClient()
        step("left", lambda: _left(client))
        try:
            if step("run", lambda: _start(client)):
                run = results["run"]
                # mlflow-artifacts:/0/<run>/artifacts
                results["folder"] = urlsplit(client.get_run(run).info.artifact_uri).path.strip("/").removesuffix("artifacts")
                step("rows", lambda: _rows(client, run))
                # If MLflow announces presigned URLs that cannot be reached, a file would hang for minutes.
                if step("links", lambda: _links(uri)) and not results["links"]:
                    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
                    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

                    place = client.get_run(run).info.artifact_uri
                    step("artifact", lambda: _artifact(MlflowArtifactsRepository(place), "doctor"))
                    step("direct", lambda: _direct(get_artifact_repository(place)))
        finally:
            if results["run"]:
                step("deleted", lambda: client.delete_run(results["run"]))
    json.dump(results, sys.stdout)


def _left(client: Any) -> list[str]:
    """Runs that an interrupted doctor left, in the trash or not. Younger ones may be another doctor's."""
    before = int((time.time() - LEFT_AFTER) * 1000)
    everywhere = [experiment.experiment_id for experiment in client.search_experiments(max_results=100)]
    filter_string = f"tags.`{TAG}` = '1' AND attributes.start_time < {before}"
    runs = client.search_runs(everywhere, filter_string, run_view_type=3, max_results=100)
    for run in runs:
        if run.info.lifecycle_stage == "active":
            client.delete_run(run.info.run_id)
    return [run.info.run_id for run in runs]


def _start(client: Any) -> str:
    """A run in the default experiment, or in any other if that is deleted."""
    experiments = client.search_experiments(max_results=100)
    chosen = min(experiments, key=lambda experiment: int(experiment.experiment_id))
    return str(client.create_run(chosen.experiment_id, run_name="doctor", tags={TAG: "1"}).info.run_id)


def _rows(client: Any, run: str) -> str:
    client.log_param(run, "question", "six by seven")
    client.log_metric(run, "answer", 42.5)
    data = client.get_run(run).data
    read = (data.params.get("question"), data.metrics.get("answer"))
    if read != ("six by seven", 42.5):
        raise ValueError(f"read back {read}")
    return "wrote and read"


def _artifact(repository: Any, folder: str) -> str:
    """Byte for byte."""
    content = os.urandom(SIZE)
    with tempfile.TemporaryDirectory() as here:
        up, down = Path(here, "doctor.bin"), Path(here, "down")
        up.write_bytes(content)
        down.mkdir()
        repository.log_artifact(str(up), folder)
        listed = [(entry.path, entry.file_size) for entry in repository.list_artifacts(folder)]
        if listed != [(f"{folder}/doctor.bin", SIZE)]:
            raise ValueError(f"listed {listed}")
        got = Path(repository.download_artifacts(f"{folder}/doctor.bin", str(down))).read_bytes()
    if got != content:
        raise ValueError(f"sent {hashlib.sha256(content).hexdigest()}, got {hashlib.sha256(got).hexdigest()}")
    return f"{SIZE} bytes up and down"


def _direct(repository: Any) -> str:
    """Through presigned URLs; explains why if there are none."""
    if not hasattr(repository, "gives_links"):
        return "no: MLflow's client here does not request presigned URLs"
    if not repository.gives_links():
        return "no: MLflow gives no presigned URLs, or MinIO cannot be reached from here"
    return _artifact(repository, "doctor direct")


def _links(uri: str) -> bool:
    """Whether MLflow's own presigned URLs are on."""
    info = json.loads(_get(f"{uri}/api/3.0/mlflow/server-info"))
    return bool(info.get("multipart_uploads_enabled") or info.get("multipart_downloads_enabled"))


def _get(url: str) -> str:
    account = f"{os.environ.get('MLFLOW_TRACKING_USERNAME', '')}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
    header = {"Authorization": "Basic " + base64.b64encode(account.encode()).decode()}
    with urllib.request.urlopen(urllib.request.Request(url, headers=header), timeout=PATIENCE) as answer:  # noqa: S310
        return str(answer.read().decode())


def _status(error: Exception) -> int | None:
    if isinstance(error, urllib.error.HTTPError):
        return error.code
    if hasattr(error, "get_http_status_code"):  # MlflowException
        return int(error.get_http_status_code())
    return getattr(getattr(error, "response", None), "status_code", None)


if __name__ == "__main__":
    main()
