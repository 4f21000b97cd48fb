"""Transfers of files to and from MinIO through presigned URLs: in parallel, with retries, and each complete or not at all.

It uses nothing of MLflow but its exception, because it is imported during MLflow's own import.
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
from urllib.parse import parse_qsl, urlsplit

import tenacity
import urllib3

from mlstack.client.errors import ClientError

log = logging.getLogger(__name__)

# On two cores more connections are no faster, nor is one file over several: MinIO is the limit.
CONNECTIONS = 8
BLOCK = 256 * 1024  # bytes; larger blocks do not fit the CPU's cache
LONGEST_PAUSE = 10  # seconds between two attempts: a longer pause only delays the transfer after MinIO has restarted
PASSING = (HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
FILE_CHANGED = (b"XAmzContentSHA256Mismatch", b"BadDigest")  # of MinIO and VersityGW
CHECKSUM = "x-amz-checksum-sha256"
BUCKET_IS_FULL = b"XMinioAdminBucketQuotaExceeded"
# For the first call only: MinIO on the same host answers in milliseconds.
SOON = urllib3.Timeout(connect=2, read=5)


class TransientError(Exception):
    """A failure that a retry may fix."""


class DeniedError(TransientError):
    """MinIO denies the presigned URL: it has expired or is wrong."""


@dataclass(frozen=True)
class Patience:
    """The settings of MLflow's own client: retries, and how long an answer may take."""

    retries: int
    backoff: float  # seconds before the first retry; twice as long, up to two minutes, before each further one
    silence: float  # seconds

    @property
    def total(self) -> float:
        """The number of seconds for which MLflow's own client retries."""
        return sum(min(120, self.backoff * 2.0**number) for number in range(self.retries))


class Reachability:
    """Whether this process reaches MinIO at the address of its presigned URLs. Tried once for each address."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, bool] = {}

    def is_reached(self, probe: str) -> bool:
        """Whether MinIO answers there: only it knows the key, and that this object does not exist."""
        address = urlsplit(probe).netloc
        with self._lock:
            if address not in self._known:
                self._known[address] = is_answered_by_minio(probe)
                if not self._known[address]:
                    log.info("MinIO does not answer at %s: artifacts go through MLflow.", address)
            return self._known[address]


def is_answered_by_minio(probe: str) -> bool:
    """Whether MinIO answers at the address of this presigned URL, now."""
    try:
        answer = urllib3.request("GET", probe, timeout=SOON, retries=False)
    except urllib3.exceptions.HTTPError:
        return False
    return answer.status == HTTPStatus.NOT_FOUND and b"<Code>NoSuchKey</Code>" in answer.data


# Does one transfer over a connection, from or to a presigned URL, until the event is set.
Transfer = Callable[[urllib3.PoolManager, str, threading.Event], None]
# Is called with the number of bytes that were transferred.
Advance = Callable[[int], None]


class Transfers:
    """Parallel transfers of one call of a user. Leaving the context ends them all, finished or not."""

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
        # Ctrl-C does not wait for a MinIO that does not answer.
        self._threads.shutdown(wait=kind is not KeyboardInterrupt, cancel_futures=True)
        self._connections.clear()

    def begin(self, transfer: Transfer, name: str, url: str, renew: Callable[[str], str]) -> None:
        """Queues a transfer. `renew` gives another presigned URL for this name, if the first fails."""
        self._futures.append(self._threads.submit(self._with_retries, transfer, name, url, renew))

    @property
    def count(self) -> int:
        """The number of transfers."""
        return len(self._futures)

    def finish(self, step: int = 1, report: Callable[[], None] = lambda: None) -> None:
        """Waits for all, and calls `report` after each `step` of them and at the end. Raises the first error: ClientError,
        MlflowException or OSError."""
        for number, future in enumerate(as_completed(self._futures), 1):
            future.result()
            if number % step == 0 or number == self.count:
                report()

    def _with_retries(self, transfer: Transfer, name: str, url: str, renew: Callable[[str], str]) -> None:
        """Retries for as long as MLflow's own client does: an upload survives a restart of any service."""
        retrying = tenacity.Retrying(
            retry=_is_transient,
            stop=tenacity.stop_after_delay(self._patience.total) | tenacity.stop_when_event_set(self._ended),
            wait=tenacity.wait_exponential(self._patience.backoff, max=LONGEST_PAUSE),
            sleep=tenacity.sleep_using_event(self._ended),
            reraise=True,
        )
        try:
            for attempt in retrying:
                with attempt:
                    is_first = attempt.retry_state.attempt_number == 1
                    transfer(self._connections, url if is_first else renew(name), self._ended)
        except (TransientError, urllib3.exceptions.HTTPError) as error:
            raise ClientError(
                f"the artifact {name} was not transferred: {error}.",
                "MinIO failed at every attempt; no file is incomplete.",
                "make doctor shows what is wrong with the stack; then do it again",
            ) from error


