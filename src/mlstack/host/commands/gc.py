"""`make gc`: permanent deletion. Nothing younger than the age limit is touched."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mlstack import postgres, settings
from mlstack.errors import MlstackError
from mlstack.host.backup.data_services import data_services
from mlstack.host.one_shot import in_one_shot
from mlstack.host.stack import Stack
from mlstack.logger import get_logger
from mlstack.s3 import DOCTOR, Folder, trace_folder

log = get_logger("mlstack.gc")
Item = TypeVar("Item")

UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
BATCH = 200  # ids or folders for each one-shot: progress is shown after each
READY = 2  # MLflow's status of a logged model whose files are complete
# Folders whose shape is MLflow's own. Anything else in the bucket is a user's own, and never touched.
_OURS = re.compile(r"\d+/(?:(?P<run>[0-9a-f]{32})|models/(?P<model>m-[0-9a-f]{32})|traces/(?P<trace>tr-[0-9a-f]{32}))/")


@dataclass(frozen=True)
class Rows:
    """The rows of MLflow's database. The trash is what was deleted longer ago than the age limit; folders by id."""

    known: frozenset[str]
    used: frozenset[str]  # by versions of registered models: their files are kept, whatever is in the trash
    trashed_runs: dict[str, str]
    trashed_models: dict[str, str]
    trashed_experiments: tuple[str, ...]
    models: dict[str, tuple[str, str]]  # id: name and folder of those that should have files
    versions: dict[str, str]  # name of a registered model's version: the id that it refers to
    old_traces: tuple[tuple[str, str], ...] = ()  # experiment and id of those older than TRACE_RETENTION
    archivable: tuple[str, ...] = ()  # ids of those older than TRACE_ARCHIVE whose spans are in the database
    trashed_traces: tuple[tuple[str, str], ...] = ()  # experiment and id of those in trashed_experiments


@dataclass(frozen=True)
class Image:
    """An untagged image of this project: a newer one has its name. Size in bytes, shared layers included."""

    id: str
    size: int


@dataclass(frozen=True)
class Plan:
    """What would be deleted, what is kept, and why. Sizes in bytes."""

    age: timedelta
    runs: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()
    traces: tuple[tuple[str, str], ...] = ()  # experiment and id
    archive: tuple[str, ...] = ()  # ids of the traces whose spans move to the bucket
    folders: tuple[str, ...] = ()  # of those runs, models and traces
    folders_size: int = 0
    expired: int = 0
    expired_size: int = 0
    orphans: tuple[Folder, ...] = ()
    datasets: tuple[Folder, ...] = ()  # versions of data sets that are deleted, or were never complete
    images: tuple[Image, ...] = ()
    kept: tuple[str, ...] = ()  # in the trash, and used by a registered model
    young: int = 0  # folders without a row, too young to judge
    missing: tuple[str, ...] = ()  # rows without files
    foreign: int = 0  # objects that are not MLflow's

    @property
    def is_empty(self) -> bool:
        rows = self.runs or self.models or self.experiments or self.traces or self.archive
        return not (rows or self.expired or self.orphans or self.datasets or self.images)

    @property
    def size(self) -> int:
        without_owner = sum(folder.size + folder.old_size for folder in self.orphans + self.datasets)
        return self.folders_size + self.expired_size + without_owner


def age_of(text: str) -> timedelta:
    """An age such as 30d, 12h or 0d. Raises MlstackError for anything else."""
    match = re.fullmatch(r"(\d{1,6})([dhms])", text.strip())
    if not match:
        raise MlstackError(
            f"OLDER_THAN={text} is no age.",
            "It says what is old enough to be deleted permanently.",
            "a number and d, h, m or s: 30d",
        )
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def plan(stack: Stack, age: timedelta) -> Plan:
    """What could be deleted. Changes nothing. Raises MlstackError unless the stack is running."""
    running = {name for name, container in stack.containers.items() if container.is_running}
    if asleep := sorted({"mlflow", *data_services(stack)} - running):
        raise MlstackError(
            f"not running: {', '.join(asleep)}.", "MLflow, Postgres and MinIO decide what may be deleted.", "make up"
        )
    images = tuple(Image(entry["Id"], entry["Size"]) for entry in stack.engine.unused_images(stack.name))
    rows = _rows(stack, age)
    surveyed = in_one_shot(stack.compose, "bootstrap", "survey", age=age.total_seconds(), changed=_changed(stack, age))
    folders = {entry["name"]: Folder(**entry) for entry in surveyed["artifacts"]}
    datasets = [Folder(**entry) for entry in surveyed["datasets"]]
    return replace(_with_datasets(_sorted_out(rows, folders, age), datasets, surveyed["complete"]), images=images)


