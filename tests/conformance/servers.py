"""Genuine MLflow beside a running stack, both as sides that take the same calls."""

import base64
import json
import re
import secrets
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg2
import urllib3
from minio import Minio

from mlstack import settings
from mlstack.host.compose import compose_in
from mlstack.host.preflight import free_ports
from mlstack.s3 import client_for
from mlstack.settings import Keys, Login
from tests.support.clone import Clone
from tests.support.wheels import PLUGINS

HERE = Path(__file__).parent
GENUINE = "genuine"  # its database, bucket and role
START = 300.0  # seconds
# The stack's clients retry for minutes, also after server errors that are permanent.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0"}
# The tables of a run, an experiment and a model version, with the column that names their owner.
OF_RUNS = {
    "runs": "run_uuid",
    "metrics": "run_uuid",
    "latest_metrics": "run_uuid",
    "params": "run_uuid",
    "tags": "run_uuid",
}
HEADERS = ("content-type", "www-authenticate")


@dataclass(frozen=True)
class Call:
    """One request. `account` is a name of Side.accounts; None sends no login."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    account: str | None = "admin"

    def __str__(self) -> str:
        headers = "; ".join(f"{name}: {value!r}" for name, value in self.headers.items())
        body = self.body[:600] + (b" ... (%d bytes)" % len(self.body) if len(self.body) > 600 else b"")
        return f"{self.account}: {self.method} {self.path}\n    {headers}\n    {body!r}"


def post(path: str, body: Any, account: str | None = "admin", **headers: str) -> Call:
    """A call of MLflow's REST API with a JSON body."""
    content = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return Call("POST", f"/api/2.0/mlflow/{path}", json.dumps(body).encode(), content, account)


def get(path: str, account: str | None = "admin") -> Call:
    return Call("GET", f"/api/2.0/mlflow/{path}", b"", {}, account)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body; None when it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def error_code(self) -> str | None:
        code: str | None = self.json.get("error_code") if isinstance(self.json, dict) else None
        return code

    def normal(self) -> tuple[Any, ...]:
        """What must be equal: without times, and without ids that the server makes."""
        body = self.json
        return self.status, dict(self.headers), normal(body if body is not None else self.body.decode(errors="replace"))


_HEX = re.compile(r"\b(m-)?[0-9a-f]{32}\b")
# Generated values, which differ between the sides.
_MADE = (
    (re.compile(r"0x[0-9a-f]{6,}"), "<address>"),
    (re.compile(r"s3://[\w-]+"), "s3://<bucket>"),
    (re.compile(r"http://127\.0\.0\.1:\d+"), "<server>"),
    (re.compile(r"(\(psycopg2\.[\w.]+\)).*", re.DOTALL), r"\1"),  # the statement, which differs in ours
    (re.compile(r"^[a-z]+-[a-z]+-\d+$"), "<name>"),  # of a run
)


def normal(value: Any, kept: frozenset[str] = frozenset()) -> Any:
    """Without times near now, generated ids and addresses of objects."""
    if isinstance(value, dict):
        fields = {key: normal(item, kept) for key, item in value.items()}
        if fields.keys() >= {"info", "data"}:  # of a run, which MLflow reads in no order
            fields["data"] = {key: sorted(items, key=str) for key, items in fields["data"].items()}
        return fields
    if isinstance(value, list | tuple):
        return [normal(item, kept) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool) and is_now(value):
        return "<time>"
    if isinstance(value, str):
        if value.isdecimal() and is_now(int(value)):
            return "<time>"
        value = _HEX.sub(lambda match: match[0] if match[0] in kept else "<id>", value)
        for pattern, stands_for in _MADE:
            value = pattern.sub(stands_for, value)
        return value
    return value


