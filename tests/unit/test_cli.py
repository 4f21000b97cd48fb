import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.main import get_group

from mlstack import __version__
from mlstack.host.cli import app
from mlstack.host.compose import docker
from mlstack.host.lock import held
from mlstack.settings import VARIABLES, of_project
from tests.support.confirmation import decline
from tests.support.projects import NAME, set_values, with_package


@dataclass
class Commands:
    """Runs mlstack in a project of its own."""

    project: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mlstack", *arguments],
            cwd="/",
            env=with_package(self.project) | self.environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        with self.start(*arguments) as process:
            out, err = process.communicate()
        return process.returncode, out, err


@pytest.fixture
def commands(project: Path) -> Commands:
    return Commands(project)


@pytest.fixture
def volume() -> Iterator[str]:
    """A volume that looks like this stack's database."""
    volume = f"{NAME}_postgres"
    docker("volume", "create", "--label", f"com.docker.compose.project={NAME}", volume)
    yield volume
    docker("volume", "rm", "--force", volume)


def is_there(volume: str) -> bool:
    return volume in docker("volume", "ls", "--quiet").split()


def assert_three_lines(err: str, wrong: str) -> None:
    first, why, fix = err.splitlines()
    assert first.startswith("mlstack: ")
    assert wrong in first
    assert why.startswith("         ")
    assert why.strip()
    assert fix.startswith("         Fix: ")


# ---- errors ------------------------------------------------------------------------------------


def hide_docker(commands: Commands) -> None:
    commands.environment["PATH"] = "/nonexistent"


def break_a_quote(commands: Commands) -> None:
    set_values(commands.project, JUPYTER_TOKEN="'s3cr3tpart")


def break_the_encoding(commands: Commands) -> None:
    (commands.project / ".env").write_bytes(b"\xff\xfe")


def break_a_port(commands: Commands) -> None:
    set_values(commands.project, MLFLOW_PORT="[bold]x[/]")


def break_the_lock(commands: Commands) -> None:
    (commands.project / ".lock").mkdir()


@pytest.mark.parametrize(
    ("command", "condition", "wrong"),
    [
        ("down", hide_docker, "docker is not on the PATH"),
        ("logs", hide_docker, "docker is not on the PATH"),
        ("reset", hide_docker, "docker is not on the PATH"),
        ("env", break_a_quote, "(JUPYTER_TOKEN) is not KEY=value"),
        ("env", break_the_encoding, ".env cannot be read"),
        ("status", break_the_encoding, ".env cannot be read"),
        ("gc", break_the_encoding, ".env cannot be read"),
        ("urls", break_the_encoding, ".env cannot be read"),
        ("env", break_a_port, "MLFLOW_PORT=[bold]x[/]: expected a port"),
        ("urls", break_a_port, "MLFLOW_PORT=[bold]x[/]: expected a port"),
        ("down", break_the_lock, "the lock cannot be taken"),
    ],
)
def test_error_is_three_lines_and_exit_code_1(
    commands: Commands, command: str, condition: Callable[[Commands], None], wrong: str
) -> None:
    condition(commands)
    code, out, err = commands.run(command)
    assert (code, out) == (1, "")
    assert_three_lines(err, wrong)
    assert "s3cr3tpart" not in err


def test_several_errors_are_three_lines_each(commands: Commands) -> None:
    set_values(commands.project, MLFLOW_PORT="x", POSTGRES_DB="A")
    code, _, err = commands.run("env")
    lines = err.splitlines()
    assert (code, len(lines)) == (1, 6)
    assert_three_lines("\n".join(lines[:3]), "POSTGRES_DB=A")
    assert_three_lines("\n".join(lines[3:]), "MLFLOW_PORT=x")


def test_second_concurrent_command_is_rejected(commands: Commands) -> None:
    with held(commands.project, "make up"):
        code, _, err = commands.run("env")
    assert code == 1
    assert_three_lines(err, f"another command is at work on this stack: make up, process {os.getpid()}")


@pytest.mark.parametrize("arguments", [("nonsense",), ("up", "--nonsense"), ("status", "one-too-many")])
def test_wrong_command_line_is_exit_code_2(commands: Commands, arguments: tuple[str, ...]) -> None:
    code, out, err = commands.run(*arguments)
    assert (code, out) == (2, "")
    assert_three_lines(err, arguments[-1])


def test_the_version_is_the_packages(commands: Commands) -> None:
    assert commands.run("--version") == (0, f"mlstack {__version__}\n", "")


def test_mlstack_without_a_command_lists_the_commands(commands: Commands) -> None:
    code, out, err = commands.run()
    assert (code, err) == (2, "")
    assert all(f" {command} " in out for command in ("env", "up", "down", "reset", "status", "doctor", "gc", "logs", "urls"))


# The others write an .env first, or, as doctor, report that it is missing.
NEED_ENV = (
    "backup", "down", "gc", "import --from=mlruns", "key --name=shop", "key-remove --name=shop", "logs", "policy --model=delays",
    "remove scoring", "reset", "restore", "rotate", "status", "storage --to=minio", "upgrade", "urls", "user --name=ada",
    "user-remove --name=ada",
)  # fmt: skip