def carry_out(stack: Stack, agreed: Plan, announce: Callable[[str], None] = lambda step: None) -> None:
    """Deletes what was confirmed, in parts. After an interruption the next plan contains the rest."""
    # Rows first, so that no row ever points to deleted files.
    for number, runs in enumerate(_batches(agreed.runs)):
        announce(f"runs: {number * BATCH} of {len(agreed.runs)} deleted")
        in_one_shot(stack.compose, "migration", "runs", runs=runs, models=[], experiments=[])
    if agreed.models or agreed.experiments:
        announce("models and experiments")
        in_one_shot(stack.compose, "migration", "runs", runs=[], models=agreed.models, experiments=agreed.experiments)
    log.info("deleted %d runs, %d models, %d experiments", len(agreed.runs), len(agreed.models), len(agreed.experiments))
    for number, traces in enumerate(_batches(agreed.traces)):
        announce(f"traces: {number * BATCH} of {len(agreed.traces)} deleted")
        in_one_shot(stack.compose, "migration", "traces", traces=traces)
    log.info("deleted %d traces", len(agreed.traces))
    archived = 0
    for number, ids in enumerate(_batches(agreed.archive)):
        announce(f"traces: {number * BATCH} of {len(agreed.archive)} archived")
        archived += in_one_shot(stack.compose, "bootstrap", "archive", traces=ids)["archived"]
    log.info("archived %d traces", archived)
    # A row may have been created since the confirmation.
    known = _rows(stack, agreed.age).known
    orphans = [orphan.name for orphan in agreed.orphans if not known & set(_ids(orphan.name))]
    folders = [*agreed.folders, *orphans]
    for number, some in enumerate(_batches(folders)):
        announce(f"files: {number * BATCH} of {len(folders)} folders deleted")
        in_one_shot(stack.compose, "bootstrap", "purge", prefixes=some, datasets=[])
    log.info("deleted the files of %d folders, %d of them without a row", len(folders), len(orphans))
    for number, some in enumerate(_batches([dataset.name for dataset in agreed.datasets])):
        announce(f"data sets: {number * BATCH} of {len(agreed.datasets)} versions deleted")
        in_one_shot(stack.compose, "bootstrap", "purge", prefixes=[], datasets=some)
    log.info("deleted %d versions of data sets", len(agreed.datasets))
    if agreed.expired:
        announce("old versions")
        aged = in_one_shot(stack.compose, "bootstrap", "aged", age=agreed.age.total_seconds())
        changed = _changed(stack, agreed.age)  # after the listing: later writes replace nothing in it
        doomed = {bucket: _except(set(changed[bucket]), listed) for bucket, listed in aged.items()}
        removed = in_one_shot(stack.compose, "bootstrap", "remove", versions=doomed)["removed"]
        log.info("deleted %d old versions", removed)
    for image in agreed.images:
        announce("images")
        stack.engine.remove_image(image.id)
    log.info("deleted %d images", len(agreed.images))


def _changed(stack: Stack, age: timedelta) -> dict[str, list[str]]:
    """By bucket: the objects that were written within `age`, by the clock of MinIO's disk.

    The dates of versions are no evidence: a client that may write an object may choose its date. MinIO keeps all versions of an
    object in one file, `xl.meta`, which the kernel dates at each write.
    """
    keys = stack.tracking_keys
    if keys.is_external or stack.storage == settings.VERSITYGW:  # its dates are its own: no client chooses them
        return {bucket: [] for bucket in keys.buckets}
    return {bucket: _changed_in(stack, bucket, age) for bucket in keys.buckets}


def _changed_in(stack: Stack, bucket: str, age: timedelta) -> list[str]:
    # On the disk, an object whose name ends with / has this suffix instead.
    since = f"-{age.total_seconds():.0f} seconds"
    find = (
        "find",
        f"/data/{bucket}",
        "-ignore_readdir_race",
        "-name",
        "xl.meta",
        "-newermt",
        since,
        "-printf",
        "%P\\0",
    )
    listed = stack.compose.output("exec", "--no-TTY", "minio", *find).split("\0")
    return [name.removesuffix("/xl.meta").replace("__XLDIR__", "/") for name in listed if name]


