"""The folder `mlruns` of MLflow's file store, read into a SQLite database.

MLflow's own migration (`mlflow migrate-filestore`) does it for everything but runs. It holds a thousand runs with all their
points in memory, and a point that was logged twice, or one unreadable file, ends it; so runs are read here, one by one.
"""

import logging
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities import RunStatus
from mlflow.store.fs2db import _registry, _tracking
from mlflow.store.fs2db._utils import MigrationStats, for_each_experiment, list_subdirs, read_metric_lines, read_tag_files
from mlflow.store.tracking.file_store import FileStore
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

LARGEST = 1.7976931348623157e308  # stands for infinity in MLflow's tables
Rows = dict[str, list[tuple[Any, ...]]]  # by table
_COLUMNS = {
    "runs": (
        "run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time, deleted_time,"
        " source_version, lifecycle_stage, artifact_uri, experiment_id"
    ),
    "params": "key, value, run_uuid",
    "tags": "key, value, run_uuid",
    "metrics": "key, value, timestamp, step, is_nan, run_uuid",
    "latest_metrics": "key, value, timestamp, step, is_nan, run_uuid",
}
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C it is ten times as fast


class _Warnings(logging.Handler):
    """Collects what MLflow's migration skips."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def read(mlruns: Path, database: Path) -> list[str]:
    """Reads everything into an empty database of the present schema. Returns what could not be read."""
    warnings = _Warnings()
    logger = logging.getLogger("mlflow.store.fs2db")
    logger.addHandler(warnings)
    try:
        _read_all_but_runs(mlruns, database)
    finally:
        logger.removeHandler(warnings)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        problems = list(_read_runs(connection, mlruns))
        connection.commit()
    return [*warnings.messages, *problems]


def _read_all_but_runs(mlruns: Path, database: Path) -> None:
    stats = MigrationStats()
    with Session(create_engine(f"sqlite:///{database}")) as session:
        _tracking.migrate_experiments(session, mlruns, stats)
        _tracking.migrate_datasets(session, mlruns, stats)
        for folder, _ in for_each_experiment(mlruns):
            _tracking._migrate_outputs_for_experiment(session, folder, stats)
        _tracking.migrate_traces(session, mlruns, stats)
        session.flush()
        _tracking.migrate_assessments(session, mlruns, stats)
        _tracking.migrate_logged_models(session, mlruns, stats)
        for model in _registry.list_registered_models(mlruns):
            _registry._migrate_one_registered_model(session, model, stats)
        session.commit()


def _read_runs(connection: sqlite3.Connection, mlruns: Path) -> Iterator[str]:
    for folder, experiment in for_each_experiment(mlruns):
        for name in list_subdirs(folder):
            if name in _tracking.RESERVED_FOLDERS:
                continue
            try:
                _insert(connection, rows_of(folder / name, int(experiment)))
            except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, sqlite3.IntegrityError) as error:
                yield f"run {folder.name}/{name}: {error}"


def _insert(connection: sqlite3.Connection, rows: Rows) -> None:
    for table, values in rows.items():  # runs first: when it is rejected, there is nothing to undo
        verb = "INSERT OR IGNORE" if table == "metrics" else "INSERT"  # a point can be logged twice
        marks = ", ".join("?" * (_COLUMNS[table].count(",") + 1))
        connection.executemany(f"{verb} INTO {table} ({_COLUMNS[table]}) VALUES ({marks})", values)


def rows_of(folder: Path, experiment: int) -> Rows:
    """The rows of a run. Raises OSError, ValueError, KeyError, TypeError or YAMLError when its files are damaged."""
    with (folder / FileStore.META_DATA_FILE_NAME).open(encoding="utf-8") as file:
        meta = yaml.load(file, _Loader)  # noqa: S506 - a safe loader
    if not isinstance(meta, dict):
        raise ValueError(f"{FileStore.META_DATA_FILE_NAME} is empty or truncated")  # noqa: TRY004 - the file's content
    run = meta.get("run_uuid") or meta["run_id"]
    metrics = {key: list(points_of(lines)) for key, lines in read_metric_lines(folder / FileStore.METRICS_FOLDER_NAME).items()}
    return {
        "runs": [_run_row(meta, run, experiment)],
        "params": [(key, value, run) for key, value in read_tag_files(folder / FileStore.PARAMS_FOLDER_NAME).items()],
        "tags": [(key, value, run) for key, value in read_tag_files(folder / FileStore.TAGS_FOLDER_NAME).items()],
        "metrics": [(key, *point, run) for key, points in metrics.items() for point in points],
        "latest_metrics": [(key, *max(points, key=_age), run) for key, points in metrics.items() if points],
    }


def points_of(lines: Sequence[str]) -> Iterator[tuple[float, int, int, bool]]:
    """Value, time, step and whether it is NaN. Raises ValueError for a line that MLflow did not write."""
    for line in lines:
        time, number, *rest = line.split()
        value = float(number)
        if math.isnan(value):
            yield 0.0, int(time), int(rest[0]) if rest else 0, True
        else:
            yield max(-LARGEST, min(LARGEST, value)), int(time), int(rest[0]) if rest else 0, False


def _age(point: tuple[float, int, int, bool]) -> tuple[int, int, float]:
    value, time, step, _ = point
    return step, time, value


def _run_row(meta: Mapping[str, Any], run: str, experiment: int) -> tuple[Any, ...]:
    status = meta.get("status", RunStatus.RUNNING)
    source_type = meta.get("source_type")
    return (
        run,
        meta.get("run_name") or meta.get("name"),
        source_type if isinstance(source_type, str) else "LOCAL",
        meta.get("source_name", ""),
        meta.get("entry_point_name", ""),
        meta.get("user_id"),
        RunStatus.to_string(status) if isinstance(status, int) else status,
        meta.get("start_time"),
        meta.get("end_time"),
        meta.get("deleted_time"),
        meta.get("source_version", ""),
        meta.get("lifecycle_stage", "active"),
        meta.get("artifact_uri"),
        experiment,
    )
