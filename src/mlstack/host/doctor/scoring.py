"""The optional part `scoring`, by asking it: it follows the aliases, decisions can be stored, its rights are only its own."""

import json
from typing import Any
from urllib.parse import quote

import psycopg2

from mlstack import settings
from mlstack.errors import MlstackError, quoted
from mlstack.host import http
from mlstack.host.doctor.check import CheckWarning, check
from mlstack.host.doctor.context import Subject
from mlstack.host.doctor.stack import service
from mlstack.settings import Account

REACH = "scoring"
SERVICE = "scoring"
WHY = "Models answer requests through it."
PATIENCE = 5  # seconds
_ROW = (
    "INSERT INTO serving.decisions (time, request, row, model, version, role, client, features, score, latency_ms)"
    " VALUES (now(), gen_random_uuid(), 0, 'doctor', '0', 'champion', 'doctor', '{}', '0', 0)"
)


@check(REACH, "it serves what the aliases name", service(SERVICE), service("mlflow"))
def follows(subject: Subject) -> str:
    account = settings.notebook_account(subject.values)
    listed = _call(subject, "SCORING_PORT", "/models", account)
    served = {(row["model"], row["alias"]): row["version"] for row in listed["served"]}
    reasons = {(row["model"], row["alias"]): row["reason"] for row in listed["rejected"]}
    wrong = []
    for (model, alias), version in _wanted(subject).items():
        if served.get((model, alias)) != version:
            why = reasons.get((model, alias), "it may still be loading")
            wrong.append(f"{model}@{alias} is version {version}, and {served.get((model, alias), 'none')} is served: {why}")
    if wrong:
        raise CheckWarning(quoted("; ".join(wrong) + "."), WHY, "make logs SERVICE=scoring; register another version")
    return f"{len(served)} versions" if served else "no model has one of SCORING_ALIASES yet"


@check(REACH, "decisions can be stored, and not changed", service(SERVICE), service("postgres"))
def decisions(subject: Subject) -> str:
    login = subject.stack.scoring
    try:
        connection = psycopg2.connect(**login.parameters, connect_timeout=PATIENCE)
    except psycopg2.OperationalError as error:
        raise MlstackError(
            f"Postgres rejects SCORING_DB_USER {login.user}: {str(error).strip().splitlines()[-1]}",
            "The service stores decisions with it, and answers none that it cannot store.",
            "make up gives the role the password of .env",
        ) from error
    try:
        with connection.cursor() as cursor:
            cursor.execute(_ROW)
            cursor.execute("SELECT has_table_privilege('serving.decisions', 'UPDATE, DELETE, TRUNCATE')")
            may_change = cursor.fetchone() == (True,)
            cursor.execute("SELECT count(*) FROM serving.decisions_default")
            (homeless,) = cursor.fetchone() or (0,)
    except psycopg2.Error as error:
        raise MlstackError(
            f"a decision cannot be stored: {str(error).strip().splitlines()[0]}",
            "The service answers none that it cannot store.",
            "make up sets the rights of SCORING_DB_USER",
        ) from error
    finally:
        connection.close()  # nothing was committed
    if may_change:
        raise MlstackError(
            f"{login.user} may change or remove decisions.", "The log would prove nothing.", "make up sets the rights"
        )
    return f"{homeless} outside their month" if homeless else subject.values.get("DECISION_LOG", "before") + " the answer"


@check(REACH, "its account can only read in MLflow", service(SERVICE), service("mlflow"))
def account_reads(subject: Subject) -> str:
    account = settings.scoring_account(subject.values)
    status = _status(subject, "GET", "registered-models/search?max_results=1", account)
    if status == 401:  # noqa: PLR2004
        raise MlstackError(
            f"MLflow rejects SCORING_USERNAME {account.username}.", WHY, "make up gives the account the password of .env"
        )
    body = json.dumps({"name": "mlstack-doctor"})
    if subject.values.get("MLFLOW_AUTH", "on") == "off":
        return "accounts are off (MLFLOW_AUTH)"
    if (status := _status(subject, "POST", "registered-models/create", account, body)) != 403:  # noqa: PLR2004
        raise MlstackError(
            f"MLflow answered {status} when {account.username} created a model.",
            "A model that the service runs could change every other one.",
            "make up; make logs SERVICE=mlflow",
        )
    return "403"


@check(REACH, "a program has a key", service(SERVICE))
def keys(subject: Subject) -> str:
    names = subject.stack.compose.output(
        "exec", "--no-TTY", SERVICE, "python3", "-m", "mlstack.scoring.access", "list", timeout=60
    ).split()
    return f"{len(names)} keys" if names else "none yet (make key NAME=…); accounts of MLflow can score too"


def _wanted(subject: Subject) -> dict[tuple[str, str], str]:
    """The version of each model and alias that the service follows, in MLflow."""
    aliases = settings.read("SCORING_ALIASES", values=subject.values)["SCORING_ALIASES"].split(",")
    account, wanted, token = settings.notebook_account(subject.values), {}, ""
    while True:
        path = f"/api/2.0/mlflow/registered-models/search?max_results=100&page_token={quote(token)}"
        page = _call(subject, "MLFLOW_PORT", path, account)
        for model in page.get("registered_models", []):
            for named in model.get("aliases", []):
                if named["alias"] in aliases:
                    wanted[model["name"], named["alias"]] = named["version"]
        token = page.get("next_page_token", "")
        if not token:
            return wanted


def _call(subject: Subject, port: str, path: str, account: Account) -> dict[str, Any]:
    place = "Scoring" if port == "SCORING_PORT" else "MLflow"
    answer = http.call(place, "GET", subject.url(port) + path, why=WHY, timeout=15, account=account)
    if answer.status != 200:  # noqa: PLR2004
        raise MlstackError(f"{place} answers {answer.status} at {path}.", WHY, f"make logs SERVICE={place.lower()}")
    content: dict[str, Any] = answer.json()
    return content


def _status(subject: Subject, method: str, path: str, account: Account, body: str | None = None) -> int:
    url = f"{subject.url('MLFLOW_PORT')}/api/2.0/mlflow/{path}"
    headers = {"Content-Type": "application/json"}
    return http.call("MLflow", method, url, why=WHY, timeout=15, account=account, headers=headers, body=body).status