def _sorted_out(rows: Rows, folders: dict[str, Folder], age: timedelta) -> Plan:
    cutoff = (datetime.now(UTC) - age).timestamp()
    runs = {run: folder for run, folder in rows.trashed_runs.items() if run not in rows.used}
    models = {model: folder for model, folder in rows.trashed_models.items() if model not in rows.used}
    traces = [trace_folder(*trace) for trace in (*rows.old_traces, *rows.trashed_traces)]
    trashed = {folder for folder in (*runs.values(), *models.values(), *traces) if folder in folders}
    unknown = [folder for folder in folders.values() if folder.objects and _is_orphan(folder.name, rows)]
    rest = [folder for folder in folders.values() if folder.name not in trashed]
    orphans = tuple(folder for folder in unknown if folder.changed <= cutoff)
    with_objects = {name for name, folder in folders.items() if folder.objects}
    ids_with_objects = {folder_id for name in with_objects for folder_id in _ids(name)}
    return Plan(
        age=age,
        runs=tuple(sorted(runs)),
        models=tuple(sorted(models)),
        experiments=rows.trashed_experiments,
        traces=rows.old_traces,
        archive=rows.archivable,
        folders=tuple(sorted(trashed)),
        folders_size=sum(folders[name].size + folders[name].old_size for name in trashed),
        expired=sum(folder.expired for folder in rest if folder not in orphans),
        expired_size=sum(folder.expired_size for folder in rest if folder not in orphans),
        orphans=orphans,
        kept=tuple(sorted({*rows.trashed_runs, *rows.trashed_models} & rows.used)),
        young=len(unknown) - len(orphans),
        missing=(
            *(f"model {name} ({model})" for model, (name, folder) in rows.models.items() if folder not in with_objects),
            *(f"registered model {name}" for name, model in rows.versions.items() if model not in ids_with_objects),
        ),
        foreign=folders[""].objects if "" in folders else 0,
    )


def _with_datasets(plan: Plan, folders: list[Folder], complete: Collection[str]) -> Plan:
    """The plan with versions of data sets. An upload in progress can be resumed as long as it is younger than the age limit."""
    cutoff = (datetime.now(UTC) - plan.age).timestamp()
    datasets = [folder for folder in folders if folder.name and folder.name not in complete]
    doomed = tuple(folder for folder in datasets if folder.changed <= cutoff)
    rest = [folder for folder in folders if folder not in doomed]
    return replace(
        plan,
        datasets=doomed,
        expired=plan.expired + sum(folder.expired for folder in rest),
        expired_size=plan.expired_size + sum(folder.expired_size for folder in rest),
        young=plan.young + len(datasets) - len(doomed),
        foreign=plan.foreign + sum(folder.objects for folder in folders if not folder.name),
    )


