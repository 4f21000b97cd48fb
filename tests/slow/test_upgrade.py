"""From a real MLflow 2.22 to ours: nothing is lost, whether the upgrade succeeds, fails or is killed half-way."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from mlstack.host.backup import postgres
from mlstack.host.compose import docker
from mlstack.host.stack import Stack
from mlstack.postgres import connected
from tests.support.clone import Clone, free_ports
from tests.support.service import wait_until
from tests.support.work import admin, everything, finished, started

NOBODY = ("", "")


@pytest.fixture(scope="module")
def before(clone: Clone, old_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The work of an old MLflow in the stack's database and bucket, as its own client shows it."""
    clone.compose("build", "--quiet", "postgres", "minio", "mlflow")
    clone.compose("up", "--detach", "--wait", "postgres", "minio")
    clone.compose("run", "--rm", "--no-deps", "--no-TTY", "bootstrap")
    clone.compose("down")
    docker("image", "rm", f"{clone.name}-mlflow")  # this MLflow has never used the database
    clone.compose("up", "--detach", "--wait", "--no-build", "postgres", "minio")
    with old_mlflow(clone, old_python, tmp_path_factory.mktemp("server")) as uri:
        finished(started(uri, NOBODY, "fill", "--runs=9", "--megabytes=12", "--awkward=0", python=old_python))
        work = json.loads(finished(started(uri, NOBODY, "read", python=old_python)))
    assert len(work["models"]) == 2
    yield work
    clone.erase()


@contextmanager
def old_mlflow(clone: Clone, python: Path, folder: Path) -> Iterator[str]:
    values = clone.values
    (port,) = free_ports(1)
    uri = f"http://127.0.0.1:{port}"
    tables = f"postgresql+psycopg2://{values['MLFLOW_DB_USER']}@127.0.0.1:{values['POSTGRES_PORT']}/{values['POSTGRES_DB']}"
    environment = {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "PGPASSWORD": values["MLFLOW_DB_PASSWORD"],
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{values['MINIO_PORT']}",
        "AWS_ACCESS_KEY_ID": values["MLFLOW_S3_ACCESS_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": values["MLFLOW_S3_SECRET_ACCESS_KEY"],
    }
    command = [
        str(python.parent / "mlflow"), "server", "--host=127.0.0.1", f"--port={port}", "--workers=1",
        f"--backend-store-uri={tables}", f"--artifacts-destination=s3://{values['MINIO_BUCKET']}",
    ]  # fmt: skip
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        wait_until(lambda: answers(f"{uri}/version", server), 120)
        assert requests.get(f"{uri}/version", timeout=60).text.startswith("2.22")
        yield uri
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def answers(url: str, server: subprocess.Popen[bytes]) -> bool:
    assert server.poll() is None, "the old MLflow ended"
    try:
        return requests.get(url, timeout=60).ok
    except requests.ConnectionError:
        return False


def rows(clone: Clone, statement: str) -> list[tuple[object, ...]]:
    with connected(Stack.of(clone.folder).tracking, 30) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def all_tables(clone: Clone) -> dict[str, object]:
    target = Stack.of(clone.folder)
    with postgres.connected(target) as connection:
        return dict(postgres.tables(target, connection))


def leftovers(clone: Clone) -> list[str]:
    names = [
        str(name) for (name,) in rows(clone, "SELECT datname FROM pg_database WHERE datname ~ '_(before|replaced|restoring)'")
    ]
    return names + docker("image", "ls", "--quiet", "--filter", f"reference={clone.name}-*:before-upgrade").split()


def test_failed_migration_leaves_the_old_data_unchanged(clone: Clone, before: dict[str, Any]) -> None:
    rows_before = all_tables(clone)
    with connected(Stack.of(clone.folder).tracking) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE logged_models (in_the_way int)")  # a later migration creates a table of this name
    done = clone.make("upgrade")
    assert done.returncode != 0
    assert "the upgrade failed" in done.stderr
    assert "The stack is as it was before: same images, same data." in done.stderr
    assert "Traceback" not in done.stderr.rpartition("going back")[2]
    with connected(Stack.of(clone.folder).tracking) as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE logged_models")
    assert all_tables(clone) == rows_before
    assert leftovers(clone) == []


def test_ctrl_c_in_the_migration_rolls_back_at_once(clone: Clone, before: dict[str, Any]) -> None:
    rows_before = all_tables(clone)
    code, output = stopped_in_the_migration(clone, signal.SIGINT)
    assert code == 130
    assert "Stopped. Nothing is broken" in output
    assert "the stack is as it was before the upgrade" in output
    assert all_tables(clone) == rows_before
    assert leftovers(clone) == []


def test_upgrade_undoes_a_killed_upgrade_and_loses_nothing(clone: Clone, before: dict[str, Any]) -> None:
    code, _ = stopped_in_the_migration(clone, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert len(leftovers(clone)) > 0
    done = clone.make("upgrade")
    assert done.returncode == 0, done.stderr
    assert "an upgrade was interrupted: going back to what was before it" in done.stderr
    assert "MLflow's data was made by another MLflow, now 3." in done.stdout
    assert leftovers(clone) == []
    after = everything(clone)
    assert after["models"] == before["models"]
    assert after["experiments"] == before["experiments"]


def test_upgraded_stack_takes_new_work_and_upgrades_again(clone: Clone, before: dict[str, Any]) -> None:
    uri, account = admin(clone)
    finished(started(uri, account, "fill", "--runs=3", "--points=300", "--megabytes=1", "--seed=2"))
    now = everything(clone)
    done = clone.make("upgrade")
    assert done.returncode == 0, done.stderr
    assert everything(clone) == now


def stopped_in_the_migration(clone: Clone, how: signal.Signals) -> tuple[int, str]:
    """Sends a signal to `make upgrade` while MLflow's tables are being migrated."""
    process = subprocess.Popen(
        [".venv/bin/mlstack", "upgrade"],
        cwd=clone.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    running = ("ps", "--quiet", "--filter", f"name=^{clone.name}-migration-1$", "--filter", "status=running")
    wait_until(lambda: bool(docker(*running).strip()) or process.poll() is not None, 300)
    assert process.poll() is None
    os.killpg(process.pid, how)
    _, output = process.communicate(timeout=300)
    return process.returncode, output
