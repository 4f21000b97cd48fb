"""Calls of the scoring service from notebooks, with the account of MLflow that they have anyway."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from mlstack import settings
from mlstack.errors import MlstackError

URL = "http://scoring:8000"  # in the stack; SCORING_URL names another one
SECONDS = 60
# Of requests that the service rejected before it did anything, and for which it says when to try again, as beyond SCORING_RATE.
AGAIN = Retry(10, connect=0, read=0, other=0, status_forcelist=(429,), allowed_methods=None, raise_on_status=False)
FIXES: Mapping[int, str] = {
    401: "check MLFLOW_TRACKING_USERNAME and _PASSWORD",
    429: "raise SCORING_RATE in .env, then make up",
}


def call(method: str, path: str, *, body: object = None, **parameters: str | None) -> dict[str, Any]:
    """The answer to a request. Raises MlstackError if there is none, or the request was rejected."""
    with _answer(method, path, parameters, json=body) as answer:
        return dict(answer.json())


@contextmanager
def stream(path: str, blocks: Iterable[bytes], **parameters: str) -> Iterator[requests.Response]:
    """The answer to a body that is sent as it is made; its own is read as it arrives. Raises MlstackError as `call` does."""
    with _answer("POST", path, parameters, data=blocks, stream=True) as answer:
        yield answer


@contextmanager
def _answer(method: str, path: str, parameters: Mapping[str, str | None], **options: Any) -> Iterator[requests.Response]:
    url = settings.of_shell("SCORING_URL") or URL
    login = settings.of_shell("MLFLOW_TRACKING_USERNAME"), settings.of_shell("MLFLOW_TRACKING_PASSWORD")
    given = {name: value for name, value in parameters.items() if value is not None}
    try:
        with requests.Session() as session:
            if "data" not in options:  # which cannot be sent again
                session.mount("http://", HTTPAdapter(max_retries=AGAIN))
            with session.request(method, url + path, params=given, auth=login, timeout=SECONDS, **options) as answer:
                _require_ok(answer)
                yield answer
    except (requests.RequestException, HTTPError) as error:
        raise MlstackError(
            f"the scoring service at {url} does not answer: {type(error).__name__}.",
            "Decisions, labels, policies and features are read and written through it.",
            "make add PART=scoring, or make up if the part is on; outside the stack, set SCORING_URL",
        ) from error


def _require_ok(answer: requests.Response) -> None:
    if not answer.ok:
        content = answer.json() if answer.headers.get("content-type") == "application/json" else {}
        raise MlstackError(
            f"the scoring service answers {answer.status_code}: {content.get('message', answer.reason)}",
            "Nothing was changed." if answer.status_code < 500 else "It was not done, or not completely.",  # noqa: PLR2004
            FIXES.get(answer.status_code, "make logs SERVICE=scoring"),
        )
