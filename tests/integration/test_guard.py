"""The guard before MLflow's application: pages of other origins, logins, bodies, and errors that its clients can read."""

import json
import re
import secrets
import socket
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from testcontainers.core.network import Network

from tests.support.clone import Clone
from tests.support.service import Service

Auth = tuple[str, str]
MIB = 1 << 20
BOTH_WORKERS = 20  # calls that reach each of the two workers
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def url(mlflow: Service) -> str:
    return f"http://{mlflow.address(5000)}"


@pytest.fixture(scope="module")
def own_origin(built: Clone) -> str:
    return f"http://localhost:{built.values['MLFLOW_PORT']}"


@pytest.fixture(scope="module")
def notebook(built: Clone) -> Auth:
    return built.values["MLFLOW_TRACKING_USERNAME"], built.values["MLFLOW_TRACKING_PASSWORD"]


@pytest.fixture(scope="module")
def admin(built: Clone) -> Auth:
    return built.values["MLFLOW_ADMIN_USERNAME"], built.values["MLFLOW_ADMIN_PASSWORD"]


@pytest.fixture(scope="module")
def colleague(url: str, admin: Auth) -> Auth:
    return account(url, admin)


def account(url: str, admin: Auth) -> Auth:
    person = f"person-{secrets.token_hex(4)}", secrets.token_urlsafe()
    assert api(url, "POST", "users/create", admin, {"username": person[0], "password": person[1]}).ok
    return person


def ask(url: str, method: str, path: str, auth: Auth | None, **options: Any) -> requests.Response:
    # Each call opens a connection, so that both workers get some.
    return requests.request(method, url + path, auth=auth, timeout=120, allow_redirects=False, **options)


def api(url: str, method: str, path: str, auth: Auth | None, body: Any = None, **headers: str) -> requests.Response:
    return ask(url, method, f"/api/2.0/mlflow/{path}", auth, json=body, headers=headers)


def new_run(url: str, auth: Auth) -> str:
    run: str = api(url, "POST", "runs/create", auth, {"experiment_id": "0"}).json()["run"]["info"]["run_id"]
    return run


def latest(url: str, auth: Auth, run: str) -> dict[str, Any]:
    data = api(url, "GET", f"runs/get?run_id={run}", auth).json()["run"]["data"]
    return {metric["key"]: metric["value"] for metric in data.get("metrics", [])}


# ---- pages of other origins ----------------------------------------------------------------------


@pytest.mark.refusal
@pytest.mark.parametrize(
    "origin",
    ["http://localhost:9999", "http://127.0.0.1:8888", "http://[::1]:80", "null", "http://evil.example", "{own}.evil.example"],
)
def test_page_of_another_origin_neither_acts_nor_reads(url: str, own_origin: str, admin: Auth, origin: str) -> None:
    headers = {"Origin": origin.format(own=own_origin)}
    name = f"planted-{secrets.token_hex(4)}"
    answers = [
        api(url, "POST", "users/create", admin, {"username": name, "password": secrets.token_urlsafe()}, **headers),
        api(url, "GET", "users/list", admin, **headers),
        ask(url, "GET", "/", admin, headers=headers),
        ask(url, "POST", "/api/2.0/mlstack/runs/search", admin, json={"experiment_ids": ["0"]}, headers=headers),
        api(url, "OPTIONS", "users/create", None, **headers, **{"Access-Control-Request-Method": "POST"}),
    ]
    assert [answer.status_code for answer in answers] == [403] * 5
    assert not [answer.headers for answer in answers if "Access-Control-Allow-Origin" in answer.headers]
    assert api(url, "GET", f"users/get?username={name}", admin).status_code == 404


@pytest.mark.refusal
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(
    ("method", "mode", "destination"),
    [
        ("GET", "no-cors", "image"),
        ("GET", "no-cors", "script"),
        ("GET", "cors", "empty"),
        ("GET", "navigate", "iframe"),
        ("GET", "navigate", "object"),
        ("POST", "navigate", "document"),
    ],
)
def test_resource_embedded_in_another_page_is_rejected(
    url: str, notebook: Auth, site: str, method: str, mode: str, destination: str
) -> None:
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": destination}
    for path in ("/", "/api/2.0/mlflow/experiments/get?experiment_id=0", "/get-artifact?run_id=x&path=y"):
        assert ask(url, method, path, notebook, headers=headers).status_code == 403


