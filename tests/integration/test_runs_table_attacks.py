"""Attempts to read runs without permission through the runs table, or to use up Postgres' connections."""

import json
import secrets
import socket
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse

import pytest
import requests
from testcontainers.core.network import Network

from mlstack import postgres as database
from mlstack.settings import Login, Roles
from tests.support.clone import Clone
from tests.support.service import Service, wait_until

Auth = tuple[str, str]
PATH = "/api/2.0/mlstack/runs/search"
WORKERS, ANSWERS_OF_ONE_ACCOUNT = 2, 4  # of docker-compose.yml and server/runs_table.py
# More than what fits into the buffers of the sockets and of the server between them.
POINTS = 400_000


def accounts(built: Clone) -> tuple[Auth, Auth]:
    """The notebooks' account and the admin."""
    values = built.values
    return (
        (values["MLFLOW_TRACKING_USERNAME"], values["MLFLOW_TRACKING_PASSWORD"]),
        (values["MLFLOW_ADMIN_USERNAME"], values["MLFLOW_ADMIN_PASSWORD"]),
    )


def call(mlflow: Service, path: str, auth: Auth, body: object) -> requests.Response:
    return requests.post(f"http://{mlflow.address(5000)}{path}", json=body, auth=auth, timeout=60)


def new_experiment(mlflow: Service, auth: Auth) -> str:
    created = call(mlflow, "/api/2.0/mlflow/experiments/create", auth, {"name": secrets.token_hex(8)})
    return str(created.json()["experiment_id"])


@pytest.mark.refusal
@pytest.mark.parametrize(
    "spelling",
    [
        lambda number: f"0{number}",
        lambda number: "".join(chr(ord("٠") + int(digit)) for digit in number),
        lambda number: "".join(chr(ord("０") + int(digit)) for digit in number),
        lambda number: f" {number}",
        lambda number: f"{number}\n",
        lambda number: f"+{number}",
        lambda number: f"{number}.0",
        lambda number: f"{number}_0",
    ],
)
def test_runs_table_reads_an_experiment_by_one_spelling_only(
    built: Clone, mlflow: Service, spelling: Callable[[str], str]
) -> None:
    notebook, admin = accounts(built)
    experiment = new_experiment(mlflow, notebook)
    call(mlflow, "/api/2.0/mlflow/runs/create", notebook, {"experiment_id": experiment, "start_time": 1})
    colleague = f"colleague-{secrets.token_hex(4)}", secrets.token_urlsafe(16)
    account = dict(zip(("username", "password"), colleague, strict=True))
    assert call(mlflow, "/api/2.0/mlflow/users/create", admin, account).status_code == 200
    deny = {"username": colleague[0], "resource_type": "experiment", "resource_id": experiment, "permission": "DENY"}
    assert call(mlflow, "/api/3.0/mlflow/users/permissions/grant", admin, deny).status_code == 200
    assert call(mlflow, PATH, colleague, {"experiment_ids": [experiment]}).status_code == 403
    for caller in (colleague, notebook):
        answer = call(mlflow, PATH, caller, {"experiment_ids": [spelling(experiment)]})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"


@pytest.fixture(scope="module")
def large(built: Clone, mlflow: Service, role: Login) -> str:
    """An experiment with a run of very many points."""
    notebook, _ = accounts(built)
    experiment = new_experiment(mlflow, notebook)
    run = call(mlflow, "/api/2.0/mlflow/runs/create", notebook, {"experiment_id": experiment, "start_time": 1}).json()
    with database.connected(role, 30) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO metrics (run_uuid, key, value, timestamp, step, is_nan)"
            " SELECT %s, 'a-metric-with-a-long-name', step, step, step, false FROM generate_series(1, %s) AS step",
            (run["run"]["info"]["run_id"], POINTS),
        )
    return experiment


@contextmanager
def unread(uri: str, auth: Auth, experiment: str, count: int) -> Iterator[list[HTTPResponse]]:
    """Answers with a large table, of which only the head is read."""
    host, _, port = uri.partition(":")
    body = json.dumps({"experiment_ids": [experiment], "history": True})
    login = b64encode(":".join(auth).encode()).decode()
    request = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {login}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    with ExitStack() as sockets:
        answers = []
        for _ in range(count):
            client = sockets.enter_context(socket.create_connection((host, int(port)), timeout=60))
            client.sendall(request.encode())
            answers.append(sockets.enter_context(HTTPResponse(client, method="POST")))
            answers[-1].begin()
        yield answers


