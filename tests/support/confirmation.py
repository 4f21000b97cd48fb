"""A command that asks at a terminal before it deletes something, and is not confirmed."""

import os
import pty
import signal
import subprocess
from collections.abc import Callable


def decline(start: Callable[[int], subprocess.Popen[str]], answer: bytes | None, declined: str = "Nothing was deleted.") -> None:
    """Answers what the command of `start` asks at its terminal, with Ctrl-C for None. It must do nothing and say so."""
    terminal, its_end = pty.openpty()
    with start(its_end) as process:
        assert process.stdout is not None
        asked = ""
        while "[y/N]" not in asked:
            letter = process.stdout.read(1)
            assert letter, asked
            asked += letter
        if answer is None:
            output, errors = _interrupted(process)
        else:
            os.write(terminal, answer)
            output, errors = process.communicate()
    os.close(terminal)
    os.close(its_end)
    assert "Traceback" not in errors
    if answer is None:
        assert process.returncode == 130
        assert "Nothing is broken" in errors
    else:
        assert process.returncode == 1
        assert declined in output


def _interrupted(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process prints after Ctrl-C, which is pressed again if it came just before the read: Python did not notice it."""
    while True:
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            continue
