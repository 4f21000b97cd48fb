"""Presigned URLs with which a client reads and writes artifacts directly in MinIO (docs/adr/0009, 0016).

Permissions are those of MLflow's own route for artifacts: its accounts, its grants and its rules for paths. A URL is for one
method on one object, for a quarter of an hour. It carries this server's access key id, which opens nothing by itself.
"""

import posixpath
import re
from datetime import timedelta
from functools import cache
from itertools import islice
from typing import Literal

import urllib3
from fastapi import APIRouter, HTTPException
from minio import Minio
from minio.error import S3Error
from pydantic import BaseModel, Field
from starlette.requests import Request

from mlstack import s3, settings
from mlstack.server import auth
from mlstack.server.signature import Signer, signer_for_uploads
from mlstack.server.upstream import authorizes_artifact, tracking_store, validate_path_is_safe

# A URL is used within seconds, but one call returns a page of them, and the last of a thousand large files waits for the
# others. A client whose URL has expired requests another one.
LIFETIME = timedelta(minutes=15)
PAGE = 1000  # URLs of one answer
PROXY = "/api/2.0/mlflow-artifacts/artifacts"
LOCATION = "mlflow-artifacts:/"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# A browser saves what it reads through a URL and does not show it: a page would run as one of 127.0.0.1, like MLflow's.
AS_A_FILE = {"response-content-disposition": "attachment", "response-content-type": "application/octet-stream"}

# The artifact locations of runs, models and traces that are not deleted, and the folder from which MLflow derives permissions.
_OWNERS = """
SELECT
  CASE kind WHEN '/traces/' THEN rtrim(artifact_location, '/') || '/traces/' || id || '/artifacts' ELSE location END AS location,
  experiment_id || kind || id || '/artifacts' AS folder
FROM (
  SELECT experiment_id, artifact_uri AS location, '/' AS kind, run_uuid AS id FROM runs
  WHERE run_uuid = ANY(%(ids)s) AND lifecycle_stage = 'active'
  UNION ALL
  SELECT experiment_id, artifact_location, '/models/', model_id FROM logged_models
  WHERE model_id = ANY(%(ids)s) AND lifecycle_stage = 'active'
  UNION ALL
  SELECT experiment_id, NULL, '/traces/', request_id FROM trace_info WHERE request_id = ANY(%(ids)s)
) AS owners JOIN experiments USING (experiment_id) WHERE experiments.lifecycle_stage = 'active'
"""

router = APIRouter(prefix="/api/2.0/mlstack/artifacts")


class ToWrite(BaseModel):
    """Files that a client wants to write below a folder."""

    root: str
    names: list[str] = Field(max_length=PAGE)


class LinksToWrite(BaseModel):
    """A URL for each name, in their order."""

    links: list[str]
    probe: str


class ToRead(BaseModel):
    """A file, or a folder with everything in it; `after` is the last name of the previous page."""

    root: str
    path: str = ""
    after: str = ""


class File(BaseModel):
    """A stored file; its name is relative to the requested folder, and empty for a requested file."""

    name: str
    link: str


class LinksToRead(BaseModel):
    """One page of the requested files. `probe` is the URL of no object: only the right MinIO can say so."""

    files: list[File]
    is_folder: bool
    more: bool
    probe: str


@router.post("/links-to-write")
def write(files: ToWrite, request: Request, caller: auth.CallerOrNone) -> LinksToWrite:
    """A URL for each file. Raises HTTPException 401, 403, or 404 if only MLflow's own route can serve the client."""
    host, root = host_of_minio(request), _allowed(caller, files.root, "update")
    signer = signer_for_uploads(settings.storage(), host, settings.server_keys(), LIFETIME)
    return LinksToWrite(links=[signer.url(_key(root, name)) for name in files.names], probe=_probe(_reader(host), root))


