"""Data sets: versions of files in a bucket of their own, which clients write and read through presigned URLs (docs/adr/0028).

A version is named by the digest of its manifest, and each URL for an upload accepts only the bytes whose checksum is in that
manifest. So a version is immutable, and an upload can be resumed by any client: what is stored is what belongs there.
A version is visible when its manifest is, which is written last. Every account reads and writes all data sets.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from io import BytesIO
from typing import Any
from urllib.parse import quote, unquote

import urllib3
from botocore.exceptions import BotoCoreError, ClientError
from fastapi import APIRouter, HTTPException
from minio import Minio
from minio.error import S3Error
from pydantic import BaseModel, Field, TypeAdapter
from starlette.requests import Request

from mlstack import manifests, s3, settings
from mlstack.manifests import File
from mlstack.s3 import MANIFESTS, UPLOADS, manifest_of
from mlstack.server import auth
from mlstack.server.presigned_urls import AS_A_FILE, LIFETIME, PAGE, host_of_minio
from mlstack.server.signature import Signer, signer_for_uploads

CHUNK = 1024 * 1024  # bytes that are read at once
NOBODY = "anyone"  # puts data sets where accounts are off
_MISSING = ("NoSuchKey", "NoSuchUpload", "404")
_FULL = "XMinioAdminBucketQuotaExceeded"

router = APIRouter(prefix="/api/2.0/mlstack/datasets")


class Content(BaseModel, extra="forbid"):
    """The files of a version that a client wants to put."""

    name: str
    files: list[File]


class Named(BaseModel, extra="forbid"):
    """A version. It may be given by the beginning of its digest where it is looked up; empty is the newest."""

    name: str
    version: str


class InFile(Named):
    """A file of a version, by its place in the manifest."""

    file: int


class Assembled(InFile):
    """A large file whose parts are complete."""

    upload: str


class Piece(BaseModel, extra="forbid"):
    """A file, or a part of a large one, counted from 1; `upload` is the id of its upload."""

    file: int
    part: int = 0
    upload: str = ""


class Pieces(Named):
    """What a client wants to write."""

    pieces: list[Piece] = Field(max_length=PAGE)


class Files(Named):
    """What a client wants to read, by the places in the manifest."""

    files: list[int] = Field(max_length=PAGE)


class Begun(BaseModel):
    """An upload: which files are missing, and the ETag of each, empty for a missing one.

    `probe` is the URL of no object: only the right MinIO can say so.
    """

    version: str
    missing: list[int]
    etags: list[str]
    probe: str


class Checked(BaseModel):
    """Whether a stored file had other bytes than its manifest says. Then it is missing now."""

    is_damaged: bool


class Upload(BaseModel):
    """The upload of a large file, and the parts of it that are stored."""

    upload: str
    parts: list[int]


@dataclass(frozen=True)
class Summary:
    """A complete version, as in a list. `created` is when it was put last, and `by` the account that put it first."""

    name: str
    version: str
    files: int
    size: int
    created: str
    by: str


@dataclass(frozen=True)
class Manifest:
    """The files of a version."""

    name: str
    version: str
    files: tuple[File, ...]


_manifest: TypeAdapter[Manifest] = TypeAdapter(Manifest)


@router.post("/begin")
def begin(content: Content, request: Request) -> Begun:
    """Begins or resumes an upload. Raises HTTPException 400 for a name or files that cannot be kept."""
    if wrong := manifests.complaint(content.name, content.files):
        raise HTTPException(400, f"This data set cannot be kept: {wrong}.")
    files = tuple(sorted(content.files, key=lambda file: file.path))
    manifest = Manifest(content.name, manifests.digest_of(files), files)
    host = host_of_minio(request)
    with _explained():
        _write(manifest_of(_folder(manifest), UPLOADS), json.dumps(asdict(manifest)).encode())
        etags = _etags(manifest)
    missing = [number for number, etag in enumerate(etags) if not etag]
    probe = _reader(host).url(f"{UPLOADS}.mlstack-probe")
    return Begun(version=manifest.version, missing=missing, etags=etags, probe=probe)


@router.post("/check")
def check(suspect: InFile) -> Checked:
    """Reads a stored file, and hides it if it has other bytes than its manifest says: then it can be sent again."""
    with _explained():
        manifest = _begun(suspect)
        is_damaged = not _is_intact(_file(manifest, suspect.file), _key(manifest, suspect.file))
        if is_damaged:
            _client().remove_object(_bucket(), _key(manifest, suspect.file))
    return Checked(is_damaged=is_damaged)


@router.post("/upload")
def upload(large: InFile) -> Upload:
    """Begins or resumes the upload of a large file in parts."""
    with _explained():
        manifest = _writable(large, large.file)
        key = _key(manifest, large.file)
        running = _s3().list_multipart_uploads(Bucket=_bucket(), Prefix=key).get("Uploads", [])
        ids = [upload["UploadId"] for upload in running if upload["Key"] == key]
        if not ids:
            return Upload(upload=_s3().create_multipart_upload(Bucket=_bucket(), Key=key)["UploadId"], parts=[])
        return Upload(upload=ids[0], parts=list(_parts(manifest.files[large.file], key, ids[0])))


@router.post("/links-to-write")
def write(wanted: Pieces, request: Request) -> list[str]:
    """A URL for each piece, in their order, which accepts its very bytes. Raises HTTPException 409 for what is complete."""
    bucket = _bucket()
    signer = signer_for_uploads(settings.storage(), host_of_minio(request), settings.server_keys(), LIFETIME, bucket)
    with _explained():
        manifest = _writable(wanted, *(piece.file for piece in wanted.pieces))
    return [_url_to_write(signer, manifest, piece) for piece in wanted.pieces]


@router.post("/assemble")
def assemble(large: Assembled) -> None:
    """Completes a large file. Raises HTTPException 409 if parts of it are missing."""
    with _explained():
        manifest = _writable(large, large.file)
        file, key = _file(manifest, large.file), _key(manifest, large.file)
        try:
            tags = _parts(file, key, large.upload)
        except ClientError as error:
            if _code(error) in _MISSING and large.file not in _missing(manifest):
                return  # another client was faster
            raise
        if len(tags) < len(file.parts):
            raise HTTPException(409, f"{len(file.parts) - len(tags)} of {len(file.parts)} parts of {file.path} are missing.")
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in sorted(tags.items())]
        _s3().complete_multipart_upload(
            Bucket=_bucket(), Key=key, UploadId=large.upload, MultipartUpload={"Parts": parts}
        )  # fmt: skip


@router.post("/finish")
def finish(version: Named, caller: auth.CallerOrNone) -> Summary:
    """Makes a version visible. Raises HTTPException 409 unless every file is stored."""
    with _explained():
        manifest = _begun(version)
        if missing := _missing(manifest):
            raise HTTPException(409, f"{len(missing)} files are missing, such as {manifest.files[missing[0]].path}.")
        earlier = next(_summaries(manifest_of(_folder(manifest))), None)  # putting it again makes it nobody else's
        by = earlier.by if earlier else caller.username if caller else NOBODY
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        summary = Summary(manifest.name, manifest.version, len(manifest.files), _size(manifest), created, by)
        _write(manifest_of(_folder(manifest)), json.dumps(asdict(manifest)).encode(), summary)
        _client().remove_object(_bucket(), manifest_of(_folder(manifest), UPLOADS))
    return summary


@router.post("/list")
def listed() -> list[Summary]:
    """Every complete version, by name and time."""
    with _explained():
        summaries = list(_summaries(MANIFESTS))
    return sorted(summaries, key=lambda summary: (summary.name, summary.created))


@router.post("/manifest")
def manifest(wanted: Named) -> Manifest:
    """The files of a complete version. Raises HTTPException 404 if there is none, 400 if several begin like this."""
    with _explained():
        return _complete(_resolved(wanted))


@router.post("/links-to-read")
def read(wanted: Files, request: Request) -> list[str]:
    """A URL for each file, in their order; it also reads a range."""
    signer = _reader(host_of_minio(request))
    with _explained():
        manifest = _complete(wanted)
    return [signer.url(_key(manifest, number)) for number in wanted.files]


@router.post("/delete")
def delete(wanted: Named, caller: auth.CallerOrNone) -> Summary:
    """Hides a version; make gc removes its files. Raises HTTPException 403 unless the caller put it, or is an admin."""
    with _explained():
        version = _resolved(wanted)
        (summary,) = _summaries(manifest_of(f"{version.name}/{version.version}"))
        if caller and not caller.is_admin and caller.username != summary.by:
            raise HTTPException(403, f"{summary.by} put this version. Only that account and an admin may delete it.")
        _client().remove_object(_bucket(), manifest_of(f"{version.name}/{version.version}"))
    return summary


def _url_to_write(signer: Signer, manifest: Manifest, piece: Piece) -> str:
    file, key = _file(manifest, piece.file), _key(manifest, piece.file)
    if not file.parts and not piece.part:
        return signer.url_for_content(key, file.sha256, {})
    if not 0 < piece.part <= len(file.parts) or not piece.upload:
        raise HTTPException(400, f"{file.path} has no part {piece.part}.")
    return signer.url_for_content(
        key, file.parts[piece.part - 1], {"partNumber": str(piece.part), "uploadId": piece.upload}
    )  # fmt: skip


def _resolved(wanted: Named) -> Named:
    """The version that is meant."""
    if not manifests.is_name(wanted.name) or not manifests.is_version(wanted.version.ljust(manifests.DIGEST, "0")):
        raise HTTPException(404, f"There is no data set {wanted.name[:120]} {wanted.version[:40]}".rstrip() + ".")
    summaries = sorted(_summaries(f"{MANIFESTS}{wanted.name}/{wanted.version}"), key=lambda summary: summary.created)
    if not summaries:
        raise HTTPException(404, f"There is no data set {wanted.name} {wanted.version}".rstrip() + ".")
    if wanted.version and len(summaries) > 1:
        raise HTTPException(400, f"{len(summaries)} versions of {wanted.name} begin with {wanted.version}.")
    return Named(name=wanted.name, version=summaries[-1].version)


def _summaries(prefix: str) -> Iterator[Summary]:
    """The complete versions whose manifests have keys with this prefix. MinIO lists them with their metadata."""
    for listed in _client().list_objects(_bucket(), prefix, recursive=True, include_user_meta=True):
        # VersityGW lists without.
        item = listed if listed.metadata else _client().stat_object(_bucket(), listed.object_name or "")
        name, _, version = (item.object_name or "").removeprefix(MANIFESTS).removesuffix(".json").partition("/")
        known = {key.lower().removeprefix("x-amz-meta-"): unquote(value) for key, value in (item.metadata or {}).items()}
        yield Summary(name, version, int(known["files"]), int(known["size"]), known["created"], known["by"])


def _writable(version: Named, *files: int) -> Manifest:
    """A version whose upload has begun. Raises HTTPException 404 if it has not, 409 if it is complete and has these files."""
    manifest = _begun(version)
    is_complete = any(_client().list_objects(_bucket(), manifest_of(_folder(manifest))))
    if is_complete and not {*files} <= {*_missing(manifest)}:
        raise HTTPException(409, "This version is complete: it is immutable.")
    return manifest


def _begun(version: Named) -> Manifest:
    return _read_manifest(version, UPLOADS)


def _complete(version: Named) -> Manifest:
    return _read_manifest(version, MANIFESTS)


def _read_manifest(version: Named, place: str) -> Manifest:
    """Raises HTTPException 404 if it is not there."""
    if manifests.is_name(version.name) and manifests.is_version(version.version):
        key = manifest_of(f"{version.name}/{version.version}", place)
        try:
            return _parsed(key, _client().stat_object(_bucket(), key).etag or "")
        except S3Error as error:
            if error.code not in _MISSING:
                raise
    raise HTTPException(404, f"There is no data set {version.name[:120]} {version.version[:40]}, or no upload of it.")


@lru_cache(maxsize=2)  # of up to 50,000 files each
def _parsed(key: str, _: str) -> Manifest:
    answer = _client().get_object(_bucket(), key)
    try:
        return _manifest.validate_json(answer.read())
    finally:
        answer.close()
        answer.release_conn()


def _missing(manifest: Manifest) -> list[int]:
    """The places of the files that are not stored."""
    return [number for number, etag in enumerate(_etags(manifest)) if not etag]


def _etags(manifest: Manifest) -> list[str]:
    """The ETag of each file; empty if it is not stored, or with another size."""
    folder = f"{_folder(manifest)}/"
    listed = _client().list_objects(_bucket(), folder, recursive=True)
    stored = {(item.object_name, item.size): (item.etag or "").strip('"') for item in listed}
    return [stored.get((folder + file.path, file.size), "") for file in manifest.files]


def _is_intact(file: File, key: str) -> bool:
    """Whether the object has the bytes of the file. Reads it up to the first part that differs."""
    answer = _client().get_object(_bucket(), key)
    try:
        for sha256 in file.parts or (file.sha256,):
            digest, rest = hashlib.sha256(), manifests.PART
            while rest and (chunk := answer.read(min(CHUNK, rest))):
                digest.update(chunk)
                rest -= len(chunk)
            if digest.hexdigest() != sha256:
                return False
    finally:
        answer.close()
        answer.release_conn()
    return True


def _parts(file: File, key: str, upload: str) -> Mapping[int, str]:
    """The ETag of each stored part of a large file."""
    pages = _s3().get_paginator("list_parts").paginate(Bucket=_bucket(), Key=key, UploadId=upload)
    sizes = [size for _, size in manifests.parts_of(file.size)]
    return {
        part["PartNumber"]: part["ETag"]
        for page in pages
        for part in page.get("Parts", [])
        if part["PartNumber"] <= len(sizes) and part["Size"] == sizes[part["PartNumber"] - 1]
    }


def _file(manifest: Manifest, number: int) -> File:
    if not 0 <= number < len(manifest.files):
        raise HTTPException(400, f"{manifest.name} has {len(manifest.files)} files, and none with the number {number}.")
    return manifest.files[number]


def _key(manifest: Manifest, number: int) -> str:
    return f"{_folder(manifest)}/{_file(manifest, number).path}"


def _folder(manifest: Manifest) -> str:
    return f"{manifest.name}/{manifest.version}"


def _size(manifest: Manifest) -> int:
    return sum(file.size for file in manifest.files)


def _write(key: str, content: bytes, summary: Summary | None = None) -> None:
    known = {name: quote(str(value)) for name, value in asdict(summary).items()} if summary else {}
    _client().put_object(_bucket(), key, BytesIO(content), len(content), "application/json", dict(known))


def _reader(host: str) -> Signer:
    return Signer("GET", host, settings.server_keys(), LIFETIME, parameters=AS_A_FILE, bucket=_bucket())


def _bucket() -> str:
    return settings.server_keys().datasets


@contextmanager
def _explained() -> Iterator[None]:
    """Turns errors of MinIO into HTTPException: 404 for an upload that is gone, 507 for a full bucket, and 503."""
    try:
        yield
    except (S3Error, ClientError) as error:
        code = _code(error)
        if code in _MISSING:
            raise HTTPException(404, "This upload is not there any more. Begin again.") from error
        if code == _FULL:
            raise HTTPException(507, "The bucket is full: it holds as much as MINIO_BUCKET_QUOTA allows.") from error
        raise HTTPException(503, f"MinIO answers {code}.") from error
    except (urllib3.exceptions.HTTPError, BotoCoreError) as error:
        raise HTTPException(503, "MinIO does not answer.") from error


def _code(error: S3Error | ClientError) -> str:
    return str(error.code if isinstance(error, S3Error) else error.response["Error"]["Code"])


@cache
def _client() -> Minio:
    return s3.client_for(settings.server_keys())


@cache
def _s3() -> Any:
    """boto3's client: that of minio-py has no public calls for uploads in parts that others continue."""
    import boto3  # 20 MB in each worker, only where a large file is put
    from botocore.config import Config

    keys = settings.server_keys()
    return boto3.client(
        "s3",
        endpoint_url=keys.url,
        verify=keys.authorities or None,
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        region_name=keys.region,
        config=Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )
