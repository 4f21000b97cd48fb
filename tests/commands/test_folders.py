"""Which stack a command reaches: in copied, renamed and second clones, with a copied and a lost `.env`."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlstack import settings
from mlstack.host.compose import docker
from tests.support.clone import Clone

# No container has these: their defaults are written again.
UNKNOWN_TO_CONTAINERS = {"BACKUP_DIR", "BACKUP_KEY", "LOG_DIR", "CA_BUNDLE"} | {
    name
    for name in settings.VARIABLES
    if name.startswith(("SCORING_", "SERVING_", "DECISION_", "GATEWAY_", "RAY_"))  # the parts are off
}


@pytest.fixture(scope="module")
def whole_copy(stack: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The whole folder copied, with `.env` and `.venv`, as `cp -r` does."""
    folder = tmp_path_factory.mktemp("copied") / "copy"
    shutil.copytree(stack.folder, folder, symlinks=True)
    return Clone(folder, stack.name)


@pytest.fixture
def copy(stack: Clone, whole_copy: Clone) -> Clone:
    """The copy, with the `.env` of the original."""
    shutil.copy2(stack.folder / ".env", whole_copy.folder)
    return whole_copy


def database_runs(clone: Clone) -> bool:
    return f"{clone.name}-postgres-1" in docker("ps", "--format", "{{.Names}}").split()


def test_commands_in_copied_folder_are_rejected_and_name_the_original(stack: Clone, copy: Clone) -> None:
    for command in ("down", "reset", "rotate", "restore", "gc", "backup", "up", "env", "status", "urls"):
        done = copy.make(command, "YES=1", *(["BACKUP=latest"] if command == "restore" else []))
        assert done.returncode != 0, command
        assert f"the stack {stack.name} was started from {stack.folder}, not from {copy.folder}" in done.stderr, command
        assert "Fix: run it in" in done.stderr, command
    assert database_runs(stack)


def test_copied_folder_with_a_name_of_its_own_has_a_stack_of_its_own(stack: Clone, copy: Clone) -> None:
    copy.set(COMPOSE_PROJECT_NAME=f"{stack.name}-copy")
    done = copy.make("reset", "YES=1")
    assert done.returncode == 0, done.stderr
    assert database_runs(stack)
    assert str(copy.folder) in (copy.folder / ".venv/mlstack.lock").read_text()


def test_renamed_folder_keeps_its_stack(stack: Clone, tmp_path: Path) -> None:
    renamed = stack.folder.rename(tmp_path / "renamed")
    try:
        done = Clone(renamed, stack.name).make("urls")
    finally:
        renamed.rename(stack.folder)
    assert done.returncode == 0, done.stderr
    assert stack.values["MLFLOW_PORT"] in done.stdout


def test_second_clone_without_env_has_nothing_to_reset(stack: Clone, copy: Clone) -> None:
    (copy.folder / ".env").unlink()
    done = copy.make("reset", "YES=1", COMPOSE_PROJECT_NAME=f"{stack.name}-other")
    assert done.returncode != 0
    assert "there is no .env here" in done.stderr
    assert database_runs(stack)


def test_second_clone_cannot_take_the_name_of_the_first(stack: Clone, copy: Clone) -> None:
    (copy.folder / ".env").unlink()
    done = copy.make("env", COMPOSE_PROJECT_NAME=stack.name)
    assert done.returncode != 0
    assert f"was started from {stack.folder}" in done.stderr
    assert not (copy.folder / ".env").exists()


def test_lost_env_is_restored_from_the_containers(stack: Clone) -> None:
    path = stack.folder / ".env"
    kept = path.with_name("kept")
    path.rename(kept)
    try:
        done = stack.make("env", COMPOSE_PROJECT_NAME=stack.name)
        again = settings.of_project(stack.folder)
    finally:
        kept.replace(path)
    assert done.returncode == 0, done.stderr
    assert ".env was missing: wrote it with what the containers" in done.stderr
    before = stack.values
    assert {name: again.get(name) for name in before if name not in UNKNOWN_TO_CONTAINERS} == {
        name: value for name, value in before.items() if name not in UNKNOWN_TO_CONTAINERS
    }


@pytest.fixture
def volume(stack: Clone) -> Iterator[str]:
    """The name of a stack of which only the database's volume is left."""
    name = f"{stack.name}-left"
    docker("volume", "create", "--label", f"com.docker.compose.project={name}", f"{name}_postgres")
    yield name
    docker("volume", "rm", f"{name}_postgres")


def test_lost_env_without_containers_is_not_replaced_by_new_secrets(copy: Clone, volume: str) -> None:
    (copy.folder / ".env").unlink()
    done = copy.make("up", COMPOSE_PROJECT_NAME=volume)
    assert done.returncode != 0
    assert "POSTGRES_PASSWORD is missing from .env" in done.stderr
    assert "put the old .env back" in done.stderr
    assert not (copy.folder / ".env").exists()
