"""The service as it is run: its parts, made from the environment."""

import os
from collections.abc import Collection
from pathlib import Path

from starlette.types import ASGIApp

from mlstack import settings
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


def application(trials: Trials, volume: Path, hosts: Collection[str], own_account: str) -> ASGIApp:
    """The ASGI application, which keeps its files on a volume. Clients cannot log in with `own_account`.

    Raises SettingsError.
    """
    metrics, aliases = Metrics(), settings.scoring_aliases()
    os.umask(0o077)
    folder = files.own_folder(volume)

    def catalogue() -> Catalogue:
        return Catalogue(Registry(aliases), Cache(folder), trials, metrics)

    login, mlflow = settings.scoring_login(), settings.of_shell("MLFLOW_TRACKING_URI")
    decision_log = DecisionLog(Mode(settings.decision_log()), Store(login, "log"), metrics)
    keys = Keys(volume / access.FILE.name)
    records = Records(Store(login, "records"), keys, volume / "records.json")
    features = Features(feature_store.Store(login))
    scoring = Scoring(
        catalogue, decision_log, records, Store(login, "history"), metrics, features=features, mlflow=mlflow, account=own_account
    )
    accounts, rates = Accounts(mlflow, own_account), Rates(settings.scoring_rate())
    return Guard(scoring.application(), keys, accounts, hosts, rates)
