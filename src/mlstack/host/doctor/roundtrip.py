"""What a user's code does with MLflow, once: a run, an artifact up and down, and nothing left. Prints what came of it as JSON.

The doctor runs this text on this machine and inside the Jupyter container, with the account and the address that are set
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
    found: dict[str, Any] = {"errors": {}, "run": None}
    uri = os.environ["MLFLOW_TRACKING_URI"].rstrip("/")

    def step(name: str, action: Callable[[], Any]) -> bool:
        try:
            found[name] = action()
        except Exception as error:  # noqa: BLE001 # each is reported, by kind
            found["errors"][name] = {"kind": type(error).__name__, "said": str(error), "status": _status(error)}
        return name not in found["errors"]

    if step("server", lambda: _get(f"{uri}/version").strip()):
        import mlflow

        found["client"] = mlflow.__version__
        client = mlflow.MlflowClient()
        step("left", lambda: _left(client))
        try:
            if step("run", lambda: _start(client)):
                run = found["run"]
                # mlflow-artifacts:/0/<run>/artifacts
                found["folder"] = urlsplit(client.get_run(run).info.artifact_uri).path.strip("/").removesuffix("artifacts")
                step("rows", lambda: _rows(client, run))
                # Where links are announced that lead nowhere, a file would hang for minutes.
                if step("links", lambda: _links(uri)) and not found["links"]:
                    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
                    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

                    place = client.get_run(run).info.artifact_uri
                    step("artifact", lambda: _artifact(MlflowArtifactsRepository(place), "doctor"))
                    step("direct", lambda: _direct(get_artifact_repository(place)))
        finally:
            if found["run"]:
                step("deleted", lambda: client.delete_run(found["run"]))
    json.dump(found, sys.stdout)


def _left(client: Any) -> list[str]:
    """Runs that a doctor who was stopped left in the trash, or out of it. A younger one may be another doctor's."""
    before = int((time.time() - LEFT_AFTER) * 1000)
    everywhere = [experiment.experiment_id for experiment in client.search_experiments(max_results=100)]
    wanted = f"tags.`{TAG}` = '1' AND attributes.start_time < {before}"
    found = client.search_runs(everywhere, wanted, run_view_type=3, max_results=100)
    for run in found:
        if run.info.lifecycle_stage == "active":
            client.delete_run(run.info.run_id)
    return [run.info.run_id for run in found]


def _start(client: Any) -> str:
    """A run in the default experiment; where a user has deleted that one, in any other."""
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
    """Through links, where there are any; says why where there are none."""
    if not hasattr(repository, "gives_links"):
        return "no: MLflow's client here does not ask for links"
    if not repository.gives_links():
        return "no: MLflow gives no links, or they lead to no storage from here"
    return _artifact(repository, "doctor direct")


def _links(uri: str) -> bool:
    """Whether the server tells clients to fetch from the storage directly."""
    told = json.loads(_get(f"{uri}/api/3.0/mlflow/server-info"))
    return bool(told.get("multipart_uploads_enabled") or told.get("multipart_downloads_enabled"))


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
