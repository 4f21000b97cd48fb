"""Files that go to and from the storage through links: many at once, patiently, and each whole or not at all.

It knows nothing of MLflow but its exception, and is loaded while MLflow itself is.
"""

import logging
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import urlsplit

import tenacity
import urllib3

from mlstack.client.errors import ClientError

log = logging.getLogger(__name__)

# On two cores more connections are no faster, and one file over several neither: the storage is what limits.
CONNECTIONS = 8
BLOCK = 256 * 1024  # bytes; larger ones leave the processor's cache
LONGEST_PAUSE = 10  # seconds between two attempts: who waits longer finds a storage that has been back for long
PASSING = (HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
# For the first call to the storage alone: who has a way to it on the same machine has an answer in milliseconds.
SOON = urllib3.Timeout(connect=2, read=5)


class Again(Exception):  # noqa: N818 # not an error yet
    """What may be well in a moment."""


class Refused(Again):
    """A link that the storage does not honour: it was too old, or it opens nothing."""


@dataclass(frozen=True)
class Patience:
    """What MLflow's own client is told: how often it tries again, and how long a silence may be."""

    retries: int
    backoff: float  # seconds before the first retry; twice as long, up to two minutes, before each further one
    silence: float  # seconds

    @property
    def total(self) -> float:
        """For how many seconds MLflow's own client tries."""
        return sum(min(120, self.backoff * 2.0**number) for number in range(self.retries))


class Reach:
    """Which storages this process reaches under the address that links to them carry. It finds out once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, bool] = {}

    def is_reached(self, probe: str) -> bool:
        """Whether what answers there is the storage: it alone knows the key, and that this object does not exist."""
        address = urlsplit(probe).netloc
        with self._lock:
            if address not in self._found:
                self._found[address] = _is_told_of_nothing(probe)
                if not self._found[address]:
                    log.info("The storage does not answer at %s: artifacts go through MLflow.", address)
            return self._found[address]


def _is_told_of_nothing(probe: str) -> bool:
    try:
        answer = urllib3.request("GET", probe, timeout=SOON, retries=False)
    except urllib3.exceptions.HTTPError:
        return False
    return answer.status == HTTPStatus.NOT_FOUND and b"<Code>NoSuchKey</Code>" in answer.data


# Does one transfer over a connection, from or to the link, unless the event says that all is over.
Transfer = Callable[[urllib3.PoolManager, str, threading.Event], None]


class Transfers:
    """Transfers at the same time, of one call of a user. Its end ends them all, finished or not."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._futures: list[Future[None]] = []
        self._ended = threading.Event()
        self._threads = ThreadPoolExecutor(CONNECTIONS, "transfers")
        timeout = urllib3.Timeout(connect=patience.silence, read=patience.silence)
        self._connections = urllib3.PoolManager(maxsize=CONNECTIONS, timeout=timeout, retries=False, blocksize=BLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        # Who interrupts does not wait for a storage that is silent.
        self._threads.shutdown(wait=kind is not KeyboardInterrupt, cancel_futures=True)
        self._connections.clear()

    def begin(self, transfer: Transfer, name: str, link: str, again: Callable[[str], str]) -> None:
        """Puts a transfer in the queue. `again` gives another link for this name, when the first did not do."""
        self._futures.append(self._threads.submit(self._patiently, transfer, name, link, again))

    @property
    def count(self) -> int:
        """How many were begun."""
        return len(self._futures)

    def finish(self, step: int = 1, tell: Callable[[], None] = lambda: None) -> None:
        """Waits for all, and tells of each step and of the end. Raises what the first that failed raised: ClientError,
        MlflowException or OSError."""
        for number, future in enumerate(as_completed(self._futures), 1):
            future.result()
            if number % step == 0 or number == self.count:
                tell()

    def _patiently(self, transfer: Transfer, name: str, link: str, again: Callable[[str], str]) -> None:
        """For as long as MLflow's own client tries: an upload outlives a restart of any service."""
        retrying = tenacity.Retrying(
            retry=_may_pass,
            stop=tenacity.stop_after_delay(self._patience.total) | tenacity.stop_when_event_set(self._ended),
            wait=tenacity.wait_exponential(self._patience.backoff, max=LONGEST_PAUSE),
            sleep=tenacity.sleep_using_event(self._ended),
            reraise=True,
        )
        try:
            for attempt in retrying:
                with attempt:
                    is_first = attempt.retry_state.attempt_number == 1
                    transfer(self._connections, link if is_first else again(name), self._ended)
        except (Again, urllib3.exceptions.HTTPError) as error:
            raise ClientError(
                f"the artifact {name} was not transferred: {error}.",
                "The storage did not answer as it should, however often it was asked; nothing is half there.",
                "make doctor says what is wrong with the stack; then do it again",
            ) from error


def _may_pass(state: tenacity.RetryCallState) -> bool:
    """A refusal is tried again with a fresh link, and only once: a fresh one that is refused will be refused again."""
    error = state.outcome and state.outcome.exception()
    if isinstance(error, Refused):
        return state.attempt_number == 1
    return isinstance(error, Again | urllib3.exceptions.HTTPError)


def send(file: Path, connections: urllib3.PoolManager, link: str, ended: threading.Event) -> None:
    """Stores a file as it is now: what is appended meanwhile is not part of it."""
    with file.open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        body = _blocks(source, size, ended)
        _check(connections.request("PUT", link, body=body, headers={"Content-Length": str(size)}))


def receive(local: str, connections: urllib3.PoolManager, link: str, ended: threading.Event) -> None:
    """Fetches a file, byte for byte as it is stored, beside its place, and puts it there when it is whole."""
    part = Path(local).with_name(f".{secrets.token_hex(8)}.part")
    # Not decoded: what MLflow stored with an encoding (.gz) is the file itself.
    answer = connections.request("GET", link, preload_content=False, decode_content=False)
    try:
        _check(answer)
        with part.open("xb") as target:
            for block in answer.stream(BLOCK, decode_content=False):
                target.write(block)
                _go_on(ended)
            _is_whole(target.tell(), int(answer.headers["Content-Length"]))
        part.replace(local)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        answer.close()


def _is_whole(size: int, announced: int) -> None:
    if size != announced:
        raise Again(f"{size} of {announced} bytes came")


def _blocks(source: BinaryIO, size: int, ended: threading.Event) -> Iterator[bytes]:
    while size:
        _go_on(ended)
        block = source.read(min(BLOCK, size))
        if not block:
            raise Again("the file became shorter while it was sent")
        size -= len(block)
        yield block


def _go_on(ended: threading.Event) -> None:
    if ended.is_set():
        raise Again("it was stopped")


def _check(answer: urllib3.BaseHTTPResponse) -> None:
    """Raises Again, Refused or ClientError when the storage did not do it."""
    if answer.status == HTTPStatus.OK:
        return
    code = re.search(rb"<Code>(\w+)</Code>", answer.data)
    said = f"the storage answered {answer.status} {code[1].decode() if code else ''}".rstrip()
    if answer.status == HTTPStatus.FORBIDDEN:
        raise Refused(said)
    if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR or answer.status in PASSING:
        raise Again(said)
    raise ClientError(f"{said}.", "It will not take or give this artifact.", "check the name of the file")
