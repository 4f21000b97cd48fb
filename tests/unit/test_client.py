"""The client's modules, imported in any order."""

import subprocess
import sys

import pytest

from tests.support.clone import users_environment
from tests.support.projects import ROOT

MODULES = sorted(path.stem for path in (ROOT / "src/mlstack/client").glob("[a-z]*.py"))


@pytest.mark.parametrize("first", [*(f"mlstack.client.{name}" for name in MODULES), "mlstack.client", "mlstack.runs"])
def test_module_that_is_imported_before_mlflow_leaves_its_plugins_working(first: str) -> None:
    program = (
        f"import {first}; from mlflow.tracking._tracking_service.utils import _get_store;"
        " print(type(_get_store('http://127.0.0.1:1')).__module__)"
    )
    command = [sys.executable, "-W", "error::UserWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "mlstack.client.tracking_store"), done.stderr


@pytest.mark.parametrize(
    ("server", "shown"),
    [("http://mlflow:5000", "http://mlflow.localhost:5001"), ("http://mlflow.example:5000", "http://mlflow.example:5000")],
)
def test_links_to_the_stacks_server_alone_begin_with_the_browsers_address(server: str, shown: str) -> None:
    """MLflow's own functions print them; only the server's answer is not asked for."""
    program = f"""
from types import SimpleNamespace as Run
from mlflow.genai.utils import display_utils
from mlflow.tracking._tracking_service.client import TrackingServiceClient
client = TrackingServiceClient({server!r})
client.store.get_run = lambda _: run
run = Run(info=Run(experiment_id="7", run_id="abc", run_name="first"), data=Run(tags={{}}))
client._log_url("abc")
print(display_utils._resolve_evaluation_results_url(client.store, run))
"""
    environment = users_environment() | {
        "MLFLOW_TRACKING_URI": server,
        "MLFLOW_NOTEBOOK_TRACE_RENDERER_BASE_URL": "http://mlflow.localhost:5001",
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"View run first at: {shown}/#/experiments/7/runs/abc\n" in done.stdout
    assert f"View experiment at: {shown}/#/experiments/7\n" in done.stdout
    assert f"{shown}/#/experiments/7/evaluation-runs?selectedRunUuid=abc" in done.stdout
