"""MLflow, by doing what a user's code does: on the host, and in Jupyter as the notebooks' account."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import http
from mlstack.host.compose import Program
from mlstack.host.doctor.check import Check, CheckWarning, check
from mlstack.host.doctor.context import Subject, output
from mlstack.host.doctor.stack import service
from mlstack.settings import Account

REACH = "tracking"
PROGRAM = Path(__file__).with_name("roundtrip.py").read_text(encoding="utf-8")
# Failures are reported at once: by default MLflow's client retries for minutes.
SOON = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
CLIENT = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
WHY = "Runs, models and artifacts go through it."
WAYS = {"artifact": "through MLflow", "direct": "through presigned URLs"}


@dataclass(frozen=True)
class Place:
    """A place where a user's code runs, how it is started there, and the checks that it needs."""

    name: str
    start: Callable[[Subject], str]
    needs: tuple[Check, ...]


def _here(subject: Subject) -> str:
    account = settings.read(*CLIENT, values=subject.values)
    python = Program((sys.executable,), subject.stack.folder)
    return output(python, "-", stdin=PROGRAM, timeout=60, environment={**account, **SOON, "PYTHONWARNINGS": "ignore"})


def _in_jupyter(subject: Subject) -> str:
    return subject.python_inside("jupyter", PROGRAM, environment=SOON)


HERE = Place("the host", _here, (service("mlflow"),))
JUPYTER = Place("Jupyter", _in_jupyter, (service("mlflow"), service("jupyter")))
PLACES = (HERE, JUPYTER)


def _checks(place: Place) -> dict[str, Check]:
    """The checks of a user's code in one place, step by step."""

    def result_of(subject: Subject) -> dict[str, Any]:
        return subject.visit(place.name, lambda: place.start(subject))

    @check(REACH, f"MLflow answers its account, from {place.name}", *place.needs)
    def answers(subject: Subject) -> str:
        return f"MLflow {_step(result_of(subject), 'server', place)}"

    @check(REACH, f"a run written and read back, from {place.name}", answers)
    def rows(subject: Subject) -> str:
        _step(result_of(subject), "left", place)
        _step(result_of(subject), "run", place)
        return str(_step(result_of(subject), "rows", place))

    @check(REACH, f"no presigned URLs that would hang, from {place.name}", rows)
    def links(subject: Subject) -> None:
        if _step(result_of(subject), "links", place):
            raise MlstackError(
                "MLflow tells its clients to fetch files directly from MinIO, under a name that they do not reach.",
                "Each large file hangs for minutes in retries.",
                "use the MLflow image of this project (MLFLOW_IMAGE in .env), then make up",
            )

    @check(REACH, f"an artifact up and down, from {place.name}", links)
    def artifact(subject: Subject) -> str:
        return str(_step(result_of(subject), "artifact", place))

    @check(REACH, f"the same directly to MinIO, from {place.name}", artifact)
    def direct(subject: Subject) -> str:
        answer = str(_step(result_of(subject), "direct", place))
        if answer.startswith("no: "):
            raise CheckWarning(
                f"artifacts do not go directly to MinIO from {place.name}: {answer.removeprefix('no: ')}.",
                "They go through MLflow, which takes about twice as long.",
                "make up starts everything as shipped; see MinIO above",
            )
        return answer

    @check(REACH, f"client and server are one version, from {place.name}", answers)
    def versions(subject: Subject) -> str:
        client, server = result_of(subject)["client"], result_of(subject)["server"]
        if client != server:
            raise CheckWarning(
                f"the client on {place.name} is MLflow {client}, the server {server}.",
                "They may not understand each other.",
                "make up" if place is HERE else f"%pip install mlflow=={server} in a notebook, or pip uninstall what was added",
            )
        return str(client)

    return {"answers": answers, "rows": rows, "links": links, "artifact": artifact, "direct": direct, "versions": versions}


def _step(result: dict[str, Any], name: str, place: Place) -> Any:
    """The result of a step. Raises MlstackError with the cause of its failure."""
    error = result["errors"].get(name)
    if error is None:
        return result[name]
    status, message = error["status"], error["said"].strip().splitlines()[0][:200] if error["said"].strip() else error["kind"]
    if status == 401:  # noqa: PLR2004
        raise MlstackError(
            f"MLflow rejects the account of {place.name} has.",
            WHY,
            "make up gives the account the password of .env; then wait a minute",
        )
    if status == 403:  # noqa: PLR2004
        raise MlstackError(f"MLflow forbids it: {message}", WHY, "make up sets the accounts' rights; make logs SERVICE=mlflow")
    if name == "server":
        raise MlstackError(f"MLflow does not answer {place.name}: {message}", WHY, "make logs SERVICE=mlflow")
    if name in WAYS:
        raise MlstackError(
            f"an artifact did not come {WAYS[name]} whole: {message}", WHY, "see MinIO above; make logs SERVICE=mlflow"
        )
    raise MlstackError(f"MLflow answers {place.name} with: {message}", WHY, "see Postgres above; make logs SERVICE=mlflow")


@check(REACH, "the admin's account", service("mlflow"))
def admin(subject: Subject) -> None:
    account = settings.admin_account(subject.values)
    status = _status(subject, account)
    if status != 200:  # noqa: PLR2004
        raise MlstackError(
            f"MLflow rejects MLFLOW_ADMIN_USERNAME {account.username} ({status}).",
            "Nobody else can set permissions or remove accounts.",
            "make up gives the account the password of .env",
        )


@check(REACH, "unauthenticated clients are rejected", service("mlflow"))
def unauthenticated(subject: Subject) -> str:
    if subject.values.get("MLFLOW_AUTH", "on") == "off":
        return "accounts are off (MLFLOW_AUTH)"
    if (status := _status(subject, Account("unknown", "unknown", is_admin=False))) != 401:  # noqa: PLR2004
        raise MlstackError(
            f"MLflow answered an unauthenticated client with {status}.",
            "Every user of the host can change runs and models.",
            "make up; MLFLOW_AUTH in .env",
        )
    return "401"


def _status(subject: Subject, account: Account) -> int:
    url = f"{subject.url('MLFLOW_PORT')}/api/2.0/mlflow/experiments/search?max_results=1"
    return http.call("MLflow", "GET", url, why=WHY, timeout=15, account=account).status


STEPS = {place: _checks(place) for place in PLACES}
