"""Runs tests/support/transfer_program.py as a user's program."""

import json
import subprocess
import sys
from typing import Any

from tests.support.clone import ROOT, Clone, users_environment

PROGRAM = (ROOT / "tests/support/transfer_program.py").read_text()


def here(uri: str, username: str = "", password: str = "") -> dict[str, Any]:
    """The program's result with a client on the host, and what that client logged."""
    client = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": username, "MLFLOW_TRACKING_PASSWORD": password}
    done = subprocess.run(
        [sys.executable, "-"],
        input=PROGRAM,
        env=users_environment() | client,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return result_of(done.stdout) | {"log": done.stderr}


def result_of(printed: str) -> dict[str, Any]:
    """The JSON in the program's last line."""
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result


def account(clone: Clone) -> tuple[str, str]:
    """The notebooks' account."""
    return clone.values["MLFLOW_TRACKING_USERNAME"], clone.values["MLFLOW_TRACKING_PASSWORD"]


def assert_equal(result: dict[str, Any], *, through_urls: bool) -> None:
    """Every file was read back unchanged, each way."""
    assert result["client"] == "mlstack.client.artifact_repository"
    assert result["through_urls"] is through_urls
    assert len(result["differences"]) == 3
    assert [line for lines in result["differences"].values() for line in lines] == []
