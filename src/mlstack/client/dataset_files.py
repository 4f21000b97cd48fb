"""Moves the files of data sets: up in pieces, down into a cache, each compared with its checksum."""

import fcntl
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mlstack import manifests, settings
from mlstack.client.artifact_repository import transfers_of_user
from mlstack.client.dataset_versions import Manifest, Version, call, version_of
from mlstack.client.errors import ClientError
from mlstack.client.transfers import Advance, is_answered_by_minio, piece_sender, rest_receiver
from mlstack.client.upstream import ArtifactProgressBar
from mlstack.logger import notebook
from mlstack.manifests import File

PAGE = 500  # presigned URLs of one call
CHUNK = 1024 * 1024  # bytes that are read at once
STEPS = 100  # of a progress bar: in a notebook each step is a message to the browser
LARGE = 16 * 1024 * 1024  # bytes that take long enough for a bar
READ_ONLY = 0o444


@dataclass(frozen=True)
class Piece:
    """A file, by its number in the manifest, or a part of a large one, counted from 1; `upload` is the id of its upload."""

    file: int
    part: int
    upload: str
    start: int
    size: int

    @property
    def wanted(self) -> dict[str, Any]:
        """As the server is asked for its URL."""
        return {"file": self.file, "part": self.part, "upload": self.upload}


def upload(source: Path, name: str) -> Version:
    """Stores a file or a folder as a version. Raises ClientError, or OSError when it cannot be read."""
    paths = _paths_in(source)
    files = described(paths)
    if wrong := manifests.complaint(name, files):
        raise ClientError(f"{source} cannot be put: {wrong}.", "Nothing was stored.", "correct the name or the files")
    begun = call("begin", name=name, files=[asdict(file) for file in files])
    version = {"name": name, "version": begun["version"]}
    _require_minio(begun["probe"])
    sources = [paths[file.path] for file in files]
    missing = {number: files[number] for number in sorted({*begun["missing"], *_damaged(version, sources, begun["etags"])})}
    uploads = {number: call("upload", **version, file=number) for number, file in missing.items() if file.parts}
    _send(name, version, sources, list(missing_pieces(missing, uploads)))
    for number, running in uploads.items():
        call("assemble", **version, file=number, upload=running["upload"])
    return version_of(call("finish", **version))


def download(manifest: Manifest, to: Path | None) -> Path:
    """The folder with the files of a version. Raises ClientError when a file is not what was put."""
    if to is not None:
        fetch(manifest, to)
        return to
    folder = cache() / manifest.name / manifest.digest
    record = folder.with_suffix(".json")  # the state of each file when it was verified
    with _locked(folder.with_suffix(".lock")):
        if not record.exists() or json.loads(record.read_text(encoding="utf-8")) != _states(manifest, folder):
            fetch(manifest, folder)
            for file in manifest.files:
                (folder / file.path).chmod(READ_ONLY)  # the next call returns it without reading it
            record.write_text(json.dumps(_states(manifest, folder)), encoding="utf-8")
    return folder


def fetch(manifest: Manifest, folder: Path) -> None:
    """Downloads into a folder what is not there or differs. An interrupted download resumes where it ended."""
    missing = [number for number, file in enumerate(manifest.files) if not _is_equal(folder / file.path, file)]
    total = sum(manifest.files[number].size for number in missing)
    version = {"name": manifest.name, "version": manifest.digest}
    with transfers_of_user() as transfers, _bar(f"Downloading {manifest.name}", total) as advance:
        for page in _pages(missing):
            for number, url in zip(page, call("links-to-read", **version, files=page), strict=True):
                file = manifest.files[number]
                part = _part_of(folder / file.path)
                part.parent.mkdir(parents=True, exist_ok=True)
                transfers.begin(rest_receiver(part, file.size, advance), file.path, url, partial(_url_to_read, version, number))
        transfers.finish()
    for number in missing:
        _put_in_place(folder, manifest.files[number])


def described(paths: Mapping[str, Path]) -> list[File]:
    """These files with their sizes and checksums, in the order of their paths."""
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    with ThreadPoolExecutor(os.cpu_count()) as pool, _bar("Checksums", sum(sizes.values())) as advance:
        # All of a file, and its parts: in parallel, which takes no longer than the first alone on two cores.
        whole = {name: pool.submit(_sha256, path, 0, sizes[name], advance) for name, path in paths.items()}
        parts = {
            name: [pool.submit(_sha256, path, start, size) for start, size in manifests.parts_of(sizes[name])]
            for name, path in paths.items()
        }
        return [
            File(name, sizes[name], whole[name].result(), tuple(part.result() for part in parts[name])) for name in sorted(paths)
        ]