def differences(ours: Any, genuine: Any, place: str = "") -> list[str]:
    """Where two normal values differ, and how; empty when they are equal."""
    if isinstance(ours, dict) and isinstance(genuine, dict):
        names = sorted(ours.keys() | genuine.keys(), key=str)
        return [line for name in names for line in differences(ours.get(name), genuine.get(name), f"{place}.{name}")]
    if isinstance(ours, list | tuple) and isinstance(genuine, list | tuple) and len(ours) == len(genuine):
        pairs = enumerate(zip(ours, genuine, strict=True))
        return [line for number, (first, second) in pairs for line in differences(first, second, f"{place}[{number}]")]
    if repr(ours) == repr(genuine):  # NaN is NaN, and 1 is not True
        return []
    return [f"{place.lstrip('.')}: ours {_short(ours)}, genuine {_short(genuine)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}... ({len(text)} characters)"


def is_now(value: float) -> bool:
    """Whether this could be a time of the test run, in milliseconds or seconds."""
    now = time.time()
    return abs(value - now * 1000) < 86_400_000 or abs(value - now) < 86_400


@dataclass(frozen=True)
class Side:
    """One of the two servers, with direct connections to its database and bucket, and the service where its client runs."""

    name: str
    url: str
    database: Login
    keys: Keys
    folder: Path
    client: str  # the compose service, in `folder`
    accounts: dict[str, tuple[str, str]]
    pool: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(maxsize=32, timeout=60, retries=False))

    def send(self, call: Call) -> Answer:
        headers = dict(call.headers)
        if call.account is not None:
            login = ":".join(self.accounts[call.account]).encode()
            headers["Authorization"] = f"Basic {base64.b64encode(login).decode()}"
        try:
            return self._send(call, headers)
        except urllib3.exceptions.ProtocolError:  # after an error uvicorn may close a connection without notice
            self.pool.clear()
        try:
            return self._send(call, headers)
        except urllib3.exceptions.ProtocolError as error:
            return Answer(0, {}, repr(error).encode())

    def _send(self, call: Call, headers: Mapping[str, str]) -> Answer:
        response = self.pool.request(call.method, self.url + call.path, body=call.body or None, headers=headers, redirect=False)
        return Answer(
            response.status, {name: response.headers[name] for name in HEADERS if name in response.headers}, response.data
        )

    @cached_property
    def _connection(self) -> Any:
        """One connection for all queries: the tests read the rows of thousands of runs."""
        login = self.database
        connection = psycopg2.connect(
            host=login.host, port=login.port, user=login.user, password=login.password, dbname=login.database
        )
        connection.autocommit = True
        return connection

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """As the owner of the server, for reading what is stored and for making runs in bulk."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def rows(self, runs: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
        """The rows of these runs, by run and table."""
        by_run: dict[str, dict[str, list[Any]]] = {run: {table: [] for table in OF_RUNS} for run in runs}
        for table, column in OF_RUNS.items():
            statement = f"SELECT {column}, to_jsonb(t) - 'artifact_uri' FROM {table} t WHERE {column} = ANY(%s)"  # noqa: S608
            for run, row in self.sql(statement, list(runs)):
                by_run[run][table].append(row)
        for tables in by_run.values():
            for rows in tables.values():
                rows.sort(key=lambda row: json.dumps(row, sort_keys=True))
        return by_run

    @cached_property
    def storage(self) -> Minio:
        return client_for(self.keys)

    def objects(self, run: str) -> dict[str, bytes]:
        """The artifacts of a run as its bucket holds them, by name."""
        ((experiment,),) = self.sql("SELECT experiment_id FROM runs WHERE run_uuid = %s", run)
        prefix, contents = f"{experiment}/{run}/artifacts/", {}
        for item in self.storage.list_objects(self.keys.bucket, prefix, recursive=True):
            response = self.storage.get_object(self.keys.bucket, item.object_name or "")
            contents[(item.object_name or "").removeprefix(prefix)] = response.read()
            response.close()
            response.release_conn()
        return contents

    def run_program(self, source: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Runs `program.py` with these arguments where this side's client is."""
        path = "/tmp/conformance.py"  # noqa: S108 (in a container)
        settings_of_client = [flag for name, value in IMPATIENT.items() for flag in ("--env", f"{name}={value}")]
        command = f"cat >{path} && exec python3 -u {path} {shlex.join(arguments)}"
        return subprocess.run(
            ["docker", "compose", "exec", "--no-TTY", *settings_of_client, self.client, "bash", "-c", command],
            cwd=self.folder,
            input=source,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )


