"""The application that answers: MLflow's own, with or without accounts, the routes of this project, and the guard before both."""

from functools import cache

from fastapi import APIRouter, Depends, FastAPI
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.server import app as flask_app
from mlflow.server.fastapi_security import get_allowed_hosts, get_allowed_origins
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from mlstack import settings
from mlstack.server import auth, locations, page, presigned_urls, runs_table
from mlstack.server.guard import Bodies, Login, Origins
from mlstack.server.metric_routes import MetricRoutes

ROUTERS = (page.router, runs_table.router, presigned_urls.router)


def create_app() -> ASGIApp:
    """The one application of this process. Registered as `mlstack` through MLflow's entry point `mlflow.app`."""
    return _made()  # MLflow takes nothing but a plain function for a factory


@cache
def _made() -> ASGIApp:
    app: ASGIApp = Bodies(_application())
    if settings.accounts_are_on():
        app = Login(app)
    return Origins(MetricRoutes(app), get_allowed_hosts(), get_allowed_origins())


def _application() -> FastAPI:
    locations.confine()
    for error in (RecursionError, 500):
        flask_app.register_error_handler(error, _flask_error)
    if settings.accounts_are_on():
        app: FastAPI = auth.with_accounts(flask_app)
    else:
        from mlflow.server.fastapi_app import app
    for kind in (RecursionError, Exception):
        app.add_exception_handler(kind, _error)
    app.router.routes[:0] = _own_routes().routes  # before MLflow's last one, which takes every path
    return app


def _own_routes() -> APIRouter:
    """The routes of this project: none is reached without an account."""
    own = APIRouter(dependencies=[Depends(auth.asker)])
    for router in ROUTERS:
        own.include_router(router)
    return own


def _flask_error(error: Exception) -> tuple[str, int, dict[str, str]]:
    """MLflow's Flask routes answer what they do not expect with an HTML page; its clients read JSON."""
    described = _described(getattr(error, "original_exception", None) or error)
    return described.serialize_as_json(), described.get_http_status_code(), {"Content-Type": "application/json"}


def _error(_: Request, error: Exception) -> Response:
    """The same for its other routes."""
    return auth.error_response(_described(error))


def _described(error: Exception) -> MlflowException:
    if isinstance(error, RecursionError):
        return MlflowException("The request's JSON is nested too deeply.", INVALID_PARAMETER_VALUE)
    return MlflowException(f"The server failed: {type(error).__name__}. Its log says more.", INTERNAL_ERROR)
