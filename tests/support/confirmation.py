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
            process.send_signal(signal.SIGINT)
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