@dataclass(frozen=True)
class Pair:
    """Our server and the genuine one. Calls to both are sent at the same time."""

    ours: Side
    genuine: Side
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2))

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.ours, self.genuine

    def both(self, function: Any) -> tuple[Any, Any]:
        """The result of this function for our side and for the genuine one."""
        ours, genuine = self.threads.map(function, self.sides)
        return ours, genuine

    def send(self, call: Call) -> tuple[Answer, Answer]:
        ours, genuine = self.both(lambda side: side.send(call))
        return ours, genuine

    def expect(self, call: Call) -> Any:
        """The JSON of our answer to a call that must succeed on both sides, with the same result."""
        ours, genuine = self.send(call)
        assert ours.status == genuine.status == 200, (str(call), ours, genuine)
        return ours.json

    def account(self, name: str) -> None:
        """The same new account on both sides."""
        username, password = name, secrets.token_urlsafe(16)
        for side in self.sides:
            side.accounts[name] = (username, password)
        self.expect(post("users/create", {"username": username, "password": password}))

    def runs(self, count: int, experiment: str = "0") -> list[str]:
        """New runs that have the same ids on both sides."""
        ids = [secrets.token_hex(16) for _ in range(count)]
        statement = """INSERT INTO runs (run_uuid, name, source_type, user_id, status, start_time, lifecycle_stage, artifact_uri,
            experiment_id) SELECT id, 'run', 'UNKNOWN', '', 'RUNNING', 1, 'active',
            'mlflow-artifacts:/' || %s || '/' || id || '/artifacts', %s FROM unnest(%s::text[]) AS id"""
        self.both(lambda side: side.sql(statement, experiment, int(experiment), ids))
        return ids


@contextmanager
def genuine_beside(clone: Clone, folder: Path) -> Iterator[Pair]:
    """Starts genuine MLflow beside the clone's running stack. Its database and bucket go with the stack's volumes."""
    password, (port,) = secrets.token_urlsafe(24), free_ports(1)
    owner = replace(settings.database_owner(clone.values), host="127.0.0.1", port=int(clone.values["POSTGRES_PORT"]))
    keys = replace(settings.storage_owner(clone.values), endpoint=f"127.0.0.1:{clone.values['MINIO_PORT']}")
    admin = (clone.values["MLFLOW_ADMIN_USERNAME"], clone.values["MLFLOW_ADMIN_PASSWORD"])
    notebook = settings.notebook_account(clone.values)
    url = f"http://127.0.0.1:{clone.values['MLFLOW_PORT']}"
    ours = Side(
        "ours", url, replace(owner, database=clone.values["POSTGRES_DB"]), keys, clone.folder, "jupyter", {"admin": admin}
    )
    genuine = replace(
        ours,
        name=GENUINE,
        url=f"http://127.0.0.1:{port}",
        database=replace(owner, database=GENUINE),
        keys=replace(keys, bucket=GENUINE),
        folder=folder,
        client="genuine-client",
        accounts={"admin": admin},
        pool=urllib3.PoolManager(maxsize=32, timeout=60, retries=False),
    )
    for statement in (f"CREATE ROLE {GENUINE} LOGIN PASSWORD '{password}'", f"CREATE DATABASE {GENUINE} OWNER {GENUINE}"):
        ours.sql(statement)
    ours.storage.make_bucket(GENUINE)
    values = {
        "COMPOSE_PROJECT_NAME": f"{clone.name}-{GENUINE}",
        "STACK": clone.name,
        "MLFLOW_IMAGE": clone.image("mlflow"),
        "JUPYTER_IMAGE": clone.image("jupyter"),
        **PLUGINS,
        "MLFLOW_PORT": str(port),
        "BUCKET": GENUINE,
        "PASSWORD": password,
        "ADMIN_USERNAME": admin[0],
        "ADMIN_PASSWORD": admin[1],
        "NOTEBOOK_USERNAME": notebook.username,
        "NOTEBOOK_PASSWORD": notebook.password,
        "ACCESS_KEY": keys.access_key,
        "SECRET_KEY": keys.secret_key,
    }
    (folder / ".env").touch(mode=0o600)
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    (folder / "docker-compose.yml").write_bytes((HERE / "genuine.yml").read_bytes())
    (folder / "genuine.ini").write_bytes((HERE / "genuine.ini").read_bytes())
    try:
        compose_in(folder).output("up", "--detach")
        wait(genuine)
        created = genuine.send(post("users/create", {"username": notebook.username, "password": notebook.password}))
        assert created.status == 200, created
        yield Pair(ours, genuine)
    finally:
        compose_in(folder).output("down", "--volumes", "--timeout", "10")


def wait(side: Side) -> None:
    """Returns when the server answers a call that reads its database. Raises TimeoutError."""
    deadline = time.monotonic() + START
    while True:
        try:
            if side.send(get("experiments/get?experiment_id=0")).status == 200:
                return
        except urllib3.exceptions.HTTPError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(compose_in(side.folder).output("logs", "--tail", "30"))
        time.sleep(0.3)
