"""Presigned URLs with which a client reads and writes artifacts in MinIO itself, past this server (docs/adr/0009, 0016).

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
from mlstack.server.signature import Signer
from mlstack.server.upstream import authorizes_artifact, tracking_store, validate_path_is_safe

# A link is used within seconds, but one call hands out a page of them, and the last of a thousand large files waits for the
# others. Who is later asks again: nothing breaks, so nothing speaks for longer.
LIFETIME = timedelta(minutes=15)
PAGE = 1000  # links of one answer
PROXY = "/api/2.0/mlflow-artifacts/artifacts"
LOCATION = "mlflow-artifacts:/"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What MinIO would obey in an upload, although no client of ours sends it: its sender chooses an object's date, checksum, tags
# and encoding. The policy of MLflow's user can name tags and denies them as well; it cannot name the others.
NOT_IN_UPLOADS = (
    "content-encoding",
    "x-amz-tagging",
    "x-minio-source-etag",
    "x-minio-source-mtime",
    "x-minio-source-replication-request",
    "x-minio-source-version-id",
)
# A browser saves what it reads through a URL and does not show it: as a page it would be one of 127.0.0.1, beside MLflow's.
AS_A_FILE = {"response-content-disposition": "attachment", "response-content-type": "application/octet-stream"}

# Where runs, models and traces that are not deleted keep artifacts, and the folder by which MLflow knows what each is.
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
def write(wanted: ToWrite, request: Request, caller: auth.CallerOrNone) -> LinksToWrite:
    """A URL for each file. Raises HTTPException 401, 403, or 404 where only MLflow's own route can serve the client."""
    host, root = _host(request), _allowed(caller, wanted.root, "update")
    signer = Signer("PUT", host, settings.server_keys(), LIFETIME, empty=NOT_IN_UPLOADS)
    return LinksToWrite(links=[signer.url(_key(root, name)) for name in wanted.names], probe=_probe(_reader(host), root))


@router.post("/links-to-read")
def read(wanted: ToRead, request: Request, caller: auth.CallerOrNone) -> LinksToRead:
    """A URL for each file that is there. Raises as `write` does, and 503 when MinIO does not answer."""
    signer, root = _reader(_host(request)), _allowed(caller, wanted.root, "read")
    path = _key(root, wanted.path) if wanted.path else root
    keys, is_folder = _found(path, _key(path, wanted.after) if wanted.after else None)
    files = [File(name=key[len(path) + 1 :], link=signer.url(key)) for key in keys[:PAGE]]
    return LinksToRead(files=files, is_folder=is_folder, more=len(keys) > PAGE, probe=_probe(signer, root))


def _found(path: str, after: str | None) -> tuple[list[str], bool]:
    """The keys below a folder, a page and one more, or of the file of that name; and whether it is a folder."""
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
    """The root as MLflow's proxy would see it, if the caller may do this there."""
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
    """Of the run, model or trace that keeps artifacts in this path: its folder, and the one that names its experiment.

    They differ where the experiment has a location of its own. Empty when there is no such run, model or trace.
    """
    for location, folder in auth.rows(tracking_store(), _OWNERS, ids=path.split("/")):
        own = location.removeprefix(LOCATION)
        if location.startswith(LOCATION) and f"{path}/".startswith(f"{own}/"):
            return {own, folder}
    return set()


def _key(root: str, name: str) -> str:
    """Where MLflow's proxy keeps this file. Raises MlflowException for a name that leads out of the root, HTTPException for one
    that does not last: MLflow drops or escapes control characters, so that the file would be stored under another name."""
    path = validate_path_is_safe(f"{root}/{name}")  # as a whole: a colon or a backslash means nothing behind the root
    key = "/".join(part for part in path.split("/") if part != ".")
    if not key.startswith(f"{root}/") or posixpath.normpath(key) != key or _CONTROL.search(name):
        raise HTTPException(400, f"{name!r} is no name of an artifact.")
    return key


def _host(request: Request) -> str:
    """Where the caller reaches MinIO, judging by the name under which it reaches this server."""
    host = request.url.hostname
    if host == "mlflow":
        return settings.server_keys().endpoint
    if host in ("localhost", "127.0.0.1", "mlflow.localhost"):
        return f"127.0.0.1:{settings.storage_port()}"
    raise HTTPException(404, f"There is no way to MinIO from {host}.")


def _reader(host: str) -> Signer:
    return Signer("GET", host, settings.server_keys(), LIFETIME, parameters=AS_A_FILE)


def _probe(reader: Signer, root: str) -> str:
    return reader.url(f"{root}/.mlstack-probe")


@cache
def _client() -> Minio:
    return s3.client_for(settings.server_keys())
