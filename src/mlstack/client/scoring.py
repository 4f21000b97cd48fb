"""Calls of the scoring service from notebooks, with the account of MLflow that they have anyway."""

from collections.abc import Mapping
from typing import Any

import requests

from mlstack import settings
from mlstack.errors import MlstackError

URL = "http://scoring:8000"  # in the stack; SCORING_URL names another one
SECONDS = 60


def call(method: str, path: str, *, body: object = None, **parameters: str | None) -> dict[str, Any]:
    """The answer to a request. Raises MlstackError if there is none, or the request was rejected."""
    url = settings.of_shell("SCORING_URL") or URL
    login = settings.of_shell("MLFLOW_TRACKING_USERNAME"), settings.of_shell("MLFLOW_TRACKING_PASSWORD")
    given: Mapping[str, str] = {name: value for name, value in parameters.items() if value is not None}
    try:
        answer = requests.request(method, url + path, json=body, params=given, auth=login, timeout=SECONDS)
    except requests.RequestException as error:
        raise MlstackError(
            f"the scoring service at {url} does not answer: {type(error).__name__}.",
            "Decisions, labels and policies are read and written through it.",
            "make add PART=scoring, or make up if the part is on; outside the stack, set SCORING_URL",
        ) from error
    content = answer.json() if answer.headers.get("content-type") == "application/json" else {}
    if not answer.ok:
        raise MlstackError(
            f"the scoring service answers {answer.status_code}: {content.get('message', answer.reason)}",
            "Nothing was changed.",
            "check MLFLOW_TRACKING_USERNAME and _PASSWORD" if answer.status_code == 401 else "make logs SERVICE=scoring",  # noqa: PLR2004
        )
    return dict(content)
