"""The wait that each healthcheck of the compose files begins with."""

import subprocess
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.projects import ROOT

FILES = [path for path in (ROOT / "docker-compose.yml", *(ROOT / "compose").glob("*.yml")) if "healthcheck:" in path.read_text()]
FAILS = "echo down >&2; exit 7"


def wait_of(path: Path) -> str:
    """The program, as bash gets it."""
    (_, _, rest) = path.read_text().partition("x-wait: &wait |\n")
    return dedent(rest.partition("\n\n")[0]).replace("$$", "$")


class Container:
    """What a healthcheck finds in its container: a mark, a check that is logged, and a sleep that takes no time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark, self.log = folder, folder / "answered", folder / "log"
        self._program("sleep", 'echo "sleep $1" >>"$LOG"')

    def check(self, program: str, seconds: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs the healthcheck with this program as its check, `seconds` after it began."""
        self._program("check", f'echo check >>"$LOG"\n{program}')
        wait = wait_of(ROOT / "docker-compose.yml").replace("/dev/shm", str(self.folder))  # noqa: S108 # the container's
        return subprocess.run(
            ["bash", "-c", wait, "health", "check"],
            env={"PATH": f"{self.folder}:/usr/bin:/bin", "LOG": str(self.log), "SECONDS": str(seconds)},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    @property
    def did(self) -> list[str]:
        return self.log.read_text().splitlines()

    def _program(self, name: str, content: str) -> None:
        (self.folder / name).write_text(f"#!/bin/bash\n{content}\n")
        (self.folder / name).chmod(0o755)


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_every_compose_file_has_the_same_wait_and_every_healthcheck_uses_it() -> None:
    assert len({wait_of(path) for path in FILES}) == 1
    for path in FILES:
        text = path.read_text()
        assert text.count("*wait") == text.count(" test:"), path


def test_check_is_repeated_until_the_service_answers(container: Container) -> None:
    done = container.check('[ "$(grep -c check "$LOG")" -gt 3 ]')
    assert done.returncode == 0
    assert container.did == ["check", "sleep 0.2"] * 3 + ["check"]
    assert container.mark.read_text() == "yes\n"


def test_service_that_answered_is_left_alone_for_nine_seconds(container: Container) -> None:
    container.mark.write_text("yes\n")
    assert container.check("exit 0").returncode == 0
    assert container.did == ["sleep 9", "check"]


def test_service_that_no_longer_answers_is_reported_with_the_output_of_its_check(container: Container) -> None:
    container.mark.write_text("yes\n")
    done = container.check(FAILS, seconds=15)
    assert (done.returncode, done.stderr) == (7, "down\n")
    # The next one asks at once.
    assert container.check("exit 0").returncode == 0
    assert container.did == ["sleep 9", "check", "check", "check"]


def test_service_that_has_never_answered_has_three_times_as_long(container: Container) -> None:
    assert container.check('[ "$(grep -c check "$LOG")" -gt 1 ]', seconds=15).returncode == 0
    container.mark.unlink()
    assert container.check(FAILS, seconds=45).returncode == 7
    assert not container.mark.exists()
