"""The checks that need no running stack, each in a project that is really broken; and how checks run."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mlstack.errors import MlstackError
from mlstack.host import engine, preflight, services
from mlstack.host.compose import docker
from mlstack.host.doctor import Limits, Result, State, Subject, checks, diagnose, environment, machine
from mlstack.host.doctor import stack as stack_checks
from mlstack.host.doctor.check import Check, CheckWarning, check, run
from mlstack.host.doctor.stack import service
from mlstack.host.render import doctor
from mlstack.host.stack import Stack
from tests.support.clone import PORTS, free_ports
from tests.support.doctor import CHECKS, result_of
from tests.support.projects import NAME, ROOT, python, set_values, without

DOCTOR = ROOT / "src/mlstack/host/doctor"
ENVIRONMENT = [item for item in CHECKS if item.reach in (machine.REACH, environment.REACH)]


@pytest.fixture
def ready(project: Path) -> Path:
    """A project that can start here."""
    shutil.copytree(ROOT / "scripts", project / "scripts")
    ports = map(str, free_ports(len(PORTS)))
    set_values(project, **dict(zip(PORTS, ports, strict=True)))
    return project


def assert_failed(result: Result, cause: str, fix: str) -> None:
    assert result.state is State.FAILED
    assert re.search(cause, result.cause), result
    assert re.search(fix, result.fix), result
    assert result.why


@pytest.mark.docker
def test_checks_of_a_project_that_can_start_pass(ready: Path) -> None:
    assert [result for result in run(Subject(Stack.of(ready)), ENVIRONMENT) if result.state is not State.OK] == []


def test_every_defined_check_runs_and_has_a_unique_name() -> None:
    defined = sum(text.count("@check(") for text in (path.read_text() for path in DOCTOR.glob("*.py")))
    with_parts = checks(services.read(ROOT, {"COMPOSE_PROFILES": "scoring,gateway,ray"}))
    assert len({(item.examine.__module__, item.examine.__qualname__) for item in with_parts}) == defined + 1  # that of a service
    assert len({item.name for item in with_parts}) == len(with_parts)
    assert {item.reach for item in with_parts} - {item.reach for item in CHECKS} == {"scoring", "gateway", "ray"}


def test_check_runs_after_the_checks_it_needs() -> None:
    asked: set[Check] = set()
    for item in CHECKS:
        assert set(item.needs) <= asked, item.name
        asked.add(item)


# ---- how checks are run -----------------------------------------------------------------------


def test_failed_check_is_reported_once_and_skips_its_dependents(ready: Path) -> None:
    @check("here", "first")
    def first(subject: Subject) -> str:
        raise MlstackError("the cause.", "It matters.", "the fix")

    @check("here", "second", first)
    def second(subject: Subject) -> str:
        raise AssertionError("must not be asked")

    @check("here", "third", second)
    def third(subject: Subject) -> str:
        raise AssertionError("must not be asked")

    @check("here", "fourth")
    def fourth(subject: Subject) -> str:
        return "found"

    results = list(run(Subject(Stack.of(ready)), (first, second, third, fourth)))
    assert [result.state for result in results] == [State.FAILED, State.NOT_CHECKED, State.NOT_CHECKED, State.OK]
    assert [result.ok for result in results] == [False, False, False, True]
    assert {result.cause for result in results[:3]} == {"the cause."}
    assert "– 2 not checked: the cause." in doctor.end(results)
    assert "1 of 4 checks failed" in doctor.end(results)


def test_check_with_a_warning_skips_no_dependent(ready: Path) -> None:
    @check("here", "first")
    def first(subject: Subject) -> str:
        raise CheckWarning("odd.", "It may be meant.", "look")

    @check("here", "second", first)
    def second(subject: Subject) -> None:
        return None

    results = list(run(Subject(Stack.of(ready)), (first, second)))
    assert [(result.state, result.ok) for result in results] == [(State.WARNING, True), (State.OK, True)]


def test_check_with_an_unexpected_error_fails_without_traceback(ready: Path) -> None:
    @check("here", "first")
    def first(subject: Subject) -> str:
        return str(1 / 0)

    (result,) = run(Subject(Stack.of(ready)), (first,))
    assert (result.state, result.cause) == (State.FAILED, "ZeroDivisionError: division by zero")


# ---- the host ---------------------------------------------------------------------------------


def test_unavailable_engine_is_one_failure_and_the_rest_is_checked(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    (ready / ".env").chmod(0o644)
    results = {result.name: result for result in diagnose(Stack.of(ready))}
    failed = {name for name, result in results.items() if result.state is State.FAILED}
    assert failed == {machine.engine.name, environment.permissions.name}
    assert_failed(
        results[machine.engine.name], "its engine does not answer at DOCKER_HOST=unix:///nonexistent", "start Docker Desktop"
    )
    unasked = {result.cause for result in results.values() if result.state is State.NOT_CHECKED}
    assert unasked == {results[machine.engine.name].cause}


@pytest.mark.docker
def test_memory_check_reports_too_little_memory(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "MIN_MEMORY_GIB", 10**6)
    assert_failed(result_of(Subject(Stack.of(ready)), machine.memory), "expected at least 1000000 GiB, found", "give Docker more")


@pytest.mark.docker
def test_disk_check_reports_a_nearly_full_disk(ready: Path) -> None:
    result = result_of(Subject(Stack.of(ready), Limits(disk_gib=10**6)), machine.disk)
    assert_failed(result, r"too little free disk at /.*: expected at least 1000000 GiB, found \d", "free some room")


@pytest.mark.docker
def test_inode_check_reports_a_disk_without_inodes(ready: Path) -> None:
    result = result_of(Subject(Stack.of(ready), Limits(free_inodes=10**15)), machine.inodes)
    assert_failed(result, r"too few free inodes at /.*: expected at least 10{15}, found \d", "df -i")


@pytest.mark.docker
@pytest.mark.parametrize("hours", [1, -1])
def test_clock_check_reports_a_wrong_clock(ready: Path, hours: int) -> None:
    result = result_of(Subject(Stack.of(ready), now=lambda: time.time() + hours * 3600), machine.clock)
    assert_failed(result, r"the clock of the Docker engine is 3[56]\d\d s off", "timedatectl")


def test_lock_check_names_another_running_command(ready: Path) -> None:
    program = (
        "import sys, pathlib; from mlstack.host.lock import held\n"
        "with held(pathlib.Path(sys.argv[1]), 'make up'): print(flush=True); input()"
    )
    with subprocess.Popen(python(program, str(ready)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        result = result_of(Subject(Stack.of(ready)), machine.lock_is_free)
        other.stdin.write(b"\n")
    assert result.state is State.WARNING
    assert f"make up, process {other.pid}" in result.cause
    assert result_of(Subject(Stack.of(ready)), machine.lock_is_free).state is State.OK


# ---- settings ---------------------------------------------------------------------------------


def test_env_check_reports_everything_wrong_at_once(ready: Path) -> None:
    set_values(ready, MLFLOW_PORT="x", POSTGRES_DB="A")
    result = result_of(Subject(Stack.of(ready)), environment.env)
    assert_failed(result, r"POSTGRES_DB=A: expected .*MLFLOW_PORT=x: expected a port", r"edit \.env")


def test_env_check_reports_a_missing_file(ready: Path) -> None:
    (ready / ".env").unlink()
    assert_failed(result_of(Subject(Stack.of(ready)), environment.env), r"\.env is missing \(make env writes it\)", r"\.env")


def test_keys_check_reports_a_key_that_only_the_shell_sets(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (ready / ".env").write_text(without(ready, "LOG_LEVEL"))
    (ready / ".env").chmod(0o600)
    monkeypatch.setenv("LOG_LEVEL", "INFO")
    assert_failed(result_of(Subject(Stack.of(ready)), environment.keys), r"\.env lacks LOG_LEVEL", "make env adds them")


def test_keys_check_warns_of_an_unknown_key(ready: Path) -> None:
    with (ready / ".env").open("a") as file:
        file.write("LOG_LEVLE=DEBUG\n")
    result = result_of(Subject(Stack.of(ready)), environment.keys)
    assert (result.state, result.cause) == (
        State.WARNING, ".env has keys that nothing reads: LOG_LEVLE (did you mean LOG_LEVEL?).",
    )  # fmt: skip


def test_shell_check_warns_of_a_variable_that_overrides_env(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_DB", "another")
    result = result_of(Subject(Stack.of(ready)), environment.shell)
    assert result.state is State.WARNING
    assert "POSTGRES_DB comes from your shell" in result.cause
    assert "unset POSTGRES_DB" in result.fix


def test_permissions_check_reports_a_file_that_others_can_read(ready: Path) -> None:
    (ready / ".env").chmod(0o640)
    assert_failed(result_of(Subject(Stack.of(ready)), environment.permissions), r"read by others .*mode 0640", r"chmod 600 \.env")


def test_certificates_check_reports_a_missing_bundle(ready: Path) -> None:
    set_values(ready, CA_BUNDLE="/nonexistent.pem")
    assert_failed(
        result_of(Subject(Stack.of(ready)), environment.certificates), "CA_BUNDLE=/nonexistent.pem is not there", "/dev/null"
    )


@pytest.mark.parametrize("name", ["notebooks", "logs/jupyter"])
def test_folders_check_reports_a_folder_that_containers_cannot_write(ready: Path, name: str) -> None:
    folder = ready / name
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    set_values(ready, HOST_UID=str(folder.stat().st_uid + 1))
    assert_failed(result_of(Subject(Stack.of(ready)), environment.folders), f"{folder} belongs to uid", "sudo chown -R")
    folder.chmod(0o777)
    assert result_of(Subject(Stack.of(ready)), environment.folders).ok


@pytest.mark.docker
def test_compose_check_reports_an_invalid_compose_file(ready: Path) -> None:
    with (ready / "docker-compose.yml").open("a") as file:
        file.write("nonsense: true\n")
    assert_failed(
        result_of(Subject(Stack.of(ready)), environment.compose), "compose cannot read .*nonsense", "fix docker-compose.yml"
    )


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.docker
def test_ports_check_names_the_program_that_uses_a_port(ready: Path, taken: int) -> None:
    set_values(ready, MLFLOW_PORT=str(taken))
    result = result_of(Subject(Stack.of(ready)), environment.ports)
    assert_failed(result, rf"port {taken} is used by .* \(process {os.getpid()}\)", "set MLFLOW_PORT in .env")


# ---- containers that a running stack does not have ----------------------------------------------


@pytest.fixture
def container(ready: Path) -> Iterator[object]:
    """Starts containers that look like compose's, and removes them."""
    started: list[str] = []

    def start(name: str, *options: str, command: str = "sleep infinity") -> engine.Container:
        labels = {
            engine.PROJECT_LABEL: NAME, engine.SERVICE_LABEL: name,
            engine.HASH_LABEL: "x", engine.FOLDER_LABEL: str(ready),
        }  # fmt: skip
        flags = [flag for label, value in labels.items() for flag in ("--label", f"{label}={value}")]
        started.append(docker("run", "--detach", *flags, *options, "debian:trixie-slim", "sh", "-c", command).strip())
        return next(item for item in engine.connect().containers(NAME) if item.id == started[-1])

    yield start
    for item in started:
        docker("rm", "--force", item)