def test_own_page_links_and_clients_that_are_no_browser_work(url: str, own_origin: str, notebook: Auth) -> None:
    experiment = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    typed = link | {"Sec-Fetch-Site": "none"}
    for headers in ({}, own, link, typed, {"Origin": own_origin}):
        assert ask(url, "GET", experiment, notebook, headers=headers).status_code == 200, headers
        assert ask(url, "GET", "/", notebook, headers=headers).status_code == 200, headers
    for headers in ({}, own | {"Origin": own_origin}):
        name = {"name": secrets.token_hex(4)}
        assert api(url, "POST", "experiments/create", notebook, name, **headers).status_code == 200, headers
    preflight = {"Origin": own_origin, "Access-Control-Request-Method": "POST"}
    assert api(url, "OPTIONS", "runs/create", None, **preflight).headers["Access-Control-Allow-Origin"] == own_origin
    frame = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
    renderer = "/static-files/lib/notebook-trace-renderer/index.html"
    assert ask(url, "GET", renderer, None, headers=frame).status_code == 200  # traces shown inside a notebook


@pytest.mark.refusal
def test_browser_keeps_answers_from_pages_of_other_origins(url: str, notebook: Auth) -> None:
    answer = api(url, "GET", "experiments/get?experiment_id=0", notebook)
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


# ---- login before anything else --------------------------------------------------------------------


