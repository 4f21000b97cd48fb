"""MLflow's client, for artifacts: files go straight to and from the storage, through links that MLflow's server signs.

Registered for `mlflow-artifacts` through MLflow's entry point, in the notebook image and in the project's own environment.
Where the server gives no links, or the storage is out of reach, files go through the server, as with MLflow's own client.
Whole or not at all: a file appears under its name when its last byte is there, in the storage and in a folder alike.
"""

import logging
import os
import posixpath
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import urlsplit

import tenacity
import urllib3
from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR,
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.artifact_repo import verify_artifact_path
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.file_utils import ArtifactProgressBar, create_tmp_dir, relative_path_to_artifact_path
from mlflow.utils.request_utils import augmented_raise_for_status
from mlflow.utils.rest_utils import http_request

from mlstack.errors import MlstackError

log = logging.getLogger(__name__)

# On two cores more connections are no faster, and one file over several neither: the storage is what limits.
CONNECTIONS = 8
BATCH = 500  # links of one call
BLOCK = 256 * 1024  # bytes; larger ones leave the processor's cache
LARGEST = 5 * 1024**3  # bytes that S3 takes in one request
PATIENCE = 120  # seconds between two attempts at most, as in MLflow's own client
PASSING = (HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
# For the first call to the storage alone: who has a way to it on the same machine has an answer in milliseconds.
SOON = urllib3.Timeout(connect=2, read=5)


class Again(Exception):  # noqa: N818 # not an error yet
    """What may be well in a moment."""


class Refused(Again):
    """A link that the storage does not honour: it was too old, or it opens nothing."""


class Repository(MlflowArtifactsRepository):
    """MLflow's repository of artifacts, with transfers past the server."""

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """As MLflow's own. Raises MlstackError when the storage does not take the file."""
        verify_artifact_path(artifact_path)
        self._upload([(posixpath.join(artifact_path or "", Path(local_file).name), Path(local_file))])

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """As MLflow's own. Raises MlstackError when the storage does not take a file; others may be there by then."""
        verify_artifact_path(artifact_path)
        top = Path(local_dir).absolute()
        files = [
            (_artifact_name(folder.relative_to(top), file, artifact_path), folder / file)
            for folder, files in ((Path(folder), files) for folder, _, files in os.walk(top))
            for file in files
        ]
        self._upload(files)

    def download_artifacts(self, artifact_path: str | None, dst_path: str | None = None) -> str:
        """As MLflow's own. Raises MlflowException when there is no such artifact, MlstackError when it does not arrive."""
        path = (artifact_path or "").rstrip("/")
        answer = self._ask_to_read(path) if dst_path is None or Path(dst_path).is_dir() else None
        if answer is None:
            proxied: str = super().download_artifacts(artifact_path, dst_path)
            return proxied
        folder = os.path.abspath(dst_path) if dst_path else create_tmp_dir()  # noqa: PTH100 # the very path that MLflow returns
        with Transfers() as transfers:
            for name, link in self._found(path, answer):
                local = self._create_download_destination(name, folder)
                if name.endswith("/"):  # the mark of an empty folder
                    Path(local).mkdir(parents=True, exist_ok=True)
                else:
                    transfers.begin(partial(receive, local), name, link, self._read_again)
            transfers.finish("Downloading artifacts")
        return str(Path(folder, path)) if path else folder

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        answer = self._ask_to_read(remote_file_path)
        if answer is None:
            super()._download_file(remote_file_path, local_path)
            return
        with Transfers() as transfers:
            transfers.begin(partial(receive, str(local_path)), remote_file_path, _only_link(answer), self._read_again)
            transfers.finish()

    def _found(self, path: str, answer: Any) -> Iterator[tuple[str, str]]:
        """Names in the repository and links, page by page."""
        if not answer["is_folder"]:
            yield path, _only_link(answer)
            return
        while answer:
            for file in answer["files"]:
                yield posixpath.join(path, file["name"]), file["link"]
            answer = answer["more"] and self._ask("links-to-read", path=path, after=answer["files"][-1]["name"])

    def _upload(self, files: Sequence[tuple[str, Path]]) -> None:
        """Stores files under these names."""
        proxied = [(name, file) for name, file in files if file.stat().st_size > LARGEST]
        linked = [(name, file) for name, file in files if file.stat().st_size <= LARGEST]
        with Transfers() as transfers:
            for batch in (linked[start : start + BATCH] for start in range(0, len(linked), BATCH)):
                answer = self._ask("links-to-write", names=[name for name, _ in batch])
                if answer is None:
                    proxied += batch
                    continue
                for (name, file), link in zip(batch, answer["links"], strict=True):
                    transfers.begin(partial(send, file), name, link, self._write_again)
            transfers.finish()
        for name, file in proxied:
            super().log_artifact(str(file), posixpath.dirname(name) or None)

    def _ask_to_read(self, path: str) -> Any:
        answer = self._ask("links-to-read", path=path)
        if answer and not answer["files"] and (path or not answer["is_folder"]):
            raise _missing(path)
        return answer

    def _write_again(self, name: str) -> str:
        link: str = (self._ask("links-to-write", names=[name]) or _no_links())["links"][0]
        return link

    def _read_again(self, name: str) -> str:
        return _only_link(self._ask_to_read(name) or _no_links())

    def _ask(self, route: str, **wanted: Any) -> Any:
        """Links for files of this repository; None where there are none to be had, or they lead nowhere from here."""
        api, root = self.artifact_uri.split("/mlflow-artifacts/artifacts", maxsplit=1)
        credentials = get_default_host_creds(api)
        body = {"root": root.strip("/"), **wanted}
        response = http_request(credentials, f"/mlstack/artifacts/{route}", "POST", json=body)
        if response.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            return None
        augmented_raise_for_status(response)
        answer = response.json()
        return answer if storage.is_reached(answer["probe"]) else None


def _artifact_name(folder: Path, file: str, artifact_path: str | None) -> str:
    below = "" if folder == Path() else relative_path_to_artifact_path(str(folder))
    return posixpath.join(artifact_path or "", below, file)


def _only_link(answer: Any) -> str:
    (file,) = answer["files"]
    link: str = file["link"]
    return link


def _missing(path: str) -> MlflowException:
    return MlflowException(f"There is no artifact {path}.", RESOURCE_DOES_NOT_EXIST)


def _no_links() -> Any:
    raise Again("MLflow gives no link")


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


storage = Reach()


# Does one transfer over a connection, from or to the link, unless the event says that all is over.
Transfer = Callable[[urllib3.PoolManager, str, threading.Event], None]


class Transfers:
    """Transfers at the same time, of one call of a user. Its end ends them all, finished or not."""

    def __init__(self) -> None:
        self._futures: list[Future[None]] = []
        self._ended = threading.Event()
        self._threads = ThreadPoolExecutor(CONNECTIONS, "transfers")
        seconds = MLFLOW_HTTP_REQUEST_TIMEOUT.get()
        timeout = urllib3.Timeout(connect=seconds, read=seconds)
        self._connections = urllib3.PoolManager(maxsize=CONNECTIONS, timeout=timeout, retries=False, blocksize=BLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._threads.shutdown(cancel_futures=True)
        self._connections.clear()

    def begin(self, transfer: Transfer, name: str, link: str, again: Callable[[str], str]) -> None:
        """Puts a transfer in the queue. `again` gives another link for this name, when the first did not do."""
        self._futures.append(self._threads.submit(self._patiently, transfer, name, link, again))

    def finish(self, shown: str = "") -> None:
        """Waits for all. Raises what the first that failed raised: MlstackError, MlflowException or OSError."""
        count = len(self._futures)
        step = max(1, count // 100)  # in a notebook each movement of the bar is a message to the browser
        with ArtifactProgressBar(shown, count, step) as bar:
            if shown:
                bar.set_pbar()
            for number, future in enumerate(as_completed(self._futures), 1):
                future.result()
                if number % step == 0 or number == count:
                    bar.update()

    def _patiently(self, transfer: Transfer, name: str, link: str, again: Callable[[str], str]) -> None:
        """As patiently as MLflow's own client: an upload outlives a restart of any service."""
        retrying = tenacity.Retrying(
            retry=_may_pass,
            stop=tenacity.stop_after_attempt(1 + MLFLOW_HTTP_REQUEST_MAX_RETRIES.get())
            | tenacity.stop_when_event_set(self._ended),
            wait=tenacity.wait_exponential(MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get(), max=PATIENCE),
            sleep=tenacity.sleep_using_event(self._ended),
            reraise=True,
        )
        try:
            for attempt in retrying:
                with attempt:
                    is_first = attempt.retry_state.attempt_number == 1
                    transfer(self._connections, link if is_first else again(name), self._ended)
        except (Again, urllib3.exceptions.HTTPError) as error:
            raise MlstackError(
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
    """Raises Again, Refused or MlstackError when the storage did not do it."""
    if answer.status == HTTPStatus.OK:
        return
    code = re.search(rb"<Code>(\w+)</Code>", answer.data)
    said = f"the storage answered {answer.status} {code[1].decode() if code else ''}".rstrip()
    if answer.status == HTTPStatus.FORBIDDEN:
        raise Refused(said)
    if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR or answer.status in PASSING:
        raise Again(said)
    raise MlstackError(f"{said}.", "It will not take or give this artifact.", "check the name of the file")
