"""The client's modules, imported in any order."""

import subprocess
import sys

import pytest

from tests.support.clone import users_environment
from tests.support.projects import ROOT

MODULES = sorted(path.stem for path in (ROOT / "src/mlstack/client").glob("[a-z]*.py"))
# Ends at the first import of MLflow, and prints which of the client's modules were there.
FIRST = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "mlflow":
            print([name for name in sys.modules if name.startswith("mlstack.client.")], flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
"""


def printed(program: str) -> str:
    """What a new process prints."""
    command = [sys.executable, "-W", "error::UserWarning", "-c", program]
    done = subprocess.run(command, env=users_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", [*(f"mlstack.client.{name}" for name in MODULES), "mlstack.client", "mlstack.runs"])
def test_module_imports_mlflow_before_any_other_module_of_the_client(name: str) -> None:
    """Which therefore finds the client's plugins complete, whatever a program imports first."""
    assert printed(f"{FIRST}import {name}") == "[]"


@pytest.mark.parametrize("first", ["mlstack.client.tracking_store", "mlstack.runs"])
def test_module_that_is_imported_before_mlflow_leaves_its_plugins_working(first: str) -> None:
    store = (
        "from mlflow.tracking._tracking_service.utils import _get_store; print(type(_get_store('http://127.0.0.1:1')).__module__)"
    )
    assert printed(f"import {first}; {store}") == "mlstack.client.tracking_store"


def test_links_to_the_stacks_server_alone_begin_with_the_browsers_address() -> None:
    """MLflow's own functions print them; only the server's answer is not asked for."""
    expected = {
        "http://mlflow:5000": "http://mlflow.localhost:5001",
        "http://mlflow.example:5000": "http://mlflow.example:5000",
    }
    program = f"""
import os
os.environ["MLFLOW_NOTEBOOK_TRACE_RENDERER_BASE_URL"] = "http://mlflow.localhost:5001"
from types import SimpleNamespace as Run
import mlflow
from mlflow.genai.utils import display_utils
from mlflow.tracking._tracking_service.client import TrackingServiceClient
run = Run(info=Run(experiment_id="7", run_id="abc", run_name="first"), data=Run(tags={{}}))
for server in {[*expected]}:
    mlflow.set_tracking_uri(server)
    client = TrackingServiceClient(server)
    client.store.get_run = lambda _: run
    client._log_url("abc")
    print(display_utils._resolve_evaluation_results_url(client.store, run))
"""
    shown = printed(program)
    for address in expected.values():
        assert f"View run first at: {address}/#/experiments/7/runs/abc\n" in shown
        assert f"View experiment at: {address}/#/experiments/7\n" in shown
        assert f"{address}/#/experiments/7/evaluation-runs?selectedRunUuid=abc" in shown
    assert "//mlflow:5000" not in shown
