"""The client's modules, imported in any order."""

import subprocess
import sys

import pytest

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
