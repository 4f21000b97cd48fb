"""Which stack a command reaches: in copied, renamed and second clones, with a copied and a lost `.env`."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlstack import settings
from mlstack.host.commands import start
from mlstack.host.compose import docker
from mlstack.host.stack import Stack
from tests.support.clone import Clone

# No container has these: their defaults are written again.
UNKNOWN_TO_CONTAINERS = {"BACKUP_DIR", "BACKUP_KEY", "LOG_DIR", "CA_BUNDLE"} | {
    name
    for name in settings.VARIABLES
    if name.startswith("SCORING_")  # the part is off
}


@pytest.fixture(scope="module")
def created(clone: Clone) -> Iterator[Clone]:
    """A stack with created containers and a running database."""
    start.build(start.check(Stack.of(clone.folder)))
    clone.compose("create")
    clone.compose("up", "--detach", "--no-deps", "postgres")
    yield clone
    clone.erase()


@pytest.fixture
def copy(created: Clone, tmp_path: Path) -> Clone:
    """The whole folder copied, with `.env` and `.venv`, as `cp -r` does."""
    shutil.copytree(created.folder, tmp_path / "copy", symlinks=True)
    return Clone(tmp_path / "copy", created.name)


def database_runs(clone: Clone) -> bool:
    return f"{clone.name}-postgres-1" in docker("ps", "--format", "{{.Names}}").split()


def test_commands_in_copied_folder_are_rejected_and_name_the_original(created: Clone, copy: Clone) -> None:
    for command in ("down", "reset", "rotate", "restore", "gc", "backup", "up", "env", "status", "urls"):
        done = copy.make(command, "YES=1", *(["BACKUP=latest"] if command == "restore" else []))
        assert done.returncode != 0, command
        assert f"the stack {created.name} was started from {created.folder}, not from {copy.folder}" in done.stderr, command
        assert "Fix: run it in" in done.stderr, command
    assert database_runs(created)


def test_copied_folder_with_a_name_of_its_own_has_a_stack_of_its_own(created: Clone, copy: Clone) -> None:
    copy.set(COMPOSE_PROJECT_NAME=f"{created.name}-copy")
    done = copy.make("reset", "YES=1")
    assert done.returncode == 0, done.stderr
    assert database_runs(created)
    assert str(copy.folder) in (copy.folder / ".venv/mlstack.lock").read_text()


def test_renamed_folder_keeps_its_stack(created: Clone, tmp_path: Path) -> None:
    renamed = created.folder.rename(tmp_path / "renamed")
    try:
        done = Clone(renamed, created.name).make("urls")
    finally:
        renamed.rename(created.folder)
    assert done.returncode == 0, done.stderr
    assert created.values["MLFLOW_PORT"] in done.stdout


def test_second_clone_without_env_has_nothing_to_reset(created: Clone, copy: Clone) -> None:
    (copy.folder / ".env").unlink()
    done = copy.make("reset", "YES=1", COMPOSE_PROJECT_NAME=f"{created.name}-other")
    assert done.returncode != 0
    assert "there is no .env here" in done.stderr
    assert database_runs(created)


def test_second_clone_cannot_take_the_name_of_the_first(created: Clone, copy: Clone) -> None:
    (copy.folder / ".env").unlink()
    done = copy.make("env", COMPOSE_PROJECT_NAME=created.name)
    assert done.returncode != 0
    assert f"was started from {created.folder}" in done.stderr
    assert not (copy.folder / ".env").exists()


def test_lost_env_is_restored_from_the_containers(created: Clone) -> None:
    path = created.folder / ".env"
    kept = path.with_name("kept")
    path.rename(kept)
    try:
        done = created.make("env", COMPOSE_PROJECT_NAME=created.name)
        again = settings.of_project(created.folder)
    finally:
        kept.replace(path)
    assert done.returncode == 0, done.stderr
    assert ".env was missing: wrote it with what the containers" in done.stderr
    before = created.values
    assert {name: again.get(name) for name in before if name not in UNKNOWN_TO_CONTAINERS} == {
        name: value for name, value in before.items() if name not in UNKNOWN_TO_CONTAINERS
    }


def test_lost_env_without_containers_is_not_replaced_by_new_secrets(created: Clone) -> None:
    created.compose("down")
    path = created.folder / ".env"
    kept = path.rename(path.with_name("kept"))
    try:
        done = created.make("up", COMPOSE_PROJECT_NAME=created.name)
        is_written = path.exists()
    finally:
        kept.replace(path)
    assert done.returncode != 0
    assert "POSTGRES_PASSWORD is missing from .env" in done.stderr
    assert "put the old .env back" in done.stderr
    assert not is_written
