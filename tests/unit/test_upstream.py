"""Private names of MLflow and uvicorn: imported by one file of each room, and read again when their source changes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from tests.support import upstream
from tests.support.clone import ROOT
from tests.support.fingerprints import PACKAGES, PUBLIC, reached

ROOMS = ("client", "jobs", "server")


def private(source: str) -> Iterator[str]:
    """The names that a module must not import or read outside of an upstream.py."""
    for name in reached(source):
        module, _, last = name.rpartition(".")
        is_hidden = any(part.startswith("_") and not part.endswith("__") for part in name.split("."))
        is_public = any(name == public or name.startswith(f"{public}.") for public in PUBLIC[1:])
        is_public |= name == "mlflow" or (module == "mlflow" and last in mlflow.__all__)
        top = name.partition(".")[0]
        if (is_hidden and top not in sys.stdlib_module_names) or (top in PACKAGES and not is_public):
            yield name


@pytest.mark.parametrize("room", ROOMS)
def test_private_names_are_imported_by_upstream_alone(room: str) -> None:
    files = [file for file in Path(ROOT, "src", "mlstack", room).glob("*.py") if file.name != "upstream.py"]
    assert files
    assert {file.name: names for file in files if (names := sorted(private(file.read_text())))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "from mlflow.server.handlers import get_artifact_handler",
        "from mlflow.server import auth",
        "from mlflow import server",
        "def late():\n    import mlflow.store.tracking\n    return mlflow.store.tracking",
        "import mlflow\nmlflow.utils.uri.append_to_uri_path",
        "from mlflow.entities import _mlflow_object",
        "import uvicorn",
        "from starlette._utils import is_async_callable",
        "import psycopg2\npsycopg2._psycopg",
    ],
)
def test_private_name_is_found(source: str) -> None:
    assert list(private(source))


def test_public_names_are_let_through() -> None:
    source = "import mlflow, os\nfrom mlflow.entities import Metric\nmlflow.flush_async_logging()\nos._exit(0)"
    assert list(private(source)) == []


def test_client_uses_what_was_read_of_mlflow() -> None:
    program = [sys.executable, "-W", "ignore", "-c", upstream.PROGRAM, "mlstack.client"]
    upstream.compare("client", subprocess.run(program, check=True, capture_output=True, text=True).stdout)
