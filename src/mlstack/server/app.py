"""The server's application: MLflow's own, with or without accounts, the routes of this project, and the guard before both."""

from functools import cache

from fastapi import Depends, FastAPI
from mlflow.exceptions import MlflowException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mlstack import settings
from mlstack.server import auth, datasets, egress, locations, page, presigned_urls, runs_table, webhooks
from mlstack.server.forwarding import Forwarded
from mlstack.server.guard import Bodies, Login, Origins
from mlstack.server.metric_routes import MetricRoutes
from mlstack.server.upstream import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    app_without_accounts,
    flask_app,
    get_allowed_hosts,
    get_allowed_origins,
)

ROUTERS = (runs_table.router, presigned_urls.router, datasets.router)
OWN = "/api/2.0/mlstack/"
# Any request: FastAPI prepares a router's routes at the first one.
_FIRST: Scope = {"type": "http", "method": "GET", "path": "/", "root_path": "", "headers": []}


class _Applications:
    """This project's routes, in their own application, and MLflow's for all other paths.

    The guard already does MLflow's own checks; as middlewares they would take half the time of a call.
    """

    def __init__(self, own: ASGIApp, mlflow: ASGIApp) -> None:
        self._own, self._mlflow = own, mlflow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_own = scope["type"] == "http" and scope["path"].startswith(OWN)
        await (self._own if is_own else self._mlflow)(scope, receive, send)


def create_app() -> ASGIApp:
    """The one application of this process. Registered as `mlstack` through MLflow's entry point `mlflow.app`."""
    return _application()  # MLflow accepts only a plain function as a factory


@cache
def _application() -> ASGIApp:
    app: ASGIApp = _Applications(_own_application(), _mlflow_application())
    if settings.is_gateway():
        egress.confine(settings.hosts("GATEWAY_HOSTS"))
    else:
        webhooks.allow(settings.hosts("WEBHOOK_HOSTS"))
        app = Forwarded(app)
    app = Bodies(app)
    if settings.accounts_are_on():
        app = Login(app)
    return Origins(MetricRoutes(app), get_allowed_hosts(), get_allowed_origins())


def _mlflow_application() -> FastAPI:
    locations.confine()
    for error in (RecursionError, 500):
        flask_app.register_error_handler(error, _flask_error)
    app: FastAPI = auth.with_accounts(flask_app) if settings.accounts_are_on() else app_without_accounts
    for kind in (RecursionError, Exception):
        app.add_exception_handler(kind, _error)
    app.router.routes[:0] = page.router.routes  # before MLflow's last one, which takes every path
    for route in app.router.routes:
        route.matches(_FIRST)  # once here, not in each worker while a client waits
    return app


def _own_application() -> FastAPI:
    """The routes of this project, which all require an account."""
    app = FastAPI(dependencies=[Depends(auth.caller_or_none)], openapi_url=None)
    for router in ROUTERS:
        app.include_router(router)
    for kind in (MlflowException, RecursionError, Exception):
        app.add_exception_handler(kind, _error)
    return app


def _flask_error(error: Exception) -> tuple[str, int, dict[str, str]]:
    """MLflow's Flask routes answer unexpected errors with an HTML page; its clients read JSON."""
    described = _described(getattr(error, "original_exception", None) or error)
    return described.serialize_as_json(), described.get_http_status_code(), {"Content-Type": "application/json"}


def _error(_: Request, error: Exception) -> Response:
    """The same for MLflow's other routes and for those of this project."""
    return auth.error_response(_described(error))


def _described(error: Exception) -> MlflowException:
    if isinstance(error, MlflowException):
        return error
    if isinstance(error, RecursionError):
        return MlflowException("The request's JSON is nested too deeply.", INVALID_PARAMETER_VALUE)
    return MlflowException(f"The server failed: {type(error).__name__}. Its log says more.", INTERNAL_ERROR)
