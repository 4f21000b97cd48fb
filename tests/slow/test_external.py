"""Every command on a stack that moved to an existing Postgres, and the way back."""

from collections.abc import Iterator

import pytest

from mlstack.host.stack import Stack
from tests.support.certificates import Authority
from tests.support.clone import Clone
from tests.support.external_postgres import ExternalPostgres, external_postgres
from tests.support.moved import command, content, move


@pytest.fixture(scope="module")
def server(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExternalPostgres]:
    with clone.started():
        authority = Authority("a provider's own authority")
        with external_postgres(clone.image("postgres"), tmp_path_factory.mktemp("authority"), authority) as server:
            yield server


@pytest.fixture(scope="module")
def moved(clone: Clone, server: ExternalPostgres) -> Clone:
    move(clone, server)
    return clone


def test_compose_itself_starts_a_moved_stack(moved: Clone) -> None:
    before = content(moved)
    moved.compose("down", "--timeout", "10")
    moved.compose("up", "--detach", "--wait", "--no-build")
    assert "postgres" not in Stack.of(moved.folder).containers
    assert content(moved) == before


def test_gc_and_rotate_work_on_a_moved_stack(moved: Clone, server: ExternalPostgres) -> None:
    command(moved, "gc", OLDER_THAN="0d", YES="1")
    before, secrets = content(moved), moved.values
    assert f"the password of {server.administrator.user} stays" in command(moved, "rotate", YES="1").stderr
    # That of the stack's own server too: its volume knows no other.
    for name in ("EXTERNAL_POSTGRES_PASSWORD", "POSTGRES_PASSWORD"):
        assert moved.values[name] == secrets[name]
    assert moved.values["MLFLOW_DB_PASSWORD"] != secrets["MLFLOW_DB_PASSWORD"]
    assert content(moved)[2] == before[2]


def test_with_the_roles_logins_only_the_stack_runs_and_what_needs_an_administrator_says_so(moved: Clone) -> None:
    login = {name: moved.values[name] for name in ("EXTERNAL_POSTGRES_USER", "EXTERNAL_POSTGRES_PASSWORD")}
    before = content(moved)
    moved.set(**dict.fromkeys(login, ""))
    try:
        command(moved, "up")
        assert content(moved) == before
        command(moved, "backup")
        done = moved.make("restore", BACKUP="latest", YES="1")
        assert done.returncode == 2  # make's exit code for a failed command
        assert "set EXTERNAL_POSTGRES_USER and EXTERNAL_POSTGRES_PASSWORD" in " ".join(done.stderr.split())
        command(moved, "rotate", YES="1")
        assert content(moved)[2] == before[2]
    finally:
        moved.set(**login)


def test_verify_and_upgrade_work_on_a_moved_stack(moved: Clone) -> None:
    before = content(moved)
    assert "is good" in command(moved, "verify").stdout
    assert "Upgraded" in command(moved, "upgrade").stdout
    assert content(moved)[1:] == before[1:]


def test_stack_moves_back_to_its_own_postgres(moved: Clone) -> None:
    before = content(moved)
    command(moved, "backup")
    moved.set(EXTERNAL_POSTGRES="")  # the volume has the passwords from before make rotate
    command(moved, "restore", BACKUP="latest", YES="1")
    assert "postgres" in Stack.of(moved.folder).containers
    assert content(moved) == before
