"""A stack with work moves to an existing Postgres: over TLS, with an administrator who is no superuser."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlstack.host.backup import manifest, postgres
from mlstack.host.stack import Stack
from tests.support.certificates import Authority
from tests.support.clone import Clone
from tests.support.external_postgres import ExternalPostgres, external_postgres
from tests.support.moved import SECRETS, command, content, move
from tests.support.service import wait_until


@pytest.fixture(scope="module")
def server(stack: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExternalPostgres]:
    authority = Authority("a provider's own authority")
    with external_postgres(stack.image("postgres"), tmp_path_factory.mktemp("authority"), authority) as server:
        yield server


@pytest.fixture(scope="module")
def moved(stack: Clone, server: ExternalPostgres) -> Iterator[Clone]:
    before = (stack.folder / ".env").read_text()
    move(stack, server)
    yield stack
    (stack.folder / ".env").write_text(before)


def test_moved_stack_runs_without_its_own_postgres(moved: Clone) -> None:
    assert "postgres" not in Stack.of(moved.folder).containers
    shown = json.loads(command(moved, "status", JSON="1").stdout)
    service = next(item for item in shown["services"] if item["name"] == "postgres")
    assert (service["state"], service["is_healthy"], service["version"][:2]) == ("external", True, "17")


def test_every_session_of_the_stack_is_encrypted(moved: Clone, server: ExternalPostgres) -> None:
    stack = Stack.of(moved.folder)
    with postgres.connected(stack) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT usename, bool_and(ssl) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)"
            " WHERE datname = current_database() GROUP BY usename"
        )
        sessions = dict(cursor.fetchall())
    assert sessions.keys() >= {stack.tracking.user, server.administrator.user}
    assert all(sessions.values())


def test_doctor_finds_nothing_wrong_with_a_moved_stack(moved: Clone) -> None:
    results = json.loads(command(moved, "doctor", JSON="1").stdout)["checks"]
    assert [result for result in results if result["state"] == "failed"] == []
    assert {"login of POSTGRES_USER", "schema of tracking at head"} <= {
        result["name"] for result in results if result["state"] == "ok"
    }


@pytest.mark.refusal
def test_backup_of_an_external_server_shows_no_password_in_arguments(moved: Clone) -> None:
    before = content(moved)
    passwords = {moved.values[name] for name in SECRETS if moved.values[name]}
    seen: set[str] = set()
    with subprocess.Popen(["make", "backup"], cwd=moved.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:

        def ended() -> bool:
            seen.update(" ".join(item.info["cmdline"] or ()) for item in psutil.process_iter(["cmdline"]))
            return process.poll() is not None

        wait_until(ended, interval=0.02)
    assert process.returncode == 0
    assert [command for command in seen if "pg_dump" in command]
    assert not [command for command in seen for password in passwords if password in command]
    newest = manifest.folders(moved.folder / "backups")[0]
    assert manifest.read_manifest(newest).tables == before[0]


@pytest.mark.refusal
def test_moved_stack_does_not_start_with_a_certificate_that_it_cannot_verify(moved: Clone, tmp_path: Path) -> None:
    authority = moved.values["EXTERNAL_POSTGRES_CA"]
    (tmp_path / "other.pem").write_text(Authority("another authority").certificate)
    moved.set(EXTERNAL_POSTGRES_CA=str(tmp_path / "other.pem"))
    try:
        done = moved.make("up")
    finally:
        moved.set(EXTERNAL_POSTGRES_CA=authority)
    assert done.returncode != 0
    assert "is signed by no authority" in done.stderr
    assert re.search(r"Fix: .*EXTERNAL_POSTGRES_CA", " ".join(done.stderr.split()))