def connections(owner: Login, reader: Login) -> int:
    """Number of connections of the role that reads the tables."""
    with database.connected(owner, 30) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", (reader.user,))
        (count,) = cursor.fetchone() or (0,)
    return int(count)


@pytest.mark.refusal
def test_runs_table_limits_the_connections_of_an_account_that_reads_no_answer(
    built: Clone, mlflow: Service, owner: Login, roles: Roles, large: str
) -> None:
    notebook, admin = accounts(built)
    with unread(mlflow.address(5000), notebook, large, 40) as answers:
        assert {answer.status for answer in answers} == {200, 429}
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers if answer.status == 429)
        assert 0 < connections(owner, roles.reader) <= WORKERS * ANSWERS_OF_ONE_ACCOUNT
        # Other accounts still read tables, and this one can do everything else.
        assert call(mlflow, PATH, admin, {"experiment_ids": [large]}).status_code == 200
        assert call(mlflow, "/api/2.0/mlflow/experiments/search", notebook, {"max_results": 1}).status_code == 200
    # The clients are closed, and so are their connections.
    wait_until(lambda: connections(owner, roles.reader) == 0)
    assert call(mlflow, PATH, notebook, {"experiment_ids": [large]}).status_code == 200


@pytest.fixture
def impatient(built: Clone, network: Network, migrated: None) -> Iterator[Service]:
    """The shipped server, with a deadline that a test can wait for."""
    _, *options = built.config["services"]["mlflow"]["command"]
    program = (
        "from mlstack import settings; settings.publish_secrets();"
        " from mlstack.server import launcher, runs_table; runs_table.DEADLINE = 15; launcher.main()"
    )
    service = Service(built, "mlflow", network, 5000)
    service.with_command(["python3", "-c", program, "--app-name=mlstack", *options])
    with service:
        yield service


@pytest.mark.refusal
def test_runs_table_ends_an_answer_that_nobody_reads(
    built: Clone, impatient: Service, owner: Login, roles: Roles, large: str
) -> None:
    notebook, _ = accounts(built)
    with unread(impatient.address(5000), notebook, large, 3) as answers:
        assert {answer.status for answer in answers} == {200}
        wait_until(lambda: connections(owner, roles.reader) == 0)


RETRIED = """
import base64, json, logging, os, socket, sys, threading
from mlstack import runs
experiment = sys.argv[1]
body = json.dumps({"experiment_ids": [experiment], "history": True})
login = base64.b64encode(f"{os.environ['MLFLOW_TRACKING_USERNAME']}:{os.environ['MLFLOW_TRACKING_PASSWORD']}".encode()).decode()
head = f"POST /api/2.0/mlstack/runs/search HTTP/1.1\\r\\nHost: mlflow\\r\\nAuthorization: Basic {login}\\r\\n"
head += f"Content-Type: application/json\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
hogs, statuses = [], set()
for _ in range(40):
    hogs.append(socket.create_connection(("mlflow", 5000)))
    hogs[-1].sendall((head + body).encode())
    statuses.add(hogs[-1].recv(12))
assert statuses == {b"HTTP/1.1 200", b"HTTP/1.1 429"}, statuses
retried = threading.Event()
class Watch(logging.Handler):
    def emit(self, record):
        if "Incremented Retry" in record.getMessage():
            retried.set()
logging.getLogger("urllib3.util.retry").addHandler(Watch())
logging.getLogger("urllib3.util.retry").setLevel(logging.DEBUG)
tables = []
reader = threading.Thread(target=lambda: tables.append(runs.table(experiment_ids=[experiment])))
reader.start()
assert retried.wait(60)
for hog in hogs:
    hog.close()
reader.join()
print("ROWS", len(tables[0]))
"""


def test_runs_table_is_requested_again_after_too_many_requests(jupyter: Service, large: str) -> None:
    assert "ROWS 1" in jupyter.run("python3", "-c", RETRIED, large)