@pytest.mark.docker
def test_command_in_a_folder_without_env_says_so_and_what_writes_one(commands: Commands) -> None:
    (commands.project / ".env").unlink()
    commands.environment["COMPOSE_PROJECT_NAME"] = NAME
    for command in NEED_ENV:
        code, out, err = commands.run(*command.split())
        assert (code, out) == (1, ""), command
        assert_three_lines(err, "there is no .env here.")
    assert {command.split()[0] for command in NEED_ENV} | {"add", "doctor", "env", "up", "verify"} == set(get_group(app).commands)


@pytest.mark.docker
@pytest.mark.parametrize("arguments", [("logs",), ("logs", "mlflow")])
def test_logs_without_a_container_say_so(commands: Commands, arguments: tuple[str, ...]) -> None:
    code, out, err = commands.run(*arguments)
    assert (code, out) == (1, "")
    assert_three_lines(err, "there is no container.")


# ---- what commands say -------------------------------------------------------------------------


@pytest.mark.docker
def test_env_shows_no_secret(commands: Commands) -> None:
    (commands.project / ".env").unlink()
    commands.environment["COMPOSE_PROJECT_NAME"] = NAME
    code, out, err = commands.run("env")
    assert code == 0
    assert "wrote .env" in err
    values = of_project(commands.project)
    assert [name for name, variable in VARIABLES.items() if variable.secret and values[name] and values[name] in out + err] == []


def test_env_reports_what_it_added(commands: Commands) -> None:
    set_values(commands.project, JUPYTER_TOKEN="", LOG_LEVEL="")
    (commands.project / ".env").chmod(0o644)
    code, _, err = commands.run("env")
    assert code == 0
    assert "added to .env: JUPYTER_TOKEN, LOG_LEVEL" in err
    assert "now by you alone" in err


@pytest.mark.docker
def test_env_generates_no_password_that_an_existing_volume_rejects(commands: Commands, volume: str) -> None:
    set_values(commands.project, POSTGRES_PASSWORD="")
    before = (commands.project / ".env").read_bytes()
    code, _, err = commands.run("env")
    assert code == 1
    assert_three_lines(err, f"POSTGRES_PASSWORD is missing from .env, and a fresh one would not fit: the volume {volume}")
    assert (commands.project / ".env").read_bytes() == before


def test_status_does_not_wait_for_libraries_of_other_commands(commands: Commands) -> None:
    """They took most of its two seconds. `python -X importtime` prints to stderr what is imported."""
    commands.environment["PYTHONPROFILEIMPORTTIME"] = "1"
    _, _, err = commands.run("status")
    imported = {line.rpartition("|")[2].strip() for line in err.splitlines() if line.startswith("import time:")}
    assert "mlstack.host.status" in imported
    assert imported & {"minio", "tenacity", "mlstack.host.doctor", "mlstack.host.commands", "mlstack.host.backup.stack"} == set()


def test_status_of_a_stack_that_is_down_is_exit_code_1(commands: Commands) -> None:
    code, out, err = commands.run("status")
    assert (code, err) == (1, "")
    assert "The stack is down. make up starts it." in out


def test_urls_written_to_a_file_contain_no_secret(commands: Commands) -> None:
    set_values(commands.project, JUPYTER_PORT="18888")
    code, out, _ = commands.run("urls")
    assert code == 0
    assert "http://127.0.0.1:18888/lab\n" in out
    assert of_project(commands.project)["JUPYTER_TOKEN"] not in out


def test_urls_in_80_columns_are_not_broken(commands: Commands) -> None:
    set_values(commands.project, JUPYTER_PORT="18888")
    commands.environment |= {"FORCE_COLOR": "1", "COLUMNS": "80"}
    code, out, _ = commands.run("urls")
    assert code == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines()
    assert f"  http://jupyter.localhost:18888/lab?token={of_project(commands.project)['JUPYTER_TOKEN']}" in lines
    assert max(map(len, lines)) <= 80


# ---- reset -------------------------------------------------------------------------------------


@pytest.mark.docker
def test_reset_without_a_terminal_is_rejected(commands: Commands, volume: str) -> None:
    commands.environment |= {"COLUMNS": "200", "YES": "1"}
    code, out, err = commands.run("reset")
    assert code == 1
    assert_three_lines(err, "there is no terminal to ask at")
    assert "make reset YES=1" in err
    assert "every run, metric, model version and account" in out
    assert is_there(volume)


@pytest.mark.docker
@pytest.mark.parametrize("answer", [b"n\n", b"\n", None], ids=["no", "enter", "Ctrl-C"])
def test_reset_that_is_not_confirmed_deletes_nothing(commands: Commands, volume: str, answer: bytes | None) -> None:
    decline(lambda terminal: commands.start("reset", stdin=terminal), answer)
    assert is_there(volume)


@pytest.mark.docker
def test_reset_that_is_confirmed_deletes_this_stack_only(commands: Commands, volume: str) -> None:
    other = f"{NAME}-other_postgres"
    docker("volume", "create", "--label", f"com.docker.compose.project={NAME}-other", other)
    try:
        code, out, _ = commands.run("reset", "--yes")
        assert (code, is_there(volume), is_there(other)) == (0, False, True)
        assert "Deleted." in out
        assert (commands.project / ".env").exists()
    finally:
        with suppress(Exception):
            docker("volume", "rm", other)


@pytest.mark.docker
def test_reset_without_volumes_does_not_ask(commands: Commands) -> None:
    code, out, _ = commands.run("reset")
    assert code == 0
    assert "Deleted." in out
