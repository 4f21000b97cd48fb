import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.projects import ROOT

ENGINE = (ROOT / "scripts/engine.sh").read_text()
# What engine.sh itself calls, besides docker.
TOOLS = ("bash", "cat", "dirname", "head", "id", "rm", "sed", "sort", "uname")
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []


@pytest.fixture
def path_of_tools(tmp_path: Path) -> Path:
    """A PATH that holds only what engine.sh calls."""
    for tool in TOOLS:
        (tmp_path / tool).symlink_to(shutil.which(tool) or "missing")
    return tmp_path


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, with the scripts in it."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        shutil.copytree(ROOT / "scripts", Path(name) / "scripts")
        yield Path(name)


def check(environment: dict[str, str] | None = None, prefix: list[str] | None = None, root: Path = ROOT) -> tuple[int, str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "MLSTACK_"))}
    command = [*(prefix or []), str(root / "scripts/engine.sh"), "check"]
    done = subprocess.run(command, env=inherited | (environment or {}), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def function(call: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Calls a function of engine.sh without its last line, which would run the whole script."""
    functions = ENGINE.removesuffix('main "$@"\n')
    assert functions != ENGINE
    command = ["bash", "-c", f"{functions}\n{call}", str(ROOT / "scripts/engine.sh")]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def assert_error(answer: tuple[int, str, str], wrong: str, fix: str) -> None:
    code, out, err = answer
    first, why, last = err.splitlines()
    assert (code, out) == (1, "")
    assert first.startswith("mlstack: ")
    assert wrong in first
    assert len(why.split()) > 3
    assert last.startswith("         Fix: ")
    assert fix in last


# ---- engine.sh check ---------------------------------------------------------------------------


@pytest.mark.docker
def test_engine_check_of_a_ready_engine_prints_nothing() -> None:
    assert check() == (0, "", "")


def test_engine_check_reports_docker_that_is_not_installed(path_of_tools: Path) -> None:
    assert_error(check({"PATH": str(path_of_tools)}), "Docker is not installed", "docs.docker.com/engine/install")


def test_engine_check_reports_a_stopped_engine(tmp_path: Path) -> None:
    host = f"unix://{tmp_path}/none.sock"
    assert_error(check({"DOCKER_HOST": host}), f"its engine does not answer at DOCKER_HOST={host}", "start docker")


def test_engine_check_reports_a_remote_engine_that_does_not_answer(path_of_tools: Path) -> None:
    (path_of_tools / "docker").symlink_to(shutil.which("docker") or "missing")  # the client alone
    answer = check({"DOCKER_HOST": "tcp://127.0.0.1:1", "PATH": str(path_of_tools)})
    assert_error(answer, "its engine does not answer at DOCKER_HOST=tcp://127.0.0.1:1", "start Docker")


@pytest.mark.docker
def test_engine_check_reports_a_user_without_permission(open_folder: Path) -> None:
    closed = open_folder / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(closed))
        listener.listen()
        closed.chmod(0)
        answer = check({"DOCKER_HOST": f"unix://{closed}", "HOME": str(open_folder)}, NOBODY, open_folder)
    user = "nobody" if NOBODY else subprocess.check_output(["id", "-un"], text=True).strip()
    assert_error(answer, f"no permission to use Docker's socket (user {user})", f"sudo usermod -aG docker {user}")


@pytest.mark.docker
@pytest.mark.parametrize(
    ("variable", "wrong"),
    [
        ("MLSTACK_MIN_ENGINE", r"the Docker engine is too old: expected at least 99.1, found \d+\.\d+"),
        ("MLSTACK_MIN_COMPOSE", r"docker compose is too old: expected at least 99.1, found \d+\.\d+"),
    ],
)
def test_engine_check_reports_an_old_version_with_both_numbers(variable: str, wrong: str) -> None:
    answer = check({variable: "99.1"})
    assert_error(answer, "is too old", "upgrade")
    assert re.search(wrong, answer[2])


@pytest.mark.docker
def test_engine_check_reports_missing_compose(path_of_tools: Path) -> None:
    docker = path_of_tools / "docker"
    docker.write_text(f'#!/bin/sh\n[ "$1" != compose ] || exit 1\nexec {shutil.which("docker")} "$@"\n')
    docker.chmod(0o755)
    assert_error(check({"PATH": str(path_of_tools)}), "docker compose (>= 2.20) or docker buildx is missing", "make up")


def test_at_least_compares_versions_by_number(subtests: pytest.Subtests) -> None:
    for version, minimum, is_enough in (
        ("20.10.24+dfsg1", "20.10", True),
        ("20.10", "20.10", True),
        ("28.2.2", "20.10", True),
        ("19.03.15", "20.10", False),
        ("2.26.1-4", "2.20", True),
        ("2.20.0", "2.20", True),
        ("2.9.0", "2.20", False),
        ("5.0.1", "2.20", True),
        ("", "2.20", False),
    ):
        with subtests.test(version=version, minimum=minimum):
            assert (function(f'at_least "{version}" "{minimum}"').returncode == 0) is is_enough


# ---- the pid file of an engine that ended -------------------------------------------------------


@pytest.fixture
def pidfile(tmp_path: Path) -> Path:
    return tmp_path / "docker.pid"


@pytest.fixture
def running_dockerd(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process by the name of dockerd."""
    (tmp_path / "dockerd").symlink_to(shutil.which("cat") or "missing")
    with subprocess.Popen([tmp_path / "dockerd"], stdin=subprocess.PIPE) as process:
        yield process


def forget(pidfile: Path) -> subprocess.CompletedProcess[str]:
    done = function("forget_dead_engine", MLSTACK_ENGINE_PIDFILE=str(pidfile))
    assert (done.returncode, done.stderr) == (0, "")
    return done


def test_pid_file_of_another_program_is_removed(pidfile: Path) -> None:
    pidfile.write_text(f"{os.getpid()}\n")
    assert str(pidfile) in forget(pidfile).stdout
    assert not pidfile.exists()


def test_pid_file_of_an_ended_process_is_removed(pidfile: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    pidfile.write_text(str(ended.pid))
    forget(pidfile)
    assert not pidfile.exists()


def test_pid_file_of_a_running_engine_is_kept(pidfile: Path, running_dockerd: subprocess.Popen[bytes]) -> None:
    pidfile.write_text(str(running_dockerd.pid))
    assert forget(pidfile).stdout == ""
    assert pidfile.exists()


def test_pid_file_of_a_zombie_engine_is_removed(pidfile: Path, running_dockerd: subprocess.Popen[bytes]) -> None:
    running_dockerd.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, running_dockerd.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    pidfile.write_text(str(running_dockerd.pid))
    forget(pidfile)
    assert not pidfile.exists()


def test_missing_pid_file_is_no_error(pidfile: Path) -> None:
    assert forget(pidfile).stdout == ""


# ---- all scripts -------------------------------------------------------------------------------

SCRIPTS = sorted(
    path.relative_to(ROOT)
    for folder in ("scripts", "docker")
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and (path.suffix == ".sh" or path.read_bytes().startswith((b"#!/bin/sh", b"#!/bin/bash")))
)


def test_script_has_no_syntax_error(subtests: pytest.Subtests) -> None:
    for script in SCRIPTS:
        with subtests.test(script=str(script)):
            shell = "sh" if (ROOT / script).read_text().startswith("#!/bin/sh") else "bash"
            done = subprocess.run([shell, "-n", ROOT / script], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")


def test_script_is_executable_and_stops_at_an_error(subtests: pytest.Subtests) -> None:
    for script in SCRIPTS:
        text = (ROOT / script).read_text()
        if text.startswith("#!"):
            with subtests.test(script=str(script)):
                assert os.access(ROOT / script, os.X_OK)
                assert re.search(r"^set -eu", text, re.MULTILINE)


# ---- make --------------------------------------------------------------------------------------

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([\w-]+):(?!=)", MAKEFILE, re.MULTILINE)


def make(*arguments: str) -> str:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_without_a_target_prints_the_help() -> None:
    assert make() == make("help")


def test_help_explains_every_target() -> None:
    explained = re.findall(r"^  make ([\w-]+) +\S.* \S", make("help"), re.MULTILINE)
    assert sorted(explained) == sorted(TARGETS)


def test_help_fits_a_terminal_of_80_columns() -> None:
    assert [line for line in make("help").splitlines() if len(line) > 80] == []


def test_make_has_the_commands_of_the_contract() -> None:
    assert {"up", "test", "help", "env", "down", "reset", "status", "logs", "urls"} <= set(TARGETS)


def test_file_with_the_name_of_a_target_does_not_hide_it(tmp_path: Path, subtests: pytest.Subtests) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    for target in TARGETS:
        with subtests.test(target=target):
            (tmp_path / target).touch()
            done = subprocess.run(["make", "--dry-run", target], cwd=tmp_path, capture_output=True, text=True, check=True)
            assert "up to date" not in done.stdout
            assert "Nothing to be done" not in done.stdout


# ---- base-image.sh -----------------------------------------------------------------------------


@pytest.mark.docker
def test_base_image_that_cannot_be_pulled_or_built_is_reported(open_folder: Path) -> None:
    """An ordinary user, who may use Docker but not build an image from Debian's archive."""
    socket_group = Path("/var/run/docker.sock").stat().st_gid
    user = ["setpriv", "--reuid=65534", "--regid=65534", f"--groups={socket_group}"] if NOBODY else []
    environment = os.environ | {"MLSTACK_BASE_IMAGE": "127.0.0.1:9/none:1"}  # nobody listens there
    done = subprocess.run(
        [*user, str(open_folder / "scripts/base-image.sh")], env=environment, capture_output=True, text=True, check=False
    )
    wrong = "the base image 127.0.0.1:9/none:1 could not be pulled"
    assert_error((done.returncode, done.stdout, done.stderr), wrong, "docker pull 127.0.0.1:9/none:1")
    assert "refused" in done.stderr.splitlines()[0]
