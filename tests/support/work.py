"""Runs tests/support/work_program.py against a stack's MLflow, as a user's program."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.clone import ROOT, Clone, users_environment

Account = tuple[str, str]


def started(uri: str, account: Account, *arguments: str, python: str | Path = sys.executable) -> subprocess.Popen[str]:
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    client = dict(zip(names, (uri, *account), strict=True))
    command = [str(python), str(ROOT / "tests/support/work_program.py"), *arguments]
    return subprocess.Popen(
        command, env=users_environment() | client, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, err
    return out


def admin(clone: Clone) -> tuple[str, Account]:
    """MLflow's URL, and the account that may read everything."""
    values = clone.values
    return values["MLFLOW_TRACKING_URI"], (values["MLFLOW_ADMIN_USERNAME"], values["MLFLOW_ADMIN_PASSWORD"])


def fill(clone: Clone, **amounts: int) -> None:
    finished(started(*admin(clone), "fill", *[f"--{name}={amount}" for name, amount in amounts.items()]))


def everything(clone: Clone) -> dict[str, Any]:
    """All that MLflow's own client sees."""
    content: dict[str, Any] = json.loads(finished(started(*admin(clone), "read")))
    return content
