"""The application that answers: MLflow's own, with or without accounts, and the routes of this project before it."""

from functools import cache

from fastapi import FastAPI
from mlflow.server import app as flask_app
from starlette.routing import Mount

from mlstack import settings
from mlstack.server import auth, locations, metric_routes, presigned_urls, runs_table

ROUTERS = (runs_table.router, presigned_urls.router)


def create_app() -> FastAPI:
    """The one application of this process. Registered as `mlstack` through MLflow's entry point `mlflow.app`."""
    return _made()  # MLflow takes nothing but a plain function for a factory


@cache
def _made() -> FastAPI:
    app = _application()
    (mlflow,) = (route.app for route in app.router.routes if isinstance(route, Mount))  # takes every path
    app.router.routes[:0] = [*metric_routes.routes(mlflow), *(route for router in ROUTERS for route in router.routes)]
    return app


def _application() -> FastAPI:
    locations.confine()
    if settings.accounts_are_on():
        app: FastAPI = auth.with_accounts(flask_app)
    else:
        from mlflow.server.fastapi_app import app
    return app
