import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlstack.errors import MlstackError
from mlstack.host import preflight
from mlstack.host.stack import Stack
from tests.support.clone import PORTS, free_ports
from tests.support.projects import set_values


@pytest.fixture
def ready(project: Path) -> Path:
    """A project that could start here: its ports are free."""
    ports = map(str, free_ports(len(PORTS)))
    set_values(project, **dict(zip(PORTS, ports, strict=True)))
    return project


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])  # noqa: S104
def used_port(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port that this process really listens on."""
    with socket.socket() as listener:
        listener.bind((request.param, 0))
        listener.listen()
        yield listener.getsockname()[1]


def checked(project: Path, *, will_build: bool = False) -> list[MlstackError]:
    return preflight.check(Stack.of(project), will_build=will_build)


@pytest.mark.docker
def test_check_of_a_project_that_can_start_reports_nothing(ready: Path) -> None:
    assert checked(ready) == []


@pytest.mark.docker
def test_check_names_the_process_and_the_variable_of_a_port_in_use(
    ready: Path, used_port: int, subtests: pytest.Subtests
) -> None:
    env = (ready / ".env").read_text()
    for name in PORTS:
        with subtests.test(name=name):
            (ready / ".env").write_text(env)
            set_values(ready, COMPOSE_PROFILES="*", **{name: str(used_port)})
            (problem,) = checked(ready)
            assert problem.wrong == f"port {used_port} is used by {psutil.Process().name()} (process {os.getpid()})."
            assert problem.why == f"{name} needs it."
            assert f"set {name} in .env" in problem.fix


@pytest.mark.docker
def test_check_lets_the_port_of_a_part_that_is_off_be_used(ready: Path, used_port: int) -> None:
    set_values(ready, SCORING_PORT=str(used_port))
    assert checked(ready) == []


@pytest.mark.docker
def test_check_accepts_a_port_that_was_just_closed(ready: Path) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0] as server:
            server.close()  # first, so that this end is the one in TIME_WAIT
    set_values(ready, JUPYTER_PORT=str(port))
    assert checked(ready) == []


@pytest.mark.docker
def test_check_names_both_variables_of_a_port_that_is_set_twice(ready: Path) -> None:
    (port,) = free_ports(1)
    set_values(ready, MINIO_PORT=str(port), JUPYTER_PORT=str(port))
    (problem,) = checked(ready)
    assert (problem.wrong, problem.why) == (f"port {port} is used by MINIO_PORT too.", "JUPYTER_PORT needs it.")


@pytest.mark.docker
def test_check_reports_all_problems_at_once(ready: Path, used_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_values(ready, MLFLOW_PORT=str(used_port), JUPYTER_PORT=str(used_port))
    monkeypatch.setattr(preflight, "MIN_MEMORY_GIB", 10**6)
    monkeypatch.setattr(preflight, "MIN_DISK_GIB", 10**6)
    words = ["is used by", "is used by MLFLOW_PORT too", "too little memory", "too little free disk"]
    assert [word in problem.wrong for word, problem in zip(words, checked(ready), strict=True)] == [True] * 4


def test_check_reports_a_wrong_env_file_first(ready: Path, used_port: int) -> None:
    set_values(ready, MLFLOW_PORT=str(used_port), POSTGRES_PORT="x")
    (problem,) = checked(ready)
    assert problem.wrong == "POSTGRES_PORT=x: expected a port from 1 to 65535."


@pytest.mark.docker
def test_check_reports_too_little_memory_with_both_numbers(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "MIN_MEMORY_GIB", 10**6)
    (problem,) = checked(ready)
    assert re.fullmatch(r"too little memory for Docker: expected at least 1000000 GiB, found [1-9]\d*\.\d\.", problem.wrong)


@pytest.mark.docker
@pytest.mark.parametrize(("will_build", "limit"), [(True, "MIN_DISK_GIB_TO_BUILD"), (False, "MIN_DISK_GIB")])
def test_check_reports_too_little_disk_with_both_numbers(
    ready: Path, monkeypatch: pytest.MonkeyPatch, will_build: bool, limit: str
) -> None:
    monkeypatch.setattr(preflight, limit, 10**6)
    (problem,) = checked(ready, will_build=will_build)
    assert re.fullmatch(r"too little free disk at /.*: expected at least 1000000 GiB, found \d+\.\d\.", problem.wrong)
    assert [problem.wrong for problem in checked(ready, will_build=not will_build)] == []


def test_warnings_report_unknown_keys_and_values_of_the_shell(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert preflight.warnings(Stack.of(ready)) == []
    with (ready / ".env").open("a") as file:
        file.write("LOG_LEVLE=DEBUG\n")
    monkeypatch.setenv("POSTGRES_DB", "another")
    assert preflight.warnings(Stack.of(ready)) == [
        ".env has a key that nothing reads: LOG_LEVLE (did you mean LOG_LEVEL?)",
        "POSTGRES_DB comes from your shell, not from .env, and they differ",
    ]
