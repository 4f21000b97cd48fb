"""Where this stack differs from MLflow on purpose. Everything else that differs fails the tests.

Each difference has an example: a test runs it, and fails when it no longer differs. docs/conformance.md shows this table.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.conformance.servers import Answer, Call, get, post

# A number of JSON that Python's parser takes and the standard does not, or that is larger than any float. Not inside strings.
_SPECIAL = re.compile(rb'"(?:[^"\\]|\\.)*"|-?(?:NaN|Infinity)|-?\d+(?:\.\d+)?[eE]\+?\d{3,}')
OK, BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, TOO_LARGE, INTERNAL_ERROR = 200, 400, 401, 403, 413, 500
LOGGING = ("/runs/log-metric", "/runs/log-batch")


@dataclass(frozen=True)
class Known:
    """A difference by its words alone; one that depends on timing has no example."""

    name: str
    ours: str
    genuine: str
    reason: str


@dataclass(frozen=True)
class OfServer(Known):
    """A difference in what our server answers or stores."""

    example: Call
    is_meant: Callable[[Call, Answer, Answer], bool]
    """Whether this difference between two answers is this one."""
    in_mlflows_words: Callable[[Call], Call | None] = lambda call: None
    """The call with which genuine MLflow does what ours does for the given one; None when there is none."""


@dataclass(frozen=True)
class OfClient(Known):
    """A difference in what our client returns, raises or stores."""

    cases: str
    """Where it is seen, as a pattern: program and case."""
    line: str
    """What it looks like there, as a pattern for a line of `differences`."""


def quoted(call: Call) -> Call | None:
    """The call with bare NaN and Infinity in quotes, as MLflow's own client writes them; None when there is none."""
    if not call.path.endswith(LOGGING):
        return None

    def quote(match: re.Match[bytes]) -> bytes:
        text = match[0]
        if text.startswith(b'"'):
            return text
        number = float(text)
        return text if abs(number) < float("inf") else json.dumps(text_of(number)).encode()

    body = _SPECIAL.sub(quote, call.body)
    return None if body == call.body else replace(call, body=body)


def text_of(number: float) -> str:
    return {float("inf"): "Infinity", float("-inf"): "-Infinity"}.get(number, "NaN")


def _never(call: Call, ours: Answer, genuine: Answer) -> bool:
    return False