@pytest.mark.refusal
@pytest.mark.parametrize(
    "path",
    [
        "/api/2.0/mlflow/runs/log-metric",
        "/api/2.0/mlflow/runs/create",
        "/api/2.0/mlstack/runs/search",
        "/api/2.0/mlflow-artifacts/artifacts/0/x/artifacts/y",
        "/graphql",
        "/no/such/path",
    ],
)
def test_unauthenticated_client_is_answered_before_its_body_is_read(url: str, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {400 * MIB}\r\n\r\n"
    for login in ("", "Authorization: Basic bm9ib2R5Ondyb25n\r\n"):
        assert answer_to(url, head.replace("Host:", f"{login}Host:", 1)).startswith("HTTP/1.1 401 ")


@pytest.mark.refusal
def test_body_is_not_read_where_no_login_is_needed(url: str) -> None:
    head = f"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MIB}\r\n\r\n"
    assert answer_to(url, head).startswith("HTTP/1.1 405 ")


def answer_to(url: str, head: str) -> str:
    """The beginning of the answer to a request whose body is never sent."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode())
        return connection.recv(65536).decode()


@pytest.mark.refusal
@pytest.mark.parametrize("path", ["runs/search", "artifacts/links-to-read", "artifacts/links-to-write", "datasets/begin"])
def test_own_route_requires_a_login_before_it_validates_the_request(url: str, path: str) -> None:
    answer = ask(url, "POST", f"/api/2.0/mlstack/{path}", None, json={"no": "such field"})
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="mlflow"')


# ---- bodies ----------------------------------------------------------------------------------------


@pytest.mark.refusal
@pytest.mark.parametrize("path", ["runs/log-batch", "runs/set-tag", "experiments/create"])
def test_body_beyond_the_limit_is_rejected_with_a_message(url: str, notebook: Auth, path: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(33):
            yield b" " * MIB

    answer = ask(url, "POST", f"/api/2.0/mlflow/{path}", notebook, data=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert "larger than 32 MiB" in answer.json()["message"]
    login = b64encode(":".join(notebook).encode()).decode()
    head = f"POST /api/2.0/mlflow/{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {login}\r\n"
    kind = f"Content-Type: application/json\r\nContent-Length: {33 * MIB}\r\n\r\n"
    assert answer_to(url, head + kind).startswith("HTTP/1.1 413 ")


def test_largest_calls_of_mlflow_and_larger_artifacts_pass(url: str, notebook: Auth) -> None:
    run = new_run(url, notebook)
    profile = '{"a": 1}' * (2 * MIB - 1)  # as long as MLflow allows
    data_set = {"name": "d", "digest": secrets.token_hex(4), "source_type": "local", "source": "x", "profile": profile}
    answer = api(url, "POST", "runs/log-inputs", notebook, {"run_id": run, "datasets": [{"dataset": data_set}]})
    assert answer.status_code == 200, answer.text
    assert (
        ask(url, "PUT", f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/x", notebook, data=bytes(40 * MIB)).status_code
        == 200
    )


SLOW = """
import asyncio
from mlstack.server import guard
guard.BODY_SECONDS = 0.5
sent = []
async def trickle():
    await asyncio.sleep(0.05)
    return {"type": "http.request", "body": b"x", "more_body": True}
async def send(message):
    sent.append(message)
scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
print(asyncio.run(guard.read(scope, trickle, send)), sent[0]["status"])
"""


@pytest.mark.refusal
def test_slow_body_is_rejected(mlflow: Service) -> None:
    assert mlflow.run("python3", "-W", "ignore", "-c", SLOW).split() == ["None", "408"]


# ---- passwords -------------------------------------------------------------------------------------


@pytest.mark.refusal
def test_password_guessing_is_throttled_and_other_clients_are_not(mlflow: Service, url: str, admin: Auth, notebook: Auth) -> None:
    victim, other = account(url, admin), account(url, admin)
    for _ in range(BOTH_WORKERS):
        assert api(url, "GET", "experiments/get?experiment_id=0", notebook).status_code == 200

    def guess(_: int) -> int:
        return api(url, "GET", "experiments/get?experiment_id=0", (victim[0], secrets.token_urlsafe())).status_code

    with ThreadPoolExecutor(30) as pool:
        guesses = [pool.submit(guess, number) for number in range(60)]
        # Clients that are logged in continue, and so do logins from another address.
        while not all(answer.done() for answer in guesses):
            assert api(url, "GET", "experiments/get?experiment_id=0", notebook).status_code == 200
            assert mlflow.run("python3", "-c", LOGIN_INSIDE, *other).strip() == "200"
    answers = [answer.result() for answer in guesses]
    assert set(answers) == {401, 429}
    assert api(url, "GET", "experiments/get?experiment_id=0", victim).status_code == 200  # it is not locked out


LOGIN_INSIDE = """
import base64, sys, urllib.request
login = base64.b64encode(":".join(sys.argv[1:]).encode()).decode()
asked = urllib.request.Request("http://localhost:5000/api/2.0/mlflow/experiments/get?experiment_id=0")
asked.add_header("Authorization", f"Basic {login}")
print(urllib.request.urlopen(asked).status)
"""


@pytest.mark.refusal
def test_wrong_password_takes_equally_long_with_and_without_an_account(url: str, colleague: Auth) -> None:
    existing = min(seconds_to_reject(url, colleague[0], secrets.token_urlsafe()) for _ in range(4))
    unknown = min(seconds_to_reject(url, "nobody-of-that-name", secrets.token_urlsafe()) for _ in range(4))
    assert 1 / 4 < existing / unknown < 4


def test_healthcheck_costs_no_password_hash(url: str) -> None:
    with_hash = min(seconds_to_reject(url, "healthcheck", secrets.token_urlsafe()) for _ in range(3))
    assert min(seconds_to_reject(url, "healthcheck", "") for _ in range(5)) < with_hash / 2


def seconds_to_reject(url: str, name: str, password: str) -> float:
    started = time.perf_counter()
    assert api(url, "GET", "experiments/get?experiment_id=0", (name, password)).status_code == 401
    return time.perf_counter() - started


@pytest.mark.refusal
@pytest.mark.parametrize("password", ["short", "aaaaaaaaaaaa", "123456789012", "password1234", "Qwerty123456", "{name}{name}", 5])
def test_account_rejects_a_password_that_is_easy_to_guess(url: str, admin: Auth, colleague: Auth, password: Any) -> None:
    name = f"careless-{secrets.token_hex(4)}"

    def password_of(account: str) -> Any:
        return password.format(name=account) if isinstance(password, str) else password

    assert api(url, "POST", "users/create", admin, {"username": name, "password": password_of(name)}).status_code == 400
    assert api(url, "GET", f"users/get?username={name}", admin).status_code == 404
    change = {"username": colleague[0], "password": password_of(colleague[0]), "current_password": colleague[1]}
    assert api(url, "PATCH", "users/update-password", colleague, change).status_code == 400
    page = requests.Session()
    page.auth = admin
    token = re.search(r'name="csrf_token" value="([^"]+)"', page.get(f"{url}/signup", timeout=60).text)
    assert token
    form = {"csrf_token": token[1], "username": name, "password": str(password_of(name))}
    assert page.post(f"{url}/api/2.0/mlflow/users/create-ui", data=form, timeout=60).status_code == 400


@pytest.mark.refusal
def test_changed_password_and_lost_rights_count_at_once_in_each_worker(url: str, admin: Auth) -> None:
    person = account(url, admin)
    assert api(url, "PATCH", "users/update-admin", admin, {"username": person[0], "is_admin": True}).ok
    run = new_run(url, admin)
    artifact = f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/x"
    for _ in range(BOTH_WORKERS):
        assert ask(url, "DELETE", artifact, person).status_code != 403
    assert api(url, "PATCH", "users/update-admin", admin, {"username": person[0], "is_admin": False}).ok
    assert {ask(url, "DELETE", artifact, person).status_code for _ in range(BOTH_WORKERS)} == {403}
    fresh = secrets.token_urlsafe()
    change = {"username": person[0], "password": fresh, "current_password": person[1]}
    assert api(url, "PATCH", "users/update-password", person, change).ok
    point = {"run_id": run, "key": "a", "value": 1, "timestamp": 1}
    assert {api(url, "POST", "runs/log-metric", person, point).status_code for _ in range(BOTH_WORKERS)} == {401}
    assert api(url, "POST", "runs/log-metric", (person[0], fresh), point).status_code == 200


@pytest.mark.refusal
def test_shared_notebook_account_locks_nobody_out(url: str, notebook: Auth, admin: Auth, colleague: Auth) -> None:
    change = {"username": notebook[0], "password": secrets.token_urlsafe(), "current_password": notebook[1]}
    assert api(url, "PATCH", "users/update-password", notebook, change).status_code == 403
    deny = {"username": colleague[0], "resource_type": "experiment", "resource_id": "0", "permission": "DENY"}
    for verb in ("grant", "revoke"):
        answer = ask(url, "POST", f"/api/3.0/mlflow/users/permissions/{verb}", notebook, json=deny)
        assert answer.status_code == 403, answer.text
    for experiment in ("0", "00", 0):
        assert api(url, "POST", "experiments/delete", notebook, {"experiment_id": experiment}).status_code in (400, 403)
    assert new_run(url, colleague)
    # It may still delete what it created.
    own = api(url, "POST", "experiments/create", notebook, {"name": secrets.token_hex(4)}).json()
    assert api(url, "POST", "experiments/delete", notebook, own).status_code == 200


# ---- requests that make no sense -------------------------------------------------------------------


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("runs/log-metric", DEEP),
        ("runs/log-batch", DEEP),
        ("runs/set-tag", DEEP),
        ("runs/log-metric", r'{"run_id": "a\u0000b", "key": "k", "value": 1, "timestamp": 1}'),
        ("runs/set-tag", r'{"run_id": "RUN", "key": "k", "value": "a\u0000b"}'),
        ("runs/log-metric", r'{"run_id": "\ud800", "key": "k", "value": 1, "timestamp": 1}'),
        ("runs/set-tag", '{"run_id": 5, "key": "k", "value": "v"}'),
        ("runs/log-metric", '{"run_id": ["RUN"], "key": "k", "value": 1, "timestamp": 1}'),
        ("runs/create", '{"experiment_id": ["0"]}'),
    ],
)
def test_malformed_request_is_answered_400_in_json(url: str, notebook: Auth, path: str, body: str) -> None:
    body = body.replace("RUN", new_run(url, notebook))
    answer = ask(url, "POST", f"/api/2.0/mlflow/{path}", notebook, data=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/json")
    assert answer.json()["error_code"] in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def test_text_that_resembles_nul_is_stored(url: str, notebook: Auth) -> None:
    run, text = new_run(url, notebook), "\\u0000 \\\\u0000 \U0001f600"
    assert api(url, "POST", "runs/set-tag", notebook, {"run_id": run, "key": "k", "value": text}).status_code == 200
    tags = api(url, "GET", f"runs/get?run_id={run}", notebook).json()["run"]["data"]["tags"]
    assert text in [tag["value"] for tag in tags]


POINT = {"key": "a", "value": 1, "timestamp": 1, "step": 0}


def test_path_of_a_metric_call_decides_which_fields_count(url: str, notebook: Auth) -> None:
    run = new_run(url, notebook)
    assert api(url, "POST", "runs/log-metric", notebook, {"run_id": run, "metrics": [POINT]}).status_code == 400
    assert api(url, "POST", "runs/log-batch", notebook, {"run_id": run, **POINT}).status_code == 200
    assert latest(url, notebook, run) == {}


@pytest.mark.parametrize("beside", [{"params": {}}, {"params": 0}, {"tags": False}, {"tags": ""}])
def test_batch_with_empty_fields_of_the_wrong_type_is_rejected(url: str, notebook: Auth, beside: dict[str, Any]) -> None:
    run = new_run(url, notebook)
    assert api(url, "POST", "runs/log-batch", notebook, {"run_id": run, "metrics": [POINT], **beside}).status_code == 400
    assert latest(url, notebook, run) == {}


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ("application/json;", 200),
        ("application/json ;charset=utf-8", 400),
        ("Application/JSON", 400),
        ("text/plain", 400),
    ],
)
def test_content_type_is_read_as_by_mlflow(url: str, notebook: Auth, content_type: str, status: int) -> None:
    body = json.dumps({"run_id": new_run(url, notebook), **POINT})
    headers = {"Content-Type": content_type}
    assert ask(url, "POST", "/api/2.0/mlflow/runs/log-metric", notebook, data=body, headers=headers).status_code == status


@pytest.mark.parametrize(("values", "expected"), [(["NaN", 0], "NaN"), ([0, "NaN"], 0), ([1, 2], 2)])
def test_latest_value_of_equal_points_is_the_first(url: str, notebook: Auth, values: list[Any], expected: Any) -> None:
    run = new_run(url, notebook)
    metrics = [POINT | {"value": value} for value in values]
    assert api(url, "POST", "runs/log-batch", notebook, {"run_id": run, "metrics": metrics}).status_code == 200
    assert latest(url, notebook, run) == {"a": expected}


# ---- look-ups of the server --------------------------------------------------------------------------

LOOK_UPS = """
from contextlib import closing
from types import SimpleNamespace
from mlflow.exceptions import MlflowException
from mlstack.server import auth
from sqlalchemy import create_engine
store = SimpleNamespace(engine=create_engine("postgresql+psycopg2://", pool_size=1, max_overflow=0))
for query in ("SELECT 1 AS one", "SELECT 1 / 0", "SELECT pg_terminate_backend(pg_backend_pid())", "SELECT 1 AS one"):
    try:
        said = auth.rows(store, query)
    except MlflowException as error:
        said = error.get_http_status_code()
    with closing(store.engine.raw_connection()) as connection:
        print("look-up:", said, "autocommit:", connection.dbapi_connection.autocommit)
"""


def test_look_up_returns_its_connection_as_mlflow_left_it(mlflow: Service) -> None:
    output = mlflow.run("python3", "-W", "ignore", "-c", LOOK_UPS)
    assert [line for line in output.splitlines() if line.startswith("look-up:")] == [
        "look-up: [Record(one=1)] autocommit: False",
        "look-up: 400 autocommit: False",
        "look-up: 503 autocommit: False",
        "look-up: [Record(one=1)] autocommit: False",
    ]


# ---- the command line ------------------------------------------------------------------------------

LAUNCH = """
import os, sys
from mlstack.server import launcher
from mlflow.server import app
def say(line):
    sys.stderr.write(line + "\\n")  # at once, beside what the server says
say("security layer: " + str(any(hook.__name__ == "validate_host" for hook in app.before_request_funcs[None])))
for options in sys.argv[1:]:
    name, _, variable = options.partition(" ")
    sys.argv[1:] = ["--app-name=mlstack", name]
    os.environ.pop("MLFLOW_ENABLE_WORKSPACES", None)
    os.environ.update([variable.split("=")] if variable else [])
    try:
        launcher.main()
    except SystemExit as end:
        say(f"ended: {options} {end.code}")
"""
REJECTED = (
    "--static-prefix=/x",
    "--artifacts-only",
    "--gunicorn-opts=-x",
    "--waitress-opts=-x",
    "--expose-prometheus=/tmp/x",
    "--disable-security-middleware",
    "--enable-workspaces",
    "--allowed-hosts=*",
    "--cors-allowed-origins=*",
    "--x-frame-options=NONE",
    "--app-name=basic-auth",
)


def test_server_names_options_that_it_rejects(mlflow: Service) -> None:
    workspaces = "--port=5001 MLFLOW_ENABLE_WORKSPACES=true"
    output = mlflow.run("python3", "-W", "ignore", "-c", LAUNCH, *REJECTED, workspaces)
    assert "security layer: True" in output
    for option in REJECTED:
        assert f"ended: {option} 1" in output
        assert f"{option.partition('=')[0]} does not work" in output or f"{option} does not work" in output
    assert f"ended: {workspaces} 1" in output
    assert "--enable-workspaces does not work in this server." in output
    assert "Why: permissions are read for one workspace." in output
    assert "leave it out, and unset MLFLOW_ENABLE_WORKSPACES" in output


# ---- routes of this project --------------------------------------------------------------------------

NEW_ROUTE = """
import asyncio, sys
from fastapi import APIRouter
from mlstack.server import app, auth
router = APIRouter()
@router.get("/api/2.0/mlstack/new")
def new(caller: auth.CallerOrNone) -> str:
    return f"reached by {caller.username}"
@router.get("/api/2.0/mlstack/forgetful")
def forgetful() -> str:
    return "reached"
app.ROUTERS = (*app.ROUTERS, router)
async def ask(application, path):
    messages = []
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}
    async def send(message):
        messages.append(message)
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
             "scheme": "http", "http_version": "1.1", "client": ("127.0.0.1", 1), "headers": [(b"host", b"localhost")]}
    await application(scope, receive, send)
    sys.stderr.write(f"{path} {messages[0]['status']} {messages[1]['body'].decode()}\\n")
