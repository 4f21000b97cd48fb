"""What the server knows of data sets' versions, and the calls to it."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from mlstack.client.errors import ClientError
from mlstack.manifests import File, complaint, digest_of

API = "/api/2.0/mlstack/datasets"
SHORT = 12  # digits of a digest that people see


@dataclass(frozen=True)
class Version:
    """A version of a data set, as a list shows it. Size in bytes; `created` when it was put last, `by` who put it first."""

    name: str
    version: str
    files: int
    size: int
    digest: str
    created: str
    by: str


@dataclass(frozen=True)
class Manifest:
    """The files of a version."""

    name: str
    digest: str
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def manifest_of(name: str, version: str | None) -> Manifest:
    """The manifest of a version, by default of the newest. Raises ClientError if there is none, or it was changed."""
    answer = call("manifest", name=name, version=version or "")
    files = tuple(File(**{**file, "parts": tuple(file["parts"])}) for file in answer["files"])
    if complaint(name, files) or digest_of(files) != answer["version"]:
        raise ClientError(
            f"the manifest of {name} {answer['version']} does not have its digest.",
            "The list of its files was changed after it was put, so none of them is trusted.",
            "make restore BACKUP=…, with a backup from before that",
        )
    return Manifest(name, answer["version"], files)


def version_of(summary: Any) -> Version:
    """A version from an answer of the server."""
    digest = summary["version"]
    return Version(
        summary["name"], digest[:SHORT], summary["files"], summary["size"], digest, summary["created"], summary["by"]
    )  # fmt: skip


def call(route: str, **request: Any) -> Any:
    """The server's answer. Raises ClientError when it is an error."""
    import mlflow

    from mlstack.client.upstream import get_default_host_creds, http_request

    server = mlflow.get_tracking_uri()
    response = http_request(get_default_host_creds(server), f"{API}/{route}", "POST", json=request)
    if response.status_code == HTTPStatus.OK:
        return response.json()
    try:
        wrong = response.json()
    except ValueError:
        wrong = {}
    if response.status_code == HTTPStatus.NOT_FOUND and "detail" not in wrong:
        raise ClientError(
            f"the MLflow server at {server} keeps no data sets.",
            "It is not the server of an mlstack, or it is older than this client.",
            "make upgrade",
        )
    raise ClientError(
        f"{wrong.get('detail') or wrong.get('message') or response.text}",
        "Complete versions are unchanged.",
        _FIXES.get(response.status_code, "make doctor shows what is wrong with the stack"),
    )


_FIXES = {
    HTTPStatus.BAD_REQUEST: "correct the name, the version or the files",
    HTTPStatus.UNAUTHORIZED: "restart the kernel; on the host, connect() reads the account from .env",
    HTTPStatus.FORBIDDEN: "ask that account, or an admin",
    HTTPStatus.NOT_FOUND: "datasets.list() shows what there is",
    HTTPStatus.CONFLICT: "put it again: what is stored is not sent again",
    HTTPStatus.INSUFFICIENT_STORAGE: "delete versions and run make gc, or raise MINIO_BUCKET_QUOTA in .env and run make up",
}