def until(subject: Subject, check: Check, cause: str, seconds: float = 180) -> Result:
    deadline = time.monotonic() + seconds
    while True:
        result = result_of(replace(subject, seen={}), check)
        if re.search(cause, result.cause):
            return result
        assert time.monotonic() < deadline, result
        time.sleep(0.2)


@pytest.mark.docker
def test_service_check_reports_the_output_of_a_failed_healthcheck(ready: Path, container: object) -> None:
    container("mlflow", "--health-cmd", "echo no database; false", "--health-interval", "1s", "--health-retries", "1")  # type: ignore[operator]
    result = until(Subject(Stack.of(ready)), service("mlflow"), "unhealthy")
    assert_failed(result, "mlflow is unhealthy: no database", "make logs SERVICE=mlflow")


@pytest.mark.docker
def test_service_check_reports_a_restarting_service(ready: Path, container: object) -> None:
    container("mlflow", "--restart", "always", command="sleep 0.5")  # type: ignore[operator]
    result = until(Subject(Stack.of(ready)), service("mlflow"), "come back")
    assert re.search(r"mlflow has died and come back \d+ times", result.cause)


@pytest.mark.docker
def test_service_check_reports_a_service_that_was_killed_for_its_memory(ready: Path, container: object) -> None:
    container("postgres")  # type: ignore[operator]
    eat = "tail -c 200M /dev/zero | sort >/dev/null"
    container("mlflow", "--memory", "20m", "--memory-swap", "20m", command=f"{eat}; exit 137")  # type: ignore[operator]
    result = until(Subject(Stack.of(ready)), service("mlflow"), "killed")
    assert_failed(result, r"mlflow was killed for want of memory \(exit code 137\)", "make up")


