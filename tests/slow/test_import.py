"""`make import` of what MLflow 2.22 and MLflow 3 wrote: through MLflow's API, the stack shows the same as the source."""

import json
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from mlstack.host.compose import docker
from tests.support.clone import ROOT, Clone, free_ports, users_environment
from tests.support.many_runs import write
from tests.support.service import wait_until

PROGRAM = ROOT / "tests/support/imported_program.py"
# The administrator of the server with accounts.
PASSWORD = "another-password"
SERVER = {"MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(), "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD}
LARGEST = '"1.7976931348623157e+308"'


@pytest.fixture(scope="module")
def stack(clone: Clone) -> Iterator[Clone]:
    done = clone.make("up")
    assert done.returncode == 0, done.stdout + done.stderr
    yield clone
    clone.compose("down", "--volumes", "--remove-orphans", "--timeout", "10")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with the program, which any container's user may write in."""
    tmp_path.chmod(0o777)
    (tmp_path / PROGRAM.name).write_bytes(PROGRAM.read_bytes())
    return tmp_path


@contextmanager
def server(stack: Clone, *options: str) -> Iterator[tuple[str, str]]:
    """A container with a server of MLflow 3, which keeps everything in memory, and its address on the host."""
    (port,) = free_ports(1)
    settings = " ".join(f"{name}={value}" for name, value in SERVER.items())
    command = (
        f"cd /tmp && {settings} exec mlflow server --host 0.0.0.0 --workers 1 --backend-store-uri sqlite:////dev/shm/rows.db"
    )
    name = f"{stack.name}-source"
    docker(
        "run", "--detach", "--rm", "--name", name, "--publish", f"127.0.0.1:{port}:5000", "--volume",
        f"{PROGRAM}:/program.py:ro", stack.image("mlflow"),
        "bash", "-c", " ".join([command, "--artifacts-destination /dev/shm/artifacts", *options]),
    )  # fmt: skip
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"))
        yield name, f"http://127.0.0.1:{port}"
    finally:
        docker("rm", "--force", name)


