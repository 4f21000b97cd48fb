"""The one object that the commands work on."""

import subprocess
from pathlib import Path

import pytest

from mlstack.host import env_file
from mlstack.host.stack import Stack
from mlstack.settings import SettingsError
from tests.support.projects import python, set_values, with_package, without

# Runs a command and says how often it opened .env.
COUNTING = """
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
from mlstack.host.cli import main
try:
    main()
finally:
    print("opened", sum(path.endswith("/.env") for path in opened), file=sys.stderr)
"""


@pytest.mark.parametrize("command", ["urls", "status", "doctor"])
def test_env_is_read_by_the_logger_and_once_for_the_command(project: Path, command: str) -> None:
    environment = with_package(project) | {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    done = subprocess.run(python(COUNTING, command), env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "opened 2", done.stderr


def test_stack_keeps_its_values_until_it_is_read_again(project: Path) -> None:
    stack = Stack.of(project)
    before = stack.values["POSTGRES_DB"]
    env_file.change(project, POSTGRES_DB="another")
    assert (stack.values["POSTGRES_DB"], stack.owner.database) == (before, before)
    assert stack.reread().owner.database == "another"


def test_stack_of_folder_without_env_has_the_name_of_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (Stack.of(tmp_path).name, Stack.of(tmp_path).env) == ("mlstack", None)
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "chosen")
    assert Stack.of(tmp_path).name == "chosen"


def test_stack_shows_no_secret(project: Path) -> None:
    stack = Stack.of(project)
    assert [secret for secret in (stack.backup_key, stack.owner.password, stack.keys.secret_key) if secret in repr(stack)] == []


def test_relative_folders_are_those_of_the_project(project: Path) -> None:
    set_values(project, BACKUP_DIR="copies/of mine", LOG_DIR="/var/log/mlstack")
    stack = Stack.of(project)
    assert (stack.backups, stack.logs) == (project / "copies/of mine", Path("/var/log/mlstack"))


def test_missing_value_is_named_when_it_is_needed(project: Path) -> None:
    (project / ".env").write_text(without(project, "BACKUP_DIR", "POSTGRES_PORT"))
    stack = Stack.of(project)
    with pytest.raises(SettingsError, match="BACKUP_DIR is missing or empty"):
        _ = stack.backups
    with pytest.raises(SettingsError, match="POSTGRES_PORT is missing or empty"):
        _ = stack.owner


def test_stack_of_a_link_to_env_elsewhere_reads_it_there(project: Path, tmp_path: Path) -> None:
    (project / ".env").rename(tmp_path / "kept")
    (project / ".env").symlink_to(tmp_path / "kept")
    assert Stack.of(project).env == (tmp_path / "kept").read_text()
