"""`make import`: experiments, runs, models and traces of another MLflow. Adds what the stack lacks; changes nothing else."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from mlstack import postgres
from mlstack.errors import MlstackError
from mlstack.host import http
from mlstack.host.importing import files, rows, source
from mlstack.host.importing.files import File
from mlstack.host.importing.rows import Compared, Destination, Experiment
from mlstack.host.importing.source import STAGING, Source
from mlstack.host.preflight import GIB, MIN_DISK_GIB, check_disk
from mlstack.host.stack import Stack
from mlstack.logger import get_logger
from mlstack.s3 import client_for
from mlstack.settings import admin_account

log = get_logger("mlstack.import")

NEEDED = {"postgres", "minio", "mlflow"}
COUNTED = {
    "experiments": "experiments",
    "runs": "runs",
    "metrics": "points of metrics",
    "logged_models": "models",
    "registered_models": "registered models",
    "model_versions": "versions of registered models",
    "trace_info": "traces",
}
ROWS_PER_BYTE = 4  # bytes in Postgres, with indexes, for each byte of the SQLite database
TIMEOUT = 30  # seconds
OK = 200


@dataclass(frozen=True)
class Plan:
    """What would be imported."""

    source: Source
    experiments: dict[int, Experiment]
    prefix: str
    files: tuple[File, ...]
    counts: dict[str, int]
    problems: tuple[str, ...]  # what cannot be read

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Report:
    """What the source has beside what the stack has of it now, and what could not be imported."""

    compared: tuple[Compared, ...]
    problems: tuple[str, ...] = field(default=())

    @property
    def is_complete(self) -> bool:
        return not self.problems and all(item.is_equal for item in self.compared)


@contextmanager
def reading(stack: Stack) -> Iterator[None]:
    """Removes at the end what was read from the source."""
    try:
        yield
    finally:
        source.discard(stack)


def plan(stack: Stack, origin: str, prefix: str, artifacts: str | None, announce: Callable[[str], None]) -> Plan:
    """What would be imported. The stack is not changed.

    Raises MlstackError when the stack is not running, the source is none, or something of the same name exists already.
    """
    running = {name for name, container in stack.containers.items() if container.is_running}
    if asleep := sorted(NEEDED - running):
        raise MlstackError(f"not running: {', '.join(asleep)}.", "They store what is imported.", "make up")
    return _planned(stack, source.read(stack, origin, artifacts, announce), prefix, announce)


def _planned(stack: Stack, read: Source, prefix: str, announce: Callable[[str], None]) -> Plan:
    with closing(read.rows) as content:
        problems = [*read.problems, *rows.drop_dangling(content)]
        counts = {table: content.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in COUNTED}  # noqa: S608
        with postgres.connected(stack.tracking, deadline=5) as connection:
            experiments = rows.experiments_for(content, connection, prefix)
        artifacts = files.listed(content, read.roots, read.url, problems, announce)
    planned = Plan(read, experiments, prefix, tuple(artifacts), counts, tuple(problems))
    expected = (planned.size + ROWS_PER_BYTE * read.database.stat().st_size) / GIB
    if complaint := check_disk(stack, round(MIN_DISK_GIB + expected, 1)):
        raise complaint
    log.info("%d runs, %d files, %d bytes; not readable: %d", counts["runs"], len(artifacts), planned.size, len(problems))
    return planned


def carry_out(stack: Stack, agreed: Plan, announce: Callable[[str], None], advance: Callable[[int], None]) -> Report:
    """Copies what was confirmed and compares all of it. After an interruption, the next import continues."""
    with postgres.connected(stack.tracking, deadline=5) as connection, closing(agreed.source.rows) as content:
        experiments = rows.create_experiments(connection, agreed.experiments)
        destination = Destination(experiments, agreed.prefix)
        destination.locate(content)
        # Files first, so that no row ever points to files that are not there.
        announce("artifacts")
        client, staging = client_for(stack.tracking_keys), stack.folder / STAGING
        transfer = files.Transfer(client, stack.tracking_keys.bucket, destination.locations, staging, agreed.source.url)
        artifacts = transfer.run(agreed.files, advance)
        compared = rows.copy(content, connection, destination, announce)
    announce("permissions")
    _grant(stack, experiments, [agreed.prefix + name for name in _models(agreed.source)])
    problems = (*agreed.problems, *transfer.problems, *destination.problems)
    for problem in problems:
        log.warning("not imported: %s", problem)
    different = [item.what for item in (*compared, artifacts) if not item.is_equal]
    log.info(
        "%d rows and %d files, different: %s", sum(item.expected for item in compared), artifacts.expected, different or "none"
    )
    return Report((*compared, artifacts), problems)


def _models(read: Source) -> list[str]:
    with closing(read.rows) as content:
        return [name for (name,) in content.execute("SELECT name FROM registered_models")]


def _grant(stack: Stack, experiments: dict[int, Experiment], models: list[str]) -> None:
    """Notebooks may delete what was imported, as if they had created it."""
    if stack.values["MLFLOW_AUTH"] == "off":
        return
    ids = [str(experiment.id) for experiment in experiments.values() if experiment.id != rows.DEFAULT]
    for kind, names in (("experiment", ids), ("registered_model", models)):
        for name in names:
            _manage(stack, kind, name)


def _manage(stack: Stack, kind: str, name: str) -> None:
    username = stack.values["MLFLOW_TRACKING_USERNAME"]
    grant = {"username": username, "resource_type": kind, "resource_id": name, "permission": "MANAGE"}
    answer = http.call(
        "MLflow",
        "POST",
        f"{stack.values['MLFLOW_TRACKING_URI']}/api/3.0/mlflow/users/permissions/grant",
        why="Everything is imported, but without the permissions only the admin may delete it.",
        timeout=TIMEOUT,
        account=admin_account(stack.values),
        headers={"Content-Type": "application/json"},
        body=json.dumps(grant),
    )
    if answer.status != OK and b"RESOURCE_ALREADY_EXISTS" not in answer.data:
        raise MlstackError(
            f"{username} could not be given the {kind} {name}: MLflow answered {answer.status}: {answer.data[:200]!r}",
            "Everything is imported, but only the admin may delete it.",
            "make import again; make logs SERVICE=mlflow",
        )
