import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlstack.errors import MlstackError
from mlstack.host.lock import held
from tests.support.projects import python

HOLDER = """
import sys
from pathlib import Path
from mlstack.host.lock import held
with held(Path(sys.argv[1]), "make up"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `tmp_path` until its input ends."""
    process = subprocess.Popen(python(HOLDER, str(tmp_path)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_second_command_is_rejected_and_names_the_running_one(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(MlstackError) as refused, held(tmp_path, "make reset"):
        pass
    at_work = rf"another command is at work on this stack: make up, process {holder.pid}, since \d\d:\d\d:\d\d\."
    assert re.fullmatch(at_work, refused.value.wrong)
    assert refused.value.why == "make reset would get in its way."


def test_rejected_command_leaves_the_lock_to_its_holder(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(MlstackError, match=f"process {holder.pid}"), held(tmp_path, "make reset"):
            pass


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.usefixtures("holder")
def test_lock_of_a_killed_holder_is_free(holder: subprocess.Popen[str], tmp_path: Path, end: signal.Signals) -> None:
    holder.send_signal(end)
    assert holder.wait() == -end
    with held(tmp_path, "make reset"):
        assert (tmp_path / ".lock").read_text().startswith("make reset, process ")
    assert (tmp_path / ".lock").read_text() == ""


def test_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(tmp_path, "make up"):
        raise ZeroDivisionError
    with held(tmp_path, "make up"):
        assert "make up" in (tmp_path / ".lock").read_text()


def test_locks_of_two_projects_are_independent(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with held(tmp_path / "other", "make up"):
        assert holder.poll() is None


def test_lock_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(MlstackError, match="the lock cannot be taken") as refused, held(tmp_path, "make up"):
        pass
    assert str(tmp_path / ".lock") in refused.value.fix