def _except(names: set[str], versions: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [version for version in versions if version[0] not in names]


def _is_orphan(folder: str, rows: Rows) -> bool:
    if folder == DOCTOR:
        return True
    return bool(_OURS.fullmatch(folder)) and not set(_ids(folder)) & (rows.known | rows.used)


def _ids(text: str) -> list[str]:
    """Ids of runs, models and traces in a folder's name or a model version's source."""
    return re.findall(r"(?:m-|tr-)?[0-9a-f]{32}", text)


_KNOWN = "SELECT run_uuid FROM runs UNION SELECT model_id FROM logged_models UNION SELECT request_id FROM trace_info"
_VERSIONS = "SELECT name || ' version ' || version, concat_ws(' ', source, storage_location) FROM model_versions"
_TRASHED_EXPERIMENTS = """
    SELECT experiment_id, ARRAY(SELECT run_uuid FROM runs r WHERE r.experiment_id = e.experiment_id
                                UNION SELECT model_id FROM logged_models m WHERE m.experiment_id = e.experiment_id)
    FROM experiments e WHERE lifecycle_stage = 'deleted' AND last_update_time <= %s"""
_TRASHED_RUNS = """
    SELECT run_uuid, artifact_uri FROM runs
    WHERE lifecycle_stage = 'deleted' AND (deleted_time <= %s OR experiment_id = ANY(%s))"""
_TRASHED_MODELS = """
    SELECT model_id, artifact_location FROM logged_models
    WHERE lifecycle_stage = 'deleted' AND last_updated_timestamp_ms <= %s"""
_OLD_TRACES = "SELECT experiment_id::text, request_id FROM trace_info WHERE timestamp_ms <= %s ORDER BY timestamp_ms"
_TRASHED_TRACES = "SELECT experiment_id::text, request_id FROM trace_info WHERE experiment_id = ANY(%s)"
# What MLflow's archival takes: complete traces with spans in the database, unless an earlier attempt could not read those.
_ARCHIVABLE = """
    SELECT request_id FROM trace_info t JOIN experiments e USING (experiment_id)
    WHERE timestamp_ms <= %s AND timestamp_ms > %s AND status <> 'IN_PROGRESS' AND lifecycle_stage = 'active'
      AND NOT EXISTS (SELECT FROM trace_tags g WHERE g.request_id = t.request_id AND (
          key = 'mlflow.trace.archivalFailure' OR (key = 'mlflow.trace.spansLocation' AND value <> 'TRACKING_STORE')))
      AND EXISTS (SELECT FROM spans s WHERE s.trace_id = t.request_id AND content <> '')
    ORDER BY timestamp_ms"""
_MODELS = "SELECT model_id, name, artifact_location FROM logged_models WHERE lifecycle_stage = 'active' AND status = %s"


def _rows(stack: Stack, age: timedelta) -> Rows:
    cutoff = _milliseconds(age)
    archived, deleted = _trace_ages(stack.values)
    since = _milliseconds(deleted) if deleted else 0
    with _cursor(stack) as ask:
        versions = {name: _ids(sources) for name, sources in ask(_VERSIONS)}
        used = frozenset(used_id for ids in versions.values() for used_id in ids)
        # An experiment takes its runs and models with it: one that a registered model uses is kept completely.
        experiments = [row[0] for row in ask(_TRASHED_EXPERIMENTS, cutoff) if not used & set(row[1])]
        return Rows(
            known=frozenset(row[0] for row in ask(_KNOWN)),
            used=used,
            trashed_runs={run: _folder(uri) for run, uri in ask(_TRASHED_RUNS, cutoff, experiments)},
            trashed_models={model: _folder(uri) for model, uri in ask(_TRASHED_MODELS, cutoff)},
            trashed_experiments=tuple(map(str, experiments)),
            models={model: (name, _folder(uri)) for model, name, uri in ask(_MODELS, READY)},
            versions={name: ids[-1] for name, ids in versions.items() if ids},
            old_traces=tuple(ask(_OLD_TRACES, _milliseconds(deleted))) if deleted else (),
            archivable=tuple(row[0] for row in ask(_ARCHIVABLE, _milliseconds(archived), since)) if archived else (),
            trashed_traces=tuple(ask(_TRASHED_TRACES, experiments)),
        )


def _trace_ages(values: Mapping[str, str]) -> tuple[timedelta | None, timedelta | None]:
    """The ages of traces whose spans are archived, and of those that are deleted; None for never.

    Raises MlstackError if a trace would be deleted before it is archived.
    """
    archived, deleted = (int(values.get(name) or 0) for name in ("TRACE_ARCHIVE", "TRACE_RETENTION"))
    if archived and deleted and archived >= deleted:
        raise MlstackError(
            f"TRACE_ARCHIVE={archived} is not less than TRACE_RETENTION={deleted}.",
            "Traces would be deleted before their spans are archived.",
            "set TRACE_ARCHIVE in .env to fewer days, or leave one of them empty",
        )
    return timedelta(days=archived) or None, timedelta(days=deleted) or None


def _milliseconds(age: timedelta) -> int:
    """The time of so long ago, as MLflow stores it."""
    return int((datetime.now(UTC) - age).timestamp() * 1000)


@contextmanager
def _cursor(stack: Stack) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    with postgres.connected(stack.tracking, deadline=5) as connection, connection.cursor() as cursor:

        def ask(statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
            cursor.execute(statement, arguments)
            return cursor.fetchall()

        yield ask


def _folder(uri: str) -> str:
    """mlflow-artifacts:/1/models/m-…/artifacts is the folder 1/models/m-…/ of the bucket."""
    return urlsplit(uri).path.strip("/").removesuffix("artifacts")


def _batches(items: Collection[Item]) -> Iterator[list[Item]]:
    listed = list(items)
    return (listed[start : start + BATCH] for start in range(0, len(listed), BATCH))