@contextmanager
def old_server(old_python: Path, folder: Path) -> Iterator[str]:
    """The address of a server of MLflow 2.22 with its accounts off, which keeps its files in `folder`/artifacts."""
    (port,) = free_ports(1)
    options = ("--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/rows.db", "--artifacts-destination", "artifacts")
    command = [old_python.with_name("mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), *options]
    with subprocess.Popen(command, cwd=folder, env=users_environment(), start_new_session=True) as process:
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"))
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=60).ok
    except requests.ConnectionError:
        return False


def of_stack(stack: Clone, prefix: str) -> Any:
    values = stack.values
    account = {
        "MLFLOW_TRACKING_URI": values["MLFLOW_TRACKING_URI"],
        "MLFLOW_TRACKING_USERNAME": values["MLFLOW_ADMIN_USERNAME"],
        "MLFLOW_TRACKING_PASSWORD": values["MLFLOW_ADMIN_PASSWORD"],
    }
    return json.loads(program(Path(sys.executable), users_environment() | account, "read", prefix))


def program(python: Path, environment: dict[str, str], *arguments: str, folder: Path = ROOT) -> str:
    command = [python, "-W", "ignore", PROGRAM, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def in_image(stack: Clone, source: Path, **environment: str) -> Callable[[str], str]:
    """Runs the program in `source`, with the MLflow of the stack's image."""
    settings = [part for key, value in environment.items() for part in ("--env", f"{key}={value}")]
    options = ("--volume", f"{source}:{source}", "--workdir", str(source), *settings, stack.image("mlflow"))
    return lambda action: docker("run", "--rm", *options, "python3", "-W", "ignore", PROGRAM.name, action)


def account(prefix: str) -> dict[str, str]:
    return {f"{prefix}_USERNAME": "admin", f"{prefix}_PASSWORD": PASSWORD}


def assert_account_is_needed(stack: Clone, url: str) -> None:
    done = stack.make("import", FROM=url, YES="1")
    assert done.returncode != 0
    assert "IMPORT_USERNAME" in done.stderr


def assert_imported(stack: Clone, origin: str, prefix: str, expected: str, **account: str) -> None:
    """Imports twice; what the stack shows is what the source showed."""
    for _ in range(2):
        done = stack.make("import", FROM=origin, PREFIX=prefix, YES="1", **account)
        assert done.returncode == 0, done.stdout + done.stderr
    before = json.loads(re.sub(r'"(-?)inf"', rf'"\g<1>{LARGEST[1:]}', expected))  # a file store alone keeps infinity
    after = of_stack(stack, prefix)
    for kind in ("models", "prompts"):
        assert after[kind] == before[kind]
    assert after["experiments"].keys() == before["experiments"].keys()
    for name, experiment in before["experiments"].items():
        assert {key: after["experiments"][name][key] for key in experiment} == experiment, name


def test_file_store_of_mlflow_2_is_the_same_in_the_stack(stack: Clone, old_python: Path, source: Path) -> None:
    environment = users_environment() | {"MLFLOW_TRACKING_URI": str(source / "mlruns")}
    program(old_python, environment, "fill", folder=source)
    assert_imported(stack, str(source / "mlruns"), "two/", program(old_python, environment, "read", folder=source))


def test_file_store_of_mlflow_3_is_the_same_in_the_stack(stack: Clone, source: Path) -> None:
    run = in_image(stack, source, MLFLOW_TRACKING_URI=str(source / "mlruns"), MLFLOW_ALLOW_FILE_STORE="true")
    run("fill")
    assert_imported(stack, str(source / "mlruns"), "three/", run("read"))


def test_sqlite_file_of_mlflow_3_is_the_same_in_the_stack(stack: Clone, source: Path) -> None:
    run = in_image(stack, source, MLFLOW_TRACKING_URI=f"sqlite:///{source}/mlflow.db")
    run("fill")
    content = (source / "mlflow.db").read_bytes()
    assert_imported(stack, str(source / "mlflow.db"), "file/", run("read"))
    assert (source / "mlflow.db").read_bytes() == content


def test_server_of_mlflow_2_is_the_same_in_the_stack_and_what_it_does_not_give_is_named(
    stack: Clone, old_python: Path, source: Path
) -> None:
    with old_server(old_python, source) as url:
        environment = users_environment() | {"MLFLOW_TRACKING_URI": url, "ARTIFACTS": str(source / "artifacts")}
        program(old_python, environment, "fill", folder=source)
        assert_imported(stack, url, "old/", program(old_python, environment, "read", folder=source))
        (lost,) = (source / "artifacts").rglob("ümlaut 日本.json")
        lost.unlink()
        os.mknod(lost, stat.S_IFSOCK)  # is listed, and cannot be read
        trace = {"experiment_id": "0", "timestamp_ms": 1}
        assert requests.post(f"{url}/api/2.0/mlflow/traces", json=trace, timeout=60).ok
        done = stack.make("import", FROM=url, PREFIX="old/", YES="1")
        assert done.returncode != 0
        printed = " ".join((done.stdout + done.stderr).split())
        assert "Default: 1 traces, which a server of MLflow 2 does not give to later clients" in printed
        assert re.search(r"files/deep/ümlaut 日本.json cannot be read: 500", printed), printed


@pytest.mark.parametrize("accounts", [False, True])
def test_server_of_mlflow_3_is_the_same_in_the_stack(stack: Clone, accounts: bool) -> None:
    with server(stack, *["--app-name basic-auth"] * accounts) as (name, url):

        def run(action: str) -> str:
            environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"} | (account("MLFLOW_TRACKING") if accounts else {})
            options = [part for key, value in environment.items() for part in ("--env", f"{key}={value}")]
            return docker("exec", *options, name, "python3", "-W", "ignore", "/program.py", action)

        run("fill")
        if accounts:
            assert_account_is_needed(stack, url)
        assert_imported(stack, url, f"server{accounts}/", run("read"), **account("IMPORT") if accounts else {})


def test_ten_thousand_runs_with_a_million_points(stack: Clone, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    write(tmp_path / "mlruns", runs=10_000, points=100)
    start = time.monotonic()
    done = stack.make("import", FROM=str(tmp_path / "mlruns"), YES="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10000 files, different: none" in done.stderr
    seconds = time.monotonic() - start
    print(f"{seconds:.0f} s, {1_000_000 / seconds:,.0f} points a second, load {os.getloadavg()[0]:.0f}")  # noqa: T201
