"""The same application as a deployment of Ray Serve, on the part `ray` (docs/scoring.md). Each replica follows the aliases by
itself: Serve's `user_config` would replace a version that answers by one that cannot.

from ray import serve
from mlstack.scoring.serve import deployment
serve.run(deployment.options(num_replicas=2).bind())
"""

import os
from collections.abc import Mapping
from pathlib import Path

from ray import serve
from starlette.types import ASGIApp

from mlstack import settings
from mlstack.scoring import service
from mlstack.scoring.trial import Trials

VOLUME = Path("/tmp/mlstack-scoring")  # noqa: S108 # memory of the worker, which replicas there share
NODES = ("ray-head", "ray-head.mlstack.internal", "ray-worker")
# Unless runtime_env says otherwise. A worker does not reach Postgres.
DEFAULTS: Mapping[str, str] = {
    "SCORING_PORT": "8000",  # of Serve's proxies
    "SCORING_ALIASES": "champion,challenger",
    "SCORING_RATE": "0",
    "DECISION_LOG": "off",
    "POSTGRES_DB": "mlflow",
    "SCORING_DB_USER": "scoring",
    "SCORING_DB_PASSWORD": "not-used",
}


def application() -> ASGIApp:
    """The application of one replica, with the worker's account in MLflow. Raises SettingsError."""
    settings.publish({name: value for name, value in DEFAULTS.items() if name not in os.environ})
    VOLUME.mkdir(mode=0o700, exist_ok=True)
    hosts = [*(f"{node}:{settings.scoring_port()}" for node in NODES), *settings.scoring_hosts()]
    return service.application(Trials.started(), VOLUME, hosts, own_account="")


@serve.deployment(name="scoring")
@serve.ingress(application)
class Deployment:
    """A replica."""


deployment = Deployment