@router.post("/links-to-read")
def read(folder: ToRead, request: Request, caller: auth.CallerOrNone) -> LinksToRead:
    """A URL for each stored file. Raises as `write` does, and 503 when MinIO does not answer."""
    signer, root = _reader(host_of_minio(request)), _allowed(caller, folder.root, "read")
    path = _key(root, folder.path) if folder.path else root
    keys, is_folder = _stored(path, _key(path, folder.after) if folder.after else None)
    files = [File(name=key[len(path) + 1 :], link=signer.url(key)) for key in keys[:PAGE]]
    return LinksToRead(files=files, is_folder=is_folder, more=len(keys) > PAGE, probe=_probe(signer, root))


def _stored(path: str, after: str | None) -> tuple[list[str], bool]:
    """The keys in a folder, a page and one more, or of the file of that name; and whether it is a folder."""
    client, bucket = _client(), settings.server_keys().bucket
    try:
        below = client.list_objects(bucket, f"{path}/", recursive=True, start_after=after)
        if page := [item.object_name or "" for item in islice(below, PAGE + 1)]:
            return page, True
        client.stat_object(bucket, path)
    except S3Error as error:
        if error.code == "NoSuchKey":
            return [], True
        raise HTTPException(503, f"MinIO answers {error.code}.") from error
    except urllib3.exceptions.HTTPError as error:
        raise HTTPException(503, "MinIO does not answer.") from error
    return [path], False


def _allowed(caller: auth.Caller | None, root: str, action: Literal["read", "update"]) -> str:
    """The root as MLflow's proxy reads it. Raises HTTPException if the caller may not do this there."""
    path: str = validate_path_is_safe(root.strip("/"))
    if posixpath.normpath(path) != path:
        raise HTTPException(404, f"{root!r} is no folder of artifacts.")
    folders = _folders(path)
    if caller and not caller.is_admin:
        for folder in folders or [path]:
            if not authorizes_artifact(f"{PROXY}/{folder}", caller.username, None, action):
                raise HTTPException(403, "Permission denied")
    if not folders:
        raise HTTPException(404, f"No run, model or trace keeps artifacts in {root!r}, or it is deleted.")
    return path


def _folders(path: str) -> set[str]:
    """The folder of the run, model or trace that keeps artifacts in this path, and the one that names its experiment.

    They differ if the experiment has its own location. Empty if there is no such run, model or trace.
    """
    for location, folder in auth.rows(tracking_store(), _OWNERS, ids=path.split("/")):
        own = location.removeprefix(LOCATION)
        if location.startswith(LOCATION) and f"{path}/".startswith(f"{own}/"):
            return {own, folder}
    return set()


def _key(root: str, name: str) -> str:
    """The key under which MLflow's proxy stores this file. Raises MlflowException for a name that leads out of the root,
    HTTPException for one with control characters: MLflow drops or escapes them and would store another name."""
    path = validate_path_is_safe(f"{root}/{name}")  # the whole path: a colon or a backslash has no meaning after the root
    key = "/".join(part for part in path.split("/") if part != ".")
    if not key.startswith(f"{root}/") or posixpath.normpath(key) != key or _CONTROL.search(name):
        raise HTTPException(400, f"{name!r} is no name of an artifact.")
    return key


def host_of_minio(request: Request) -> str:
    """The host and port at which the caller reaches MinIO, by the name under which it reaches this server.

    Those of an external store are the same for all.
    """
    host, keys = request.url.hostname, settings.server_keys()
    if keys.is_external:
        return keys.public.partition("://")[2]
    if host == "mlflow":
        return keys.endpoint
    if host in ("localhost", "127.0.0.1", "mlflow.localhost"):
        return f"127.0.0.1:{settings.storage_port()}"
    raise HTTPException(404, f"MinIO cannot be reached from {host}.")


def _reader(host: str) -> Signer:
    return Signer("GET", host, settings.server_keys(), LIFETIME, parameters=AS_A_FILE)


def _probe(reader: Signer, root: str) -> str:
    return reader.url(f"{root}/.mlstack-probe")


@cache
def _client() -> Minio:
    return s3.client_for(settings.server_keys())
