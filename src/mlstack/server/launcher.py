"""Runs `mlflow server` with workers that are forked from one process with everything loaded.

MLflow starts uvicorn as a second program, which starts each worker as another one: four imports, and no shared memory. Here
MLflow's command line does its work and then serves itself: MLflow is loaded once, its code is in memory once, and a worker
that dies is replaced at once. The options are those of `mlflow server`, except for those that cannot work like this: they are
rejected by name.
"""

import gc
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click
from click.core import ParameterSource
from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
from sqlalchemy import Engine

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.server.app import create_app
from mlstack.server.upstream import delete_rollups, mlflow_server, replace_rollups_check, replace_start, run_uvicorn

# Options that cannot work, and why.
REJECTED = {
    "static_prefix": "presigned URLs and metrics have no prefix, and uploads below one are held in memory",
    "artifacts_only": "metrics and runs would still be served",
    "gunicorn_opts": "the server is uvicorn",
    "waitress_opts": "the server is uvicorn",
    "dev": "workers are forked from a process that has loaded everything, and cannot load again",
    "expose_prometheus": "its exporter is not installed",
    "disable_security_middleware": "any web page could use MLflow with a browser's login",
    "enable_workspaces": "permissions are read for one workspace",
}
# MLflow reads them during its import, before the command line.
FROM_ENVIRONMENT = {
    "allowed_hosts": "MLFLOW_SERVER_ALLOWED_HOSTS",
    "cors_allowed_origins": "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS",
    "x_frame_options": "MLFLOW_SERVER_X_FRAME_OPTIONS",
}


def main() -> None:
    """Serves until it is stopped. Exits with a message for options that cannot work."""
    run: Any = mlflow_server.callback

    def checked(**options: Any) -> None:
        try:
            reject(options, click.get_current_context())
        except MlstackError as error:
            raise click.ClickException(str(error)) from error
        run(**options)

    settings.publish(settings.rollups())
    mlflow_server.callback = checked
    replace_rollups_check(_without_stale_rollups)
    replace_start(_serve)
    mlflow_server(prog_name="mlflow server")


def reject(options: Mapping[str, Any], context: click.Context) -> None:
    """Raises MlstackError for an option of `mlflow server` that would not work here."""
    used = {name for name in REJECTED if options[name]}
    if MLFLOW_ENABLE_WORKSPACES.get():
        used.add("enable_workspaces")
    for name in sorted(used):
        raise MlstackError(
            f"--{name.replace('_', '-')} does not work in this server.",
            f"Why: {REJECTED[name]}.",
            f"leave it out, and unset MLFLOW_{name.upper()}",
        )
    for name, variable in FROM_ENVIRONMENT.items():
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise MlstackError(
                f"--{name.replace('_', '-')} does not work on the command line of this server.",
                "MLflow reads it before its command line.",
                f"set {variable} in the environment instead",
            )
    if options["app_name"] != "mlstack":
        raise MlstackError(
            f"--app-name={options['app_name']} does not work in this server.",
            "Its accounts and checks are those of the application mlstack.",
            "use --app-name=mlstack; MLFLOW_AUTH in .env says whether there are accounts",
        )


def _serve(command: Sequence[str], extra_env: Mapping[str, str], **_: Any) -> NoReturn:
    """Replaces starting `python -m uvicorn …`."""
    settings.publish(extra_env)
    create_app()
    _drop_connections()
    gc.collect()
    gc.freeze()  # the collector would write to memory that the workers share
    gc.enable()
    run_uvicorn(command[3:])
    raise SystemExit


def _without_stale_rollups(uri: str) -> None:
    """Deletes the rollups of traces at each start: they may have been computed while this server did not know of them.

    It notes which of them a change of a trace makes stale, with TRACE_ROLLUPS=on only. The other server, of the part `gateway`,
    changes no trace that is old enough for a rollup.
    """
    if not settings.is_gateway():
        delete_rollups(uri)


def _drop_connections() -> None:
    """No worker may use a connection of its parent: https://docs.sqlalchemy.org/en/20/core/pooling.html#using-connection-pools-with-multiprocessing-or-os-fork"""
    for engine in [item for item in gc.get_objects() if isinstance(item, Engine)]:
        engine.dispose()
