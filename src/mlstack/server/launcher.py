"""Runs `mlflow server` with workers that are forked from one process which has loaded everything.

MLflow starts uvicorn as a second program, which starts each worker as one more: four times the imports, and nothing shared.
Here MLflow's command line does all that it does, and then serves itself: MLflow is loaded once, what it consists of is in
memory once, and a worker that dies is there again at once. The options are those of `mlflow server`.
"""

import gc
import multiprocessing
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import mlflow.server
import uvicorn._subprocess
import uvicorn.main
from mlflow.cli import server as mlflow_server
from sqlalchemy import Engine

from mlstack import settings
from mlstack.server.app import create_app


def main() -> None:
    mlflow.server._exec_cmd = _serve  # type: ignore[assignment, attr-defined]
    mlflow_server(prog_name="mlflow server")


def _serve(command: Sequence[str], extra_env: Mapping[str, str], **_: Any) -> NoReturn:
    """In the place of starting `python -m uvicorn …`."""
    settings.publish(extra_env)
    create_app()
    _drop_connections()
    gc.collect()
    gc.freeze()  # the collector would write to what the workers share
    gc.enable()
    uvicorn._subprocess.spawn = multiprocessing.get_context("fork")  # type: ignore[assignment]
    uvicorn.main.main(command[3:])
    raise SystemExit


def _drop_connections() -> None:
    """No worker may go on with a connection of its parent: https://docs.sqlalchemy.org/en/20/core/pooling.html#using-connection-pools-with-multiprocessing-or-os-fork"""
    for engine in [found for found in gc.get_objects() if isinstance(found, Engine)]:
        engine.dispose()