def missing_pieces(missing: Mapping[int, File], uploads: Mapping[int, Any]) -> Iterator[Piece]:
    """What has to be sent: small files whole, and of large ones the parts that are not stored."""
    for number, file in missing.items():
        if not file.parts:
            yield Piece(number, 0, "", 0, file.size)
            continue
        stored = frozenset(uploads[number]["parts"])
        for part, (start, size) in enumerate(manifests.parts_of(file.size), 1):
            if part not in stored:
                yield Piece(number, part, uploads[number]["upload"], start, size)


def cache() -> Path:
    """The folder of downloaded versions. It can be deleted at any time."""
    return Path(settings.of_shell("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mlstack" / "datasets"


def _damaged(version: Mapping[str, str], paths: Sequence[Path], etags: Sequence[str]) -> list[int]:
    """The stored files with other bytes, which the server hides. It reads those whose ETag is not that of these files."""
    stored = [number for number, etag in enumerate(etags) if etag]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        own = list(pool.map(lambda number: manifests.etag_of(paths[number]), stored))
    suspects = [number for number, etag in zip(stored, own, strict=True) if etag != etags[number]]
    return [number for number in suspects if call("check", **version, file=number)["is_damaged"]]


def _send(name: str, version: Mapping[str, str], paths: Sequence[Path], pieces: Sequence[Piece]) -> None:
    def urls(wanted: Sequence[Piece]) -> Any:
        return call("links-to-write", **version, pieces=[piece.wanted for piece in wanted])

    def url_again(piece: Piece, _: str) -> str:
        return str(urls([piece])[0])

    with transfers_of_user() as transfers, _bar(f"Uploading {name}", sum(piece.size for piece in pieces)) as advance:
        for page in _pages(pieces):
            for piece, url in zip(page, urls(page), strict=True):
                path = paths[piece.file]
                send = piece_sender(path, piece.start, piece.size, advance)
                transfers.begin(send, path.name, url, partial(url_again, piece))
        transfers.finish()


def _url_to_read(version: Mapping[str, str], number: int, _: str) -> str:
    return str(call("links-to-read", **version, files=[number])[0])


def _put_in_place(folder: Path, file: File) -> None:
    """Renames a complete download. Raises ClientError when it is not what was put."""
    part = _part_of(folder / file.path)
    if not _is_equal(part, file):
        part.unlink()
        raise ClientError(
            f"{file.path} arrived with other bytes than were put.",
            "It was damaged in MinIO or on the way, and is not used.",
            "do it again; if it happens again, make restore BACKUP=…, with a backup from before that",
        )
    part.replace(folder / file.path)


def _paths_in(source: Path) -> dict[str, Path]:
    """The files of a folder by their paths in it, or a file by its name."""
    source = source.expanduser()
    if source.is_file():
        return {source.name: source}
    if not source.is_dir():
        raise ClientError(f"there is no file or folder {source}.", "Nothing was stored.", "check the path")
    walked = ((Path(folder), name) for folder, _, names in os.walk(source) for name in names)
    return {(folder / name).relative_to(source).as_posix(): folder / name for folder, name in walked}


def _sha256(path: Path, start: int, size: int, advance: Advance = lambda _: None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while size and (chunk := file.read(min(CHUNK, size))):
            digest.update(chunk)
            size -= len(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def _is_equal(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.size and _sha256(path, 0, file.size) == file.sha256


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _states(manifest: Manifest, folder: Path) -> dict[str, list[int]]:
    """Size and time of each file that is there: a change of its bytes changes one of them."""
    states = {file.path: (folder / file.path).stat() for file in manifest.files if (folder / file.path).is_file()}
    return {path: [state.st_size, state.st_mtime_ns] for path, state in states.items()}


def _require_minio(probe: str) -> None:
    if not is_answered_by_minio(probe):
        raise ClientError(
            f"MinIO cannot be reached at {urlsplit(probe).netloc}.",
            "Data sets go directly to and from it.",
            "make doctor; through a tunnel, forward MINIO_PORT too",
        )


Item = TypeVar("Item")


def _pages(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[start : start + PAGE] for start in range(0, len(items), PAGE))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time fills a folder of the cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _bar(label: str, total: int) -> Iterator[Advance]:
    """MLflow's progress bar, for bytes, where somebody sees it. It is called by several threads and moves in steps."""
    step, lock, done = max(1, total // STEPS), threading.Lock(), 0
    with ArtifactProgressBar(label, total, step, unit="B", unit_scale=True) as bar:
        if total >= LARGE and (sys.stderr.isatty() or notebook()):
            bar.set_pbar()

        def advance(size: int) -> None:
            nonlocal done
            with lock:
                before, done = done, done + size
                for _ in range(before // step, done // step):
                    bar.update()

        yield advance
