"""The manifest of a data set's version: its files and their checksums, from which client and server compute the same digest.

The digest names the version: the same files are the same version, and no other files can ever have its name.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

PART = 32 * 1024 * 1024  # bytes; a larger file is uploaded in parts of this size, and an interrupted upload lacks only the rest
MOST_PARTS = 10_000  # S3's limit
MOST_FILES = 50_000
LONGEST_PATH, LONGEST_NAME = 700, 255  # bytes, of a path and of each folder or file in it: with the name they fit in a key
DIGEST = 32  # hexadecimal digits: MLflow stores up to 36

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(rf"[0-9a-f]{{{DIGEST}}}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True)
class File:
    """A file of a version: its path below the version's folder, and the checksums of all of it and of its parts.

    A file of at most PART bytes has no parts.
    """

    path: str
    size: int
    sha256: str
    parts: tuple[str, ...] = ()


def parts_of(size: int) -> list[tuple[int, int]]:
    """Start and size of each part of a file; empty if it is not larger than one."""
    return [(start, min(PART, size - start)) for start in range(0, size, PART)] if size > PART else []


def digest_of(files: Sequence[File]) -> str:
    """The digest of a version with these files."""
    listed = [astuple(file) for file in sorted(files, key=lambda file: file.path)]
    return hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()[:DIGEST]


def etag_of(path: Path, part: int = PART) -> str:
    """What S3 answers for a file that is uploaded in parts of this size: a checksum of its content."""
    digests = []
    with path.open("rb") as file:
        while chunk := file.read(part):
            digests.append(hashlib.md5(chunk, usedforsecurity=False))
    if len(digests) > 1:
        joined = hashlib.md5(b"".join(digest.digest() for digest in digests), usedforsecurity=False)
        return f"{joined.hexdigest()}-{len(digests)}"
    return digests[0].hexdigest() if digests else hashlib.md5(b"", usedforsecurity=False).hexdigest()


def is_name(name: str) -> bool:
    """Whether a data set can have this name."""
    return bool(_NAME.fullmatch(name))


def is_version(version: str) -> bool:
    """Whether it has the form of a digest."""
    return bool(_VERSION.fullmatch(version))


def complaint(name: str, files: Sequence[File]) -> str | None:
    """Why no version of a data set can have this name and these files; None if one can."""
    return next(_complaints(name, files), None)


def _complaints(name: str, files: Sequence[File]) -> Iterator[str]:
    if not is_name(name):
        yield f"{name[:120]!r} is no name of a data set: up to 100 letters, digits, ., _ and -, and the first a letter or digit"
    if not files:
        yield "there is no file in it"
    if len(files) > MOST_FILES:
        yield f"it has {len(files)} files, and a data set has at most {MOST_FILES}: pack them, for example as Parquet"
    paths = {file.path for file in files}
    if len(paths) < len(files):
        yield "a path is in it twice"
    for file in files:
        if not _is_path(file.path):
            yield f"{file.path[:120]!r} is no path of a file in a data set: rename the file"
        if clash := next((folder for folder in _folders(file.path) if folder in paths), None):
            yield f"{clash!r} is both a file and a folder"
        if not _has_checksums(file):
            yield f"the size and the checksums of {file.path!r} do not fit together"


def _is_path(path: str) -> bool:
    try:
        encoded = path.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    is_short = len(encoded) <= LONGEST_PATH and max(map(len, encoded.split(b"/"))) <= LONGEST_NAME
    is_below = posixpath.normpath(path) == path and path not in (".", "..") and not path.startswith(("/", "../"))
    return is_short and is_below and not _FORBIDDEN.search(path)


def _folders(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _has_checksums(file: File) -> bool:
    hashes = (file.sha256, *file.parts)
    is_sized = 0 <= file.size <= PART * MOST_PARTS and len(file.parts) == len(parts_of(file.size))
    return is_sized and all(map(_SHA256.fullmatch, hashes))