def _is_transient(state: tenacity.RetryCallState) -> bool:
    """A denial is retried with a new URL, and only once: if that is denied too, so is the next."""
    error = state.outcome and state.outcome.exception()
    if isinstance(error, DeniedError):
        return state.attempt_number == 1
    return isinstance(error, TransientError | urllib3.exceptions.HTTPError)


def send(file: Path, connections: urllib3.PoolManager, url: str, ended: threading.Event) -> None:
    """Uploads a file as it is now: what is appended meanwhile is not part of it."""
    with file.open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        body = _blocks(source, size, ended)
        _check(connections.request("PUT", url, body=body, headers={"Content-Length": str(size)}))


def piece_sender(file: Path, start: int, size: int, advance: Advance) -> Transfer:
    """Uploads a piece of a file."""

    def send_piece(connections: urllib3.PoolManager, url: str, ended: threading.Event) -> None:
        with file.open("rb") as source:
            source.seek(start)
            body = _blocks(source, size, ended, advance)
            _check(connections.request("PUT", url, body=body, headers={"Content-Length": str(size), **_checksum_in(url)}))

    return send_piece


def _checksum_in(url: str) -> dict[str, str]:
    """The header that a presigned URL names its checksum in, where the store does not read it from the URL."""
    return {name: value for name, value in parse_qsl(urlsplit(url).query) if name == CHECKSUM}


def rest_receiver(part: Path, size: int, advance: Advance) -> Transfer:
    """Downloads what a file lacks of its size, and keeps what has arrived when it is interrupted."""

    def receive_rest(connections: urllib3.PoolManager, url: str, ended: threading.Event) -> None:
        with part.open("ab") as target:
            if (start := target.tell()) >= size:
                return
            headers = {"Range": f"bytes={start}-"}
            answer = connections.request("GET", url, headers=headers, preload_content=False, decode_content=False)
            try:
                _check(answer)
                for block in answer.stream(BLOCK, decode_content=False):
                    target.write(block)
                    advance(len(block))
                    _check_running(ended)
            finally:
                answer.close()
            _check_complete(target.tell(), size)

    return receive_rest


def receive(local: str, connections: urllib3.PoolManager, url: str, ended: threading.Event) -> None:
    """Downloads a file, byte for byte as it is stored, and moves it into place when it is complete."""
    part = Path(local).with_name(f".{secrets.token_hex(8)}.part")
    # Not decoded: what MLflow stored with an encoding (.gz) is the file itself.
    answer = connections.request("GET", url, preload_content=False, decode_content=False)
    try:
        _check(answer)
        with part.open("xb") as target:
            for block in answer.stream(BLOCK, decode_content=False):
                target.write(block)
                _check_running(ended)
            _check_complete(target.tell(), int(answer.headers["Content-Length"]))
        part.replace(local)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        answer.close()


def _check_complete(size: int, announced: int) -> None:
    if size != announced:
        raise TransientError(f"{size} of {announced} bytes arrived")


def _blocks(source: BinaryIO, size: int, ended: threading.Event, advance: Advance = lambda _: None) -> Iterator[bytes]:
    while size:
        _check_running(ended)
        block = source.read(min(BLOCK, size))
        if not block:
            raise TransientError("the file became shorter during the upload")
        size -= len(block)
        yield block
        advance(len(block))


def _check_running(ended: threading.Event) -> None:
    if ended.is_set():
        raise TransientError("it was stopped")


def _check(answer: urllib3.BaseHTTPResponse) -> None:
    """Raises TransientError, DeniedError or ClientError unless MinIO answered 200, or 206 for a range."""
    if answer.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return
    code = re.search(rb"<Code>(\w+)</Code>", answer.data)
    message = f"MinIO answered {answer.status} {code[1].decode() if code else ''}".rstrip()
    if answer.status == HTTPStatus.FORBIDDEN:
        raise DeniedError(message)
    if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR or answer.status in PASSING:
        raise TransientError(message)
    if code and code[1] == BUCKET_IS_FULL:
        raise ClientError(
            "the bucket is full: it holds as much as MINIO_BUCKET_QUOTA allows.",
            "This artifact was not stored; existing ones are unchanged.",
            "delete runs or models and run make gc, or raise MINIO_BUCKET_QUOTA in .env and run make up",
        )
    if code and code[1] in FILE_CHANGED:
        raise ClientError(
            "a file changed while it was uploaded.",
            "MinIO accepts only the bytes whose checksum was announced; no version is visible.",
            "put it again when nothing writes it any more",
        )
    raise ClientError(f"{message}.", "It cannot store or return this artifact.", "check the name of the file")
