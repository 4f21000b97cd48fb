"""python3 -m mlstack.scoring: serves on port 8000 until it is stopped; accepted requests are answered first."""

import gc
import logging
import os
from importlib import import_module
from pathlib import Path

import uvicorn

from mlstack import settings
from mlstack.logger import STREAM_FORMAT
from mlstack.scoring import access, feature_store, files
from mlstack.scoring.access import Guard, Keys
from mlstack.scoring.accounts import Accounts
from mlstack.scoring.app import Scoring
from mlstack.scoring.cache import Cache
from mlstack.scoring.catalogue import Catalogue
from mlstack.scoring.decisions import DecisionLog, Mode
from mlstack.scoring.features import Features
from mlstack.scoring.metrics import Metrics
from mlstack.scoring.rates import Rates
from mlstack.scoring.records import Records
from mlstack.scoring.registry import Registry
from mlstack.scoring.store import Store
from mlstack.scoring.trial import Trials

FOLDER = Path("/models")
PORT = 8000
# What trials need, loaded once for all of them before they are forked.
PRELOADED = ("mlflow.sklearn", "sklearn.ensemble", "sklearn.pipeline")
GRACE = 30  # seconds for accepted requests when the service stops


def main() -> None:
    logging.basicConfig(format=STREAM_FORMAT, level=settings.log_level(settings.of_shell("LOG_LEVEL")))
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the catalogue logs once that MLflow does not answer
    for library in PRELOADED:
        import_module(library)
    gc.collect()
    gc.freeze()
    trials = Trials()
    account = settings.scoring_account()
    settings.publish({"MLFLOW_TRACKING_USERNAME": account.username, "MLFLOW_TRACKING_PASSWORD": account.password})
    metrics = Metrics()
    aliases = settings.scoring_aliases()
    os.umask(0o077)
    folder = files.own_folder(FOLDER)

    def catalogue() -> Catalogue:
        return Catalogue(Registry(aliases), Cache(folder), trials, metrics)

    login = settings.scoring_login()
    decision_log = DecisionLog(Mode(settings.decision_log()), Store(login, "log"), metrics)
    keys, mlflow = Keys(), settings.of_shell("MLFLOW_TRACKING_URI")
    records = Records(Store(login, "records"), keys, FOLDER / "records.json")
    store = Store(login, "history")
    features = Features(feature_store.Store(login))
    scoring = Scoring(
        catalogue, decision_log, records, store, metrics, features=features, mlflow=mlflow, account=account.username
    )
    accounts, rates = Accounts(mlflow, account.username), Rates(settings.scoring_rate())
    app = Guard(scoring.application(), keys, accounts, access.hosts(settings.scoring_port()), rates)
    uvicorn.run(
        app,
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
