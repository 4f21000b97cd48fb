"""MLflow's client for artifacts: files go directly to and from MinIO, through URLs that MLflow's server presigns.

Registered for `mlflow-artifacts` through MLflow's entry point, in the notebook image and in the project's own environment.
If the server gives no presigned URLs, or MinIO is unreachable, files go through the server, as with MLflow's own client.
"""

import os
import posixpath
from collections.abc import Iterator, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from mlstack.client.errors import ClientError
from mlstack.client.transfers import Patience, Reachability, Transfers, receive, send
from mlstack.client.upstream import (
    MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR,
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
    RESOURCE_DOES_NOT_EXIST,
    ArtifactProgressBar,
    MlflowArtifactsRepository,
    augmented_raise_for_status,
    create_tmp_dir,
    get_default_host_creds,
    http_request,
    relative_path_to_artifact_path,
    validate_path_is_safe,
    verify_artifact_path,
)

BATCH = 500  # presigned URLs of one call
LARGEST = 5 * 1024**3  # bytes: S3's limit for one request

minio = Reachability()


class Repository(MlflowArtifactsRepository):
    """MLflow's repository of artifacts, with transfers that bypass the server."""

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """As MLflow's own. Raises ClientError when MinIO rejects the file."""
        verify_artifact_path(artifact_path)
        self._upload([(posixpath.join(artifact_path or "", Path(local_file).name), Path(local_file))])

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """As MLflow's own. Raises ClientError when MinIO rejects a file; others may be stored by then."""
        verify_artifact_path(artifact_path)
        top = Path(local_dir).absolute()
        files = [
            (_artifact_name(folder.relative_to(top), file, artifact_path), folder / file)
            for folder, files in ((Path(folder), files) for folder, _, files in os.walk(top))
            for file in files
        ]
        self._upload(files)

    def download_artifacts(self, artifact_path: str | None, dst_path: str | None = None) -> str:
        """As MLflow's own. Raises MlflowException when there is no such artifact, ClientError when it does not arrive."""
        path = (artifact_path or "").rstrip("/")
        answer = self._answer_to_read(path) if dst_path is None or Path(dst_path).is_dir() else None
        if answer is None:
            proxied: str = super().download_artifacts(artifact_path, dst_path)
            return proxied
        folder = os.path.abspath(dst_path) if dst_path else create_tmp_dir()  # noqa: PTH100 # the very path that MLflow returns
        with transfers_of_user() as transfers:
            for name, url in self._urls_to_read(path, answer):
                local = self._create_download_destination(name, folder)
                if name.endswith("/"):  # the marker of an empty folder
                    Path(local).mkdir(parents=True, exist_ok=True)
                else:
                    transfers.begin(partial(receive, local), name, url, self._url_to_read)
            # In a notebook each step of the bar is a message to the browser: a hundred are enough.
            step = max(1, transfers.count // 100)
            with ArtifactProgressBar("Downloading artifacts", transfers.count, step) as bar:
                bar.set_pbar()
                transfers.finish(step, bar.update)
        return str(Path(folder, path)) if path else folder

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        answer = self._answer_to_read(remote_file_path)
        if answer is None:
            super()._download_file(remote_file_path, local_path)
            return
        with transfers_of_user() as transfers:
            transfers.begin(
                partial(receive, str(local_path)), remote_file_path, _only_url(answer, remote_file_path), self._url_to_read
            )
            transfers.finish()

    def gives_links(self) -> bool:
        """Whether transfers of this process go directly to MinIO."""
        return self._presigned("links-to-write", names=[]) is not None

    def _urls_to_read(self, path: str, answer: Any) -> Iterator[tuple[str, str]]:
        """Names in the repository and their presigned URLs, page by page."""
        if not answer["is_folder"]:
            yield path, _only_url(answer, path)
            return
        while True:
            for file in answer["files"]:
                yield posixpath.join(path, file["name"]), file["link"]
            if not answer["more"]:
                return
            answer = self._presigned("links-to-read", path=path, after=answer["files"][-1]["name"]) or _no_urls()

    def _upload(self, files: Sequence[tuple[str, Path]]) -> None:
        """Stores files under these names. Raises ClientError for a name that cannot be kept, before anything is stored."""
        for name, _ in files:
            _check_name(name)
        proxied = [(name, file) for name, file in files if file.stat().st_size > LARGEST]
        direct = [(name, file) for name, file in files if file.stat().st_size <= LARGEST]
        with transfers_of_user() as transfers:
            for batch in (direct[start : start + BATCH] for start in range(0, len(direct), BATCH)):
                answer = self._presigned("links-to-write", names=[name for name, _ in batch])
                if answer is None:
                    proxied += batch
                    continue
                for (name, file), url in zip(batch, answer["links"], strict=True):
                    transfers.begin(partial(send, file), name, url, self._url_to_write)
            transfers.finish()
        for name, file in proxied:
            super().log_artifact(str(file), posixpath.dirname(name) or None)

    def _answer_to_read(self, path: str) -> Any:
        answer = self._presigned("links-to-read", path=path)
        if answer and not answer["files"] and (path or not answer["is_folder"]):
            raise _missing(path)
        return answer

    def _url_to_write(self, name: str) -> str:
        url: str = (self._presigned("links-to-write", names=[name]) or _no_urls())["links"][0]
        return url

    def _url_to_read(self, name: str) -> str:
        return _only_url(self._answer_to_read(name) or _no_urls(), name)

    def _presigned(self, route: str, **wanted: Any) -> Any:
        """Presigned URLs for files of this repository; None if the server gives none, or MinIO is unreachable from here."""
        api, root = self.artifact_uri.split("/mlflow-artifacts/artifacts", maxsplit=1)
        credentials = get_default_host_creds(api)
        body = {"root": root.strip("/"), **wanted}
        response = http_request(credentials, f"/mlstack/artifacts/{route}", "POST", json=body)
        if response.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            return None
        augmented_raise_for_status(response)
        answer = response.json()
        return answer if minio.is_reached(answer["probe"]) else None


def _artifact_name(folder: Path, file: str, artifact_path: str | None) -> str:
    below = "" if folder == Path() else relative_path_to_artifact_path(str(folder))
    return posixpath.join(artifact_path or "", below, file)


def _check_name(name: str) -> None:
    """MLflow's server URL-decodes names, and its client parses them as URLs, where a ? ends them."""
    try:
        is_kept = validate_path_is_safe(name) == name and "?" not in name
    except (MlflowException, ValueError):
        is_kept = False
    if not is_kept:
        raise ClientError(
            f"the artifact name {name!r} cannot be kept: MLflow would store or read the file under another name.",
            "Nothing was uploaded.",
            "rename it: letters, digits, spaces, - _ . and / are always kept; #, ?, %20, control characters and C: are not",
        )


def transfers_of_user() -> Transfers:
    """With the retries and timeouts that are set for MLflow's own client."""
    retries, backoff = MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get()
    return Transfers(Patience(retries, backoff, MLFLOW_HTTP_REQUEST_TIMEOUT.get()))


def _only_url(answer: Any, path: str) -> str:
    if answer["is_folder"]:
        raise _missing(path)
    (file,) = answer["files"]
    url: str = file["link"]
    return url


def _missing(path: str) -> MlflowException:
    return MlflowException(f"There is no artifact {path}.", RESOURCE_DOES_NOT_EXIST)


def _no_urls() -> Any:
    raise ClientError(
        "MLflow gave presigned URLs for artifacts and gives none any more.",
        "It was changed while they were transferred.",
        "do it again",
    )
