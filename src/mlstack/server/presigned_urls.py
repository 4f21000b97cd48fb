"""Links with which a client reads and writes artifacts in the storage itself, past this server (docs/adr/0009).

Who may have a link is decided as on MLflow's own route of artifacts: by its accounts, its permissions and its rules for paths.
A link is one method on one object, for a quarter of an hour. It carries this server's access key id, and opens nothing else.
"""

import posixpath
from datetime import timedelta
from functools import cache
from itertools import islice
from typing import Literal

import urllib3
from fastapi import APIRouter, HTTPException
from minio import Minio
from minio.error import S3Error
from mlflow.server import auth as mlflow_auth
from mlflow.server.handlers import _get_workspace_scoped_repo_path_if_enabled
from mlflow.utils.uri import validate_path_is_safe
from pydantic import BaseModel, Field
from starlette.requests import Request

from mlstack import settings
from mlstack.server import auth

# A link is used within seconds, but one call hands out a page of them, and the last of a thousand large files waits for the
# others. Who is later asks again: nothing breaks, so nothing speaks for longer.
LIFETIME = timedelta(minutes=15)
PAGE = 1000  # links of one answer
# Experiment and two more: what kind of thing is written below is decided, and with it the permission for every name.
ROOT_DEPTH = 3
PROXY = "/api/2.0/mlflow-artifacts/artifacts"
# The region is given so that nobody asks the storage for it: a link is a computation.
REGION = "us-east-1"

router = APIRouter(prefix="/api/2.0/mlstack/artifacts")


class ToWrite(BaseModel):
    """Files that a client wants to write below a folder."""

    root: str
    names: list[str] = Field(max_length=PAGE)


class LinksToWrite(BaseModel):
    """A link for each name, in their order."""

    links: list[str]
    probe: str


class ToRead(BaseModel):
    """A file, or a folder with all that is below it; `after` is the last name of the page before."""

    root: str
    path: str = ""
    after: str = ""


class File(BaseModel):
    """A stored file; its name is relative to the folder that was asked for, and empty where a file was."""

    name: str
    link: str


class LinksToRead(BaseModel):
    """One page of what was asked for. `probe` leads to nothing: only the right storage says so."""

    files: list[File]
    is_folder: bool
    more: bool
    probe: str


@router.post("/links-to-write")
def write(wanted: ToWrite, request: Request) -> LinksToWrite:
    """A link for each file. Raises HTTPException 401, 403, or 404 where only MLflow's own route can serve the client."""
    storage, root = _storage(request), _allowed(request, wanted.root, "update")
    keys = [_key(root, name) for name in wanted.names]
    return LinksToWrite(links=[_link(storage, "PUT", key) for key in keys], probe=_probe(storage, root))


@router.post("/links-to-read")
def read(wanted: ToRead, request: Request) -> LinksToRead:
    """A link for each file that is there. Raises as `write` does, and 503 when the storage does not answer."""
    storage, root = _storage(request), _allowed(request, wanted.root, "read")
    path = _key(root, wanted.path) if wanted.path else root
    keys, is_folder = _found(path, _key(path, wanted.after) if wanted.after else None)
    files = [File(name=key[len(path) + 1 :], link=_link(storage, "GET", key)) for key in keys[:PAGE]]
    return LinksToRead(files=files, is_folder=is_folder, more=len(keys) > PAGE, probe=_probe(storage, root))


def _found(path: str, after: str | None) -> tuple[list[str], bool]:
    """The keys below a folder, a page and one more, or of the file of that name; and whether it is a folder."""
    keys = settings.server_keys()
    storage = _client(keys.endpoint)
    try:
        below = storage.list_objects(keys.bucket, f"{path}/", recursive=True, start_after=after)
        if page := [item.object_name or "" for item in islice(below, PAGE + 1)]:
            return page, True
        storage.stat_object(keys.bucket, path)
    except S3Error as error:
        if error.code == "NoSuchKey":
            return [], True
        raise HTTPException(503, f"The storage answers {error.code}.") from error
    except urllib3.exceptions.HTTPError as error:
        raise HTTPException(503, "The storage does not answer.") from error
    return [path], False


def _allowed(request: Request, root: str, action: Literal["read", "update"]) -> str:
    """The root as MLflow's proxy would see it, if the asker may do this there."""
    user = auth.asker(request)
    path = _get_workspace_scoped_repo_path_if_enabled(validate_path_is_safe(root.strip("/"))) or ""
    if len(path.split("/")) < ROOT_DEPTH or posixpath.normpath(path) != path:
        raise HTTPException(404, "Links are for the artifacts of a run, a model or a trace.")
    if (
        user
        and not user.is_admin
        and not mlflow_auth._authorize_fastapi_artifact_proxy(f"{PROXY}/{path}", user.username, None, action)
    ):
        raise HTTPException(403, "Permission denied")
    return path


def _key(root: str, name: str) -> str:
    """Where MLflow's proxy keeps this file. Raises MlflowException for a name that leads out of the root."""
    key = posixpath.join(root, validate_path_is_safe(name))
    if not name or posixpath.normpath(key) != key:
        raise HTTPException(400, f"{name!r} is no name of an artifact.")
    return key


def _storage(request: Request) -> Minio:
    """The storage under the name by which the asker reaches it, judging by the name under which it reaches this server."""
    host = request.url.hostname
    if host == "mlflow":
        return _client(settings.server_keys().endpoint)
    if host in ("localhost", "127.0.0.1", "mlflow.localhost"):
        return _client(f"127.0.0.1:{settings.storage_port()}")
    raise HTTPException(404, f"There is no way to the storage from {host}.")


def _link(storage: Minio, method: Literal["GET", "PUT"], key: str) -> str:
    return storage.get_presigned_url(method, settings.server_keys().bucket, key, expires=LIFETIME)


def _probe(storage: Minio, root: str) -> str:
    return _link(storage, "GET", f"{root}/.mlstack-probe")


@cache
def _client(endpoint: str) -> Minio:
    """It fails soon: clients try again themselves."""
    keys = settings.server_keys()
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=5, read=30), retries=urllib3.Retry(total=0))
    return Minio(endpoint, access_key=keys.access_key, secret_key=keys.secret_key, secure=False, region=REGION, http_client=pool)
