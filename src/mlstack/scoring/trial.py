"""A candidate is loaded and asked for an answer in a process of its own first, so that a model that crashes, exits, never
returns or takes all memory does not touch the service.

The processes are forked from one that has loaded MLflow, pandas and scikit-learn and nothing else: a trial starts in
milliseconds, and what is loaded is in memory once. It has no thread, so that forking it is safe, and was forked from the
service before that read its password.
"""

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, Self

SECONDS = 120  # that a model may take to load and to answer its example
_LONGEST = 64 << 20  # bytes of an answer


class Trials:
    """The process that trials are forked from."""

    def __init__(self, requests: socket.socket | None = None) -> None:
        """Forks it. Call this before any thread is started and any secret is read."""
        if requests:
            self._requests = requests
            return
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            self._requests.close()
            _exiting(partial(_serve, theirs))
        theirs.close()

    @classmethod
    def started(cls) -> Self:
        """Starts it as a program of its own, where this process has threads already. It loads its libraries itself."""
        requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            subprocess.Popen([sys.executable, "-m", __name__, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        return cls(requests)

    async def run(self, folder: Path, seconds: float = SECONDS) -> list[Any]:
        """The candidate's answer to its example. Raises ModelError with the reason why it cannot be served.

        Cancelling ends the trial. Raises OSError if the process that forks trials was killed.
        """
        from mlstack.scoring.model import ModelError

        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                message = json.dumps({"folder": str(folder), "seconds": seconds}).encode()
                socket.send_fds(self._requests, [message], [theirs.fileno()])
            ours.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=ours, limit=_LONGEST)
            try:
                result = json.loads(await reader.read(-1) or '{"reason": "its trial was killed"}')
            finally:
                writer.close()
        if "reason" in result:
            raise ModelError(result["reason"])
        answer: list[Any] = result["answer"]
        return answer


def preload() -> None:
    """Loads what trials need once, before they are forked."""
    for library in ("mlflow.sklearn", "sklearn.ensemble", "sklearn.pipeline"):
        import_module(library)


def _serve(requests: socket.socket) -> None:
    """Forks a process for each request, which watches its trial, until the service ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 65536, 1)
        if not message:
            return
        if os.fork() == 0:
            requests.close()
            _exiting(partial(_watch, socket.socket(fileno=descriptors[0]), **json.loads(message)))
        os.close(descriptors[0])


def _watch(service: socket.socket, folder: str, seconds: float) -> None:
    """Runs one trial in a child. Ends it after its time, or when the service closes the connection."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        service.close()
        _exiting(partial(_try, Path(folder), writing))
    os.close(writing)
    deadline, result = time.monotonic() + seconds, b""
    while True:
        ready, _, _ = select.select([reading, service.fileno()], [], [], max(0, deadline - time.monotonic()))
        block = os.read(reading, 1 << 16) if reading in ready else b""
        result += block
        if not block:
            break
    is_late = not ready
    if reading not in ready:  # too late, or the service no longer waits for it
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with suppress(BrokenPipeError, ConnectionResetError):  # the service no longer wants to know
        service.sendall(result or json.dumps({"reason": _reason(status, is_late=is_late, seconds=seconds)}).encode())


def _reason(status: int, *, is_late: bool, seconds: float) -> str:
    if is_late:
        return f"it did not load and answer its input example within {seconds:g} s"
    if os.WIFSIGNALED(status):
        killed = os.WTERMSIG(status)
        if killed == signal.SIGKILL:
            return "it needs more memory than SCORING_MEMORY leaves for it"
        return f"it crashes while it is loaded (signal {killed})"
    return f"it ends the process that loads it (exit code {os.waitstatus_to_exitcode(status)})"


def _try(folder: Path, writing: int) -> None:
    """Loads the model and writes its answer, or the reason why it has none."""
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")  # the kernel ends this process first
    os.dup2(2, 1)  # what the model prints is for the log
    from mlstack.scoring import model

    os.nice(model.LOW_PRIORITY)
    try:
        result: dict[str, Any] = {"answer": model.as_json(model.load(folder).answer_to_example())}
    except model.ModelError as error:
        result = {"reason": str(error)}
    with os.fdopen(writing, "w", encoding="utf-8") as file:
        json.dump(result, file)


def _exiting(work: Callable[[], None]) -> NoReturn:
    """Runs a forked process to its end: nothing of the process that it was forked from may continue."""
    code = 1
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001 # reported here, since nothing above may run
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    preload()
    if os.fork() == 0:  # without the threads of the libraries
        _exiting(partial(_serve, socket.socket(fileno=int(sys.argv[1]))))
