"""MLflow, by doing what a user's code does: from this machine, and as the notebooks' account from inside Jupyter."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import http
from mlstack.host.compose import Program
from mlstack.host.doctor.check import Check, Doubt, check
from mlstack.host.doctor.context import Subject, output
from mlstack.host.doctor.stack import service
from mlstack.settings import Account

REACH = "tracking"
PROGRAM = Path(__file__).with_name("roundtrip.py").read_text(encoding="utf-8")
# A failure is to be told, not waited out: MLflow's client retries for minutes.
SOON = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
CLIENT = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
WHY = "Runs, models and artifacts go through it."
WAYS = {"artifact": "through MLflow", "direct": "through links to the storage"}


@dataclass(frozen=True)
class Place:
    """Where a user's code runs, how it is started there, and what it needs to be there."""

    name: str
    start: Callable[[Subject], str]
    needs: tuple[Check, ...]


def _here(subject: Subject) -> str:
    account = settings.read(*CLIENT, values=subject.values)
    python = Program((sys.executable,), subject.stack.folder)
    return output(python, "-", stdin=PROGRAM, timeout=60, environment={**account, **SOON, "PYTHONWARNINGS": "ignore"})


def _in_jupyter(subject: Subject) -> str:
    return subject.python_inside("jupyter", PROGRAM, environment=SOON)


HERE = Place("this machine", _here, (service("mlflow"),))
JUPYTER = Place("Jupyter", _in_jupyter, (service("mlflow"), service("jupyter")))
PLACES = (HERE, JUPYTER)


def _checks(place: Place) -> dict[str, Check]:
    """What a user's code does, step by step, in one place."""

    def found(subject: Subject) -> dict[str, Any]:
        return subject.visit(place.name, lambda: place.start(subject))

    @check(REACH, f"MLflow answers its account, from {place.name}", *place.needs)
    def answers(subject: Subject) -> str:
        return f"MLflow {_step(found(subject), 'server', place)}"

    @check(REACH, f"a run written and read back, from {place.name}", answers)
    def rows(subject: Subject) -> str:
        _step(found(subject), "left", place)
        _step(found(subject), "run", place)
        return str(_step(found(subject), "rows", place))

    @check(REACH, f"no links that would hang, from {place.name}", rows)
    def links(subject: Subject) -> None:
        if _step(found(subject), "links", place):
            raise MlstackError(
                "MLflow tells its clients to fetch files from the storage directly, under a name that they do not reach.",
                "Each large file hangs for minutes in retries.",
                "use the MLflow image of this project (MLFLOW_IMAGE in .env), then make up",
            )

    @check(REACH, f"an artifact up and down, from {place.name}", links)
    def artifact(subject: Subject) -> str:
        return str(_step(found(subject), "artifact", place))

    @check(REACH, f"the same straight to the storage, from {place.name}", artifact)
    def direct(subject: Subject) -> str:
        said = str(_step(found(subject), "direct", place))
        if said.startswith("no: "):
            raise Doubt(
                f"artifacts do not go straight to the storage from {place.name}: {said.removeprefix('no: ')}.",
                "They go through MLflow, which takes about twice as long.",
                "make up starts everything as shipped; see the storage above",
            )
        return said

    @check(REACH, f"client and server are one version, from {place.name}", answers)
    def versions(subject: Subject) -> str:
        client, server = found(subject)["client"], found(subject)["server"]
        if client != server:
            raise Doubt(
                f"the client on {place.name} is MLflow {client}, the server {server}.",
                "They may not understand each other.",
                "make up" if place is HERE else f"%pip install mlflow=={server} in a notebook, or pip uninstall what was added",
            )
        return str(client)

    return {"answers": answers, "rows": rows, "links": links, "artifact": artifact, "direct": direct, "versions": versions}


def _step(found: dict[str, Any], name: str, place: Place) -> Any:
    """What a step gave. Raises MlstackError with the cause of its failure."""
    error = found["errors"].get(name)
    if error is None:
        return found[name]
    status, said = error["status"], error["said"].strip().splitlines()[0][:200] if error["said"].strip() else error["kind"]
    if status == 401:  # noqa: PLR2004
        raise MlstackError(
            f"MLflow refuses the account that {place.name} has.",
            WHY,
            "make up gives the account the password of .env; then wait a minute",
        )
    if status == 403:  # noqa: PLR2004
        raise MlstackError(f"MLflow forbids it: {said}", WHY, "make up sets the accounts' rights; make logs SERVICE=mlflow")
    if name == "server":
        raise MlstackError(f"MLflow does not answer {place.name}: {said}", WHY, "make logs SERVICE=mlflow")
    if name in WAYS:
        raise MlstackError(
            f"an artifact did not come {WAYS[name]} whole: {said}", WHY, "see the storage above; make logs SERVICE=mlflow"
        )
    raise MlstackError(f"MLflow answers {place.name} with: {said}", WHY, "see the database above; make logs SERVICE=mlflow")


@check(REACH, "the admin's account", service("mlflow"))
def admin(subject: Subject) -> None:
    account = settings.admin_account(subject.values)
    status = _status(subject, account)
    if status != 200:  # noqa: PLR2004
        raise MlstackError(
            f"MLflow refuses MLFLOW_ADMIN_USERNAME {account.username} ({status}).",
            "Nobody else can set permissions or remove accounts.",
            "make up gives the account the password of .env",
        )


@check(REACH, "strangers are refused", service("mlflow"))
def strangers(subject: Subject) -> str:
    if subject.values.get("MLFLOW_AUTH", "on") == "off":
        return "accounts are off (MLFLOW_AUTH)"
    if (status := _status(subject, Account("stranger", "stranger", is_admin=False))) != 401:  # noqa: PLR2004
        raise MlstackError(
            f"MLflow answered a stranger with {status}.",
            "Everybody on this machine can change runs and models.",
            "make up; MLFLOW_AUTH in .env",
        )
    return "401"


def _status(subject: Subject, account: Account) -> int:
    url = f"{subject.url('MLFLOW_PORT')}/api/2.0/mlflow/experiments/search?max_results=1"
    return http.call("MLflow", "GET", url, why=WHY, timeout=15, account=account).status


STEPS = {place: _checks(place) for place in PLACES}