@pytest.mark.docker
def test_service_check_reports_a_service_without_a_container(ready: Path, container: object) -> None:
    container("postgres")  # type: ignore[operator]
    assert_failed(until(Subject(Stack.of(ready)), service("minio"), "no container"), "minio has no container", "make up")


@pytest.mark.docker
def test_one_shots_check_reports_a_failed_one_shot(ready: Path, container: object) -> None:
    container("postgres")  # type: ignore[operator]
    container("bootstrap", command="exit 3")  # type: ignore[operator]
    result = until(Subject(Stack.of(ready)), stack_checks.one_shots, "failed")
    assert_failed(result, "bootstrap failed at the last start", "make logs SERVICE=bootstrap")


@pytest.mark.docker
def test_loopback_check_reports_a_port_open_to_the_network(ready: Path, container: object) -> None:
    (port,) = free_ports(1)
    container("postgres", "--publish", f"0.0.0.0:{port}:5432")  # type: ignore[operator]
    result = until(Subject(Stack.of(ready)), stack_checks.loopback, "open")
    assert_failed(result, rf"a port is open to the network: 0\.0\.0\.0:{port}", "publish it on 127.0.0.1")


@pytest.mark.docker
def test_containers_ignores_what_compose_did_not_start(ready: Path) -> None:
    labels = ["--label", f"{engine.PROJECT_LABEL}={NAME}", "--label", f"{engine.SERVICE_LABEL}=mlflow"]
    started = docker("run", "--detach", *labels, "debian:trixie-slim", "sleep", "60").strip()
    try:
        assert engine.connect().containers(NAME) == []
    finally:
        docker("rm", "--force", started)


def test_roundtrip_program_imports_nothing_of_mlstack() -> None:
    """It also runs in images of older versions."""
    program = (ROOT / "src/mlstack/host/doctor/roundtrip.py").read_text()
    assert not re.search(r"^\s*(from|import) mlstack", program, re.MULTILINE)
