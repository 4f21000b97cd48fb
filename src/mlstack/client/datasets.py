"""Data sets: named, versioned files that every notebook of the stack reads, without a key.

    from mlstack import datasets
    datasets.put("trips.parquet", "trips")
    trips = datasets.open("trips")
    mlflow.log_input(datasets.dataset("trips"), context="training")

A version is named by the digest of its files: the same files are the same version, and the beginning of a digest is enough. It
never changes, is complete or not visible, and each file is compared with its checksum when it arrives.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlstack.client.dataset_files import download, upload
from mlstack.client.dataset_readers import ENGINES, reader, suffix_of
from mlstack.client.dataset_versions import Version, call, manifest_of, version_of
from mlstack.errors import MlstackError

if TYPE_CHECKING:
    import pandas as pd

    from mlstack.client.dataset_source import Dataset

__all__ = ["Version", "dataset", "delete", "get", "list", "open", "put"]


def put(source: Any, name: str) -> Version:
    """Stores a file, a folder, or a data frame as the newest version of a data set.

    A data frame of pandas or Polars, an Arrow table or a relation of DuckDB is stored as `data.parquet`. After an interruption
    the same call sends what is missing. Raises MlstackError, and then no version is visible.
    """
    with _as_path(source) as path:
        return upload(path, name)


def get(name: str, version: str | None = None, to: str | Path | None = None) -> Path:
    """The folder with the files of a version, by default of the newest. Files are downloaded once, into a cache, or to a folder.

    After an interruption the same call fetches what is missing. Raises MlstackError when a file is not what was put.
    """
    return download(manifest_of(name, version), None if to is None else Path(to))


def list() -> "pd.DataFrame":  # noqa: A001 # as in datasets.list()
    """Every version of every data set: name, version, files, size (bytes), digest, created, by."""
    import pandas as pd

    rows = [version_of(summary) for summary in call("list")]
    return pd.DataFrame(
        {
            "name": [row.name for row in rows],
            "version": [row.version for row in rows],
            "files": [row.files for row in rows],
            "size": [row.size for row in rows],
            "digest": [row.digest for row in rows],
            "created": pd.to_datetime([row.created for row in rows], utc=True, format="ISO8601"),
            "by": [row.by for row in rows],
        }
    )


def open(name: str, version: str | None = None, *, engine: str = "pandas", **options: Any) -> Any:  # noqa: A001 # as in datasets.open(…)
    """The frame in a version's only file, Parquet or CSV; for any other version the folder of its files.

    `engine` is pandas, polars, duckdb or pyarrow; `options` are those of its reader, such as columns=["a", "b"].
    """
    if engine not in ENGINES:
        raise MlstackError(f"engine={engine!r} is unknown.", "It says what reads the file.", f"use {', '.join(ENGINES)}")
    manifest = manifest_of(name, version)
    files = manifest.files
    kind = suffix_of(files[0].path) if len(files) == 1 else None
    read = reader(engine, kind) if kind else None  # before the download: a library may be missing
    folder = download(manifest, None)
    return read(str(folder / files[0].path), **options) if read else folder


def dataset(name: str, version: str | None = None) -> "Dataset":
    """A version for `mlflow.log_input`: its digest, and a source with which MLflow gets the same bytes again."""
    from mlstack.client.dataset_source import dataset_of

    return dataset_of(manifest_of(name, version))


def delete(name: str, version: str) -> None:
    """Hides a version. `make gc` deletes its files when that was longer ago than its age limit; put makes it visible again.

    Only the account that put it, or an admin, may delete it.
    """
    call("delete", name=name, version=version)


@contextmanager
def _as_path(source: Any) -> Iterator[Path]:
    """A source as a file or folder: a data frame is written to a temporary file first."""
    if isinstance(source, str | Path):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory(prefix="mlstack-") as folder:
        path = Path(folder, "data.parquet")
        _write_parquet(source, str(path))
        yield path


def _write_parquet(frame: Any, path: str) -> None:
    if type(frame).__module__.partition(".")[0] == "pyarrow":
        from pyarrow import parquet

        parquet.write_table(frame, path)
        return
    # pandas; Polars and DuckDB.
    writers = (getattr(frame, name, None) for name in ("to_parquet", "write_parquet"))
    write = next((writer for writer in writers if writer), None)
    if write is None:
        raise MlstackError(
            f"a {type(frame).__name__} cannot be put.",
            "Nothing was stored.",
            "give a path, or a data frame of pandas, Polars, DuckDB or pyarrow",
        )
    write(path)