BARE_SPECIALS = OfServer(
    "NaN and Infinity without quotes",
    "stored as NaN and infinity, like the quoted ones",
    "stored as 0 at step 0 and time 0, or rejected, depending on the order of the fields",
    "Python's json.dumps writes them so, and a diverged loss must not look like a perfect one.",
    post("runs/log-metric", {"run_id": "{run}", "key": "m", "value": float("nan"), "timestamp": 1000, "step": 3}),
    _never,  # the answers are equal; what is stored is not
    quoted,
)
MULTIPART = OfServer(
    "MLflow's own multipart uploads",
    "501: MLflow's clients then send the file through the server",
    "URLs of `http://minio:9000`",
    "That name leads nowhere outside the containers. Our client gets presigned URLs that work (docs/adr/0009).",
    Call(
        "POST", "/api/2.0/mlflow-artifacts/mpu/create/0/{run}/artifacts/big", b'{"path": "0/{run}/artifacts/big", "num_parts": 2}'
    ),
    lambda call, ours, genuine: "/mlflow-artifacts/mpu/create/" in call.path and (ours.status, genuine.status) == (501, 200),
)
WRONG_REQUESTS = OfServer(
    "requests that no database or parser takes: NUL, half of a surrogate pair, JSON of thousands of levels",
    "400",
    "500, or the field is ignored",
    "The request is wrong, not the server, and no client should try it again.",
    post("runs/set-tag", {"run_id": "{run}", "key": "t", "value": "\0"}),
    lambda call, ours, genuine: (
        (ours.status, ours.error_code) == (BAD_REQUEST, "INVALID_PARAMETER_VALUE")
        and (genuine.status == INTERNAL_ERROR or b"NUL" in ours.body)
    ),
)
HTML_ERRORS = OfServer(
    "errors of the server",
    "500 in JSON, like every other error",
    "500 as an HTML page or plain text",
    "Clients read the error code and the message from JSON.",
    post("runs/log-batch", {"run_id": "{run}", "metrics": [[]]}),
    lambda call, ours, genuine: (
        ours.status == genuine.status == INTERNAL_ERROR and ours.error_code == "INTERNAL_ERROR" and genuine.json is None
    ),
)
LOGIN_FIRST = OfServer(
    "calls without an account",
    "401 as plain text, before the body is read",
    "401 with the same text as HTML, after the body is read",
    "Nobody without an account may fill the server's memory (docs/security.md).",
    replace(post("runs/log-metric", {"run_id": "{run}", "key": "m", "value": 1, "timestamp": 1}), account=None),
    lambda call, ours, genuine: ours.status == genuine.status == UNAUTHORIZED and ours.body == genuine.body,
)
SOURCES = OfServer(
    "where a model version's files are",
    "artifacts of this server only; 400 for anything else",
    "any S3 object that the server's keys open",
    "A version whose source is another's file could be read past its permissions (docs/security.md).",
    post("model-versions/create", {"name": "{model}", "source": "s3://elsewhere/model"}),
    lambda call, ours, genuine: (
        call.path.endswith("/model-versions/create")
        and ours.status == BAD_REQUEST
        and b"Invalid model version source" in ours.body
    ),
)
LARGE_BODIES = OfServer(
    "bodies of more than 32 MiB; uploads of artifacts have no limit",
    "413",
    "read into memory, whatever their size",
    "A single call must not fill the server's memory (docs/security.md).",
    Call(
        "POST",
        "/api/2.0/mlflow/runs/set-tag",
        b'{"run_id": "{run}", "key": "large", "value": "x"}' + b" " * (32 << 20),
    ),
    lambda call, ours, genuine: ours.status == TOO_LARGE and genuine.status == OK,
)
GUESSABLE_PASSWORDS = OfServer(
    "passwords of 12 characters or more that are easy to guess",
    "400, with what is wrong with them",
    "accepted",
    "Other programs of the host can reach the login (docs/security.md).",
    post("users/create", {"username": "guessable", "password": "passwordpassword"}),
    lambda call, ours, genuine: (
        call.path.endswith("/users/create")
        and (ours.status, genuine.status) == (BAD_REQUEST, OK)
        and b"easy to guess" in ours.body
    ),
)
FOREIGN_PAGES = OfServer(
    "requests of pages of other origins",
    "403, also for those that only read",
    "answered when they only read",
    "A browser sends the login along, whichever page asks (docs/security.md).",
    replace(get("experiments/get?experiment_id=0"), headers={"Origin": "http://elsewhere.example"}),
    lambda call, ours, genuine: "Origin" in call.headers and (ours.status, genuine.status) == (FORBIDDEN, OK),
)
OF_SERVER: tuple[OfServer, ...] = (
    *(BARE_SPECIALS, MULTIPART, WRONG_REQUESTS, HTML_ERRORS, LOGIN_FIRST, SOURCES),
    *(LARGE_BODIES, GUESSABLE_PASSWORDS, FOREIGN_PAGES),
)

OF_CLIENT: tuple[OfClient, ...] = (
    OfClient(
        "what log_metric, log_metrics and log_batch return",
        "an operation that can be waited for",
        "None",
        "They return before the server has answered; with `synchronous=True` they return None after it has.",
        r"(values|calls|runs): .*",
        r"call( \d)?\.returned: ours '\w+', genuine None",
    ),
    OfClient(
        "the error code of a param with the character NUL",
        "INVALID_PARAMETER_VALUE",
        "INTERNAL_ERROR",
        "The value is wrong, not the server, and no client should try it again.",
        r"calls: log_param NUL",
        r"call 0\.error_code: ours 'INVALID_PARAMETER_VALUE', genuine 'INTERNAL_ERROR'",
    ),
    OfClient(
        "artifact names with #, ?, %, a drive letter, a tab, a line's end or a space in front",
        "rejected at upload, and a folder that contains one as a whole",
        "stored under another name, or so that it cannot be listed or downloaded",
        "A file that is not there under its name is lost.",
        r"artifacts: ((file|path|text|dict) '.*([#?%]|C:|\\[nt]).*'|file ' a'|folder.*)",
        r"put\.(error_code: ours 'INTERNAL_ERROR', genuine None|raised: ours 'MlflowException', genuine (None|'OSError'))"
        r"|get\.(error_code: ours 'RESOURCE_DOES_NOT_EXIST'|raised: ours 'MlflowException'|returned: ours None), genuine "
        r"|(get all\.returned: ours ''|list\.returned: ours '\[\]'|(get all|list)\.(error_code|raised): ours None), genuine "
        r"|objects\..*: ours None, genuine ",
    ),
)
CONCURRENT_WRITERS = Known(
    "many writers of the same metrics at once",
    "every call is stored",
    "now and then a call is answered 503 (a deadlock in Postgres)",
    "The workers of one training job log to one run.",
)
MANY_LOGINS = Known(
    "many wrong passwords at once",
    "429 with Retry-After beyond a few; other clients are served",
    "each is checked, and other clients wait",
    "A password check takes 0.1 s of a core, on purpose (docs/security.md).",
)
EVERY: tuple[Known, ...] = (*OF_SERVER, CONCURRENT_WRITERS, MANY_LOGINS, *OF_CLIENT)
