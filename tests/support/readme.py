"""The README's commands, and a terminal at which a user types them."""

import os
import pty
import re
import signal
import subprocess

from tests.support.clone import ROOT, Clone, users_environment

FIRST, LAST = "make add PART=scoring", "make remove PART=scoring"


def commands() -> list[str]:
    """All of them, in their order."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    return "".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)).splitlines()


def of_parts() -> list[str]:
    """Those that switch an optional part on, use it and switch it off again."""
    everything = commands()
    return everything[everything.index(FIRST) : everything.index(LAST) + 1]


def at_a_terminal(stack: Clone, command: str) -> str:
    """The output of a command at a terminal that answers yes; `make logs` is stopped once it has shown something."""
    master, slave = pty.openpty()
    with os.fdopen(master, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            command.split(),
            cwd=stack.folder,
            env=users_environment() | {"TERM": "dumb"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        os.write(master, b"y\ny\n")  # make reset asks twice
        shown, stopped = b"", False
        while True:
            try:
                chunk = terminal.read(4096)
            except OSError:  # Linux' error for a terminal whose other end is closed
                chunk = b""
            if not chunk:
                break
            shown += chunk
            if command.startswith("make logs") and b"Uvicorn running" in shown and not stopped:
                os.killpg(process.pid, signal.SIGINT)
                stopped = True
    code = process.wait(timeout=300)
    text = shown.decode(errors="replace")
    assert command.startswith("make logs") or code == 0, f"{command}: {code}\n{text}"
    assert "Traceback" not in text
    return text
