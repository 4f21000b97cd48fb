"""What reads a Parquet or CSV file as a frame."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from mlstack.errors import MlstackError

# By library and kind of file: the module and its function.
ENGINES = {
    "pandas": {"parquet": ("pandas", "read_parquet"), "csv": ("pandas", "read_csv")},
    "polars": {"parquet": ("polars", "read_parquet"), "csv": ("polars", "read_csv")},
    "duckdb": {"parquet": ("duckdb", "read_parquet"), "csv": ("duckdb", "read_csv")},
    "pyarrow": {"parquet": ("pyarrow.parquet", "read_table"), "csv": ("pyarrow.csv", "read_csv")},
}
_SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".csv.gz": "csv"}


def suffix_of(path: str) -> str | None:
    """The kind of a file that can be read as a frame, by the end of its name."""
    return next((kind for suffix, kind in _SUFFIXES.items() if path.lower().endswith(suffix)), None)


def reader(engine: str, kind: str) -> Callable[..., Any]:
    """The function of a library that reads a kind of file. Raises MlstackError where the library is not installed."""
    module, function = ENGINES[engine][kind]
    try:
        read: Callable[..., Any] = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        raise MlstackError(
            f"{error.name} is not installed here.",
            f'engine="{engine}" reads the file with it.',
            f"pip install {engine}, or another engine",
        ) from error
    return read
