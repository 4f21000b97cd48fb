"""python3 -m mlstack.scoring: serves on port 8000 until it is stopped; accepted requests are answered first."""

import gc
import logging

import uvicorn

from mlstack import settings
from mlstack.logger import STREAM_FORMAT
from mlstack.scoring import access, service, trial

PORT = 8000
GRACE = 30  # seconds for accepted requests when the service stops


def main() -> None:
    logging.basicConfig(format=STREAM_FORMAT, level=settings.log_level(settings.of_shell("LOG_LEVEL")))
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the catalogue logs once that MLflow does not answer
    trial.preload()
    gc.collect()
    gc.freeze()
    trials = trial.Trials()
    account = settings.scoring_account()
    settings.publish({"MLFLOW_TRACKING_USERNAME": account.username, "MLFLOW_TRACKING_PASSWORD": account.password})
    hosts = access.hosts(settings.scoring_port(), settings.scoring_hosts())
    uvicorn.run(
        service.application(trials, access.FILE.parent, hosts, account.username),
        host="0.0.0.0",  # noqa: S104 # in its container; the host publishes the port on 127.0.0.1
        port=PORT,
        loop="uvloop",
        http="httptools",
        access_log=False,
        server_header=False,
        log_config=None,
        timeout_graceful_shutdown=GRACE,
    )


if __name__ == "__main__":
    main()