async def main():
    application = app._own_application()  # as if there were no guard in front of it
    for caller in (None, auth.Caller(1, "somebody", False)):
        for name in ("new", "forgetful"):
            auth.set_caller(caller)
            await ask(application, "/api/2.0/mlstack/" + name)
asyncio.run(main())
"""


@pytest.mark.refusal
def test_new_route_asks_for_a_login_without_saying_so(mlflow: Service) -> None:
    output = mlflow.run("python3", "-W", "ignore", "-c", NEW_ROUTE)
    answers = [line.split(maxsplit=2)[1:] for line in output.splitlines() if line.startswith("/api/2.0/mlstack/")]
    assert [status for status, _ in answers] == ["401", "401", "200", "200"], output
    assert "reached by somebody" in answers[2][1]


def test_login_works_without_a_cache(built: Clone, network: Network, mlflow: Service, admin: Auth) -> None:
    config = built.config["services"]["mlflow"]["command"]
    start = 'sed s/3600/0/ /etc/mlflow/basic_auth.ini >/tmp/auth.ini && exec "$@"'
    with (
        Service(built, "mlflow", network, 5000)
        .with_command(["bash", "-c", start, "bash", *config])
        .with_env("MLFLOW_AUTH_CONFIG_PATH", "/tmp/auth.ini") as server  # noqa: S108  (in the container)
    ):
        url = f"http://{server.address(5000)}"
        run = new_run(url, admin)
        for step in range(3):
            assert api(url, "POST", "runs/log-metric", admin, POINT | {"run_id": run, "step": step}).status_code == 200
        assert ask(url, "POST", "/api/2.0/mlstack/runs/search", admin, json={"experiment_ids": ["0"]}).status_code == 200
        assert api(url, "GET", "experiments/get?experiment_id=0", (admin[0], "wrong")).status_code == 401
