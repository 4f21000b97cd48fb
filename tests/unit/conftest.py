from pathlib import Path

import pytest

from mlstack.settings import VARIABLES
from tests.support.projects import new_project


@pytest.fixture(autouse=True)
def _clean_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the stack is set in the shell, unless a test sets it."""
    for name in (*VARIABLES, "SUDO_UID", "SUDO_GID", "YES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a fresh `.env`."""
    return new_project(tmp_path / "project")
