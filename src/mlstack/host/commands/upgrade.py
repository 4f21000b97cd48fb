"""`make upgrade`: newer images on the data that is there, or back to before.

What "before" is lies in the stack, so that an upgrade which was killed is undone by the next: the old images keep a second
tag, and a copy of the database is made inside Postgres once nobody writes any more (putting it back is one transaction;
loading the backup would take minutes).
"""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack.errors import MlstackError
from mlstack.host.backup import log, postgres, stack, swap
from mlstack.host.backup.stack import Stack
from mlstack.host.commands import start
from mlstack.host.commands.backup import Taken, back_up
from mlstack.host.compose import containers, docker, volumes
from mlstack.host.doctor import State, diagnose

TAG = "before-upgrade"


@dataclass(frozen=True)
class Upgraded:
    """What an upgrade did."""

    backup: Taken
    mlflow_before: str | None
    mlflow_after: str | None


@stack.explained()
def upgrade(project: Path) -> Upgraded:
    """Takes a backup, builds, migrates and starts. On any failure the stack is as before, and MlstackError says so."""
    start.check(project)
    target = stack.of_project(project)
    if f"{target.name}_postgres" not in volumes(target.name):
        raise MlstackError("there is no stack here to upgrade.", "Its database has no volume.", "make up starts a new one")
    stack.start_data_services(project)
    swap.settle(target)
    _end_interrupted(target)
    was_running = stack.are_well(project, "mlflow")
    log.info("a backup first")
    taken = back_up(project)
    before = taken.manifest.versions["mlflow"]
    try:
        _keep_images(target)
        start.build(project)
        stack.stop_clients(project)
        _copy_database(target)
        start.start(project)
        _diagnose(project)
    except BaseException as error:
        log.error("the upgrade did not succeed; going back to what was before")
        _go_back(target)
        if was_running:
            start.start(project)
        log.info("the stack is as it was before the upgrade; the backup %s stays", taken.folder.name)
        if isinstance(error, MlstackError):
            raise MlstackError(
                f"the upgrade failed: {error.wrong}", "The stack is as it was before: same images, same data.", error.fix
            ) from error
        raise
    _forget(target)
    with postgres.connected(target) as connection:
        return Upgraded(taken, before, postgres.mlflow_version(connection))


def _diagnose(project: Path) -> None:
    """Raises MlstackError with what the doctor finds wrong in the upgraded stack."""
    if failed := [result for result in diagnose(project) if result.state is State.FAILED]:
        first = failed[0]
        raise MlstackError(f"{first.name}: {first.cause}", f"The doctor found {len(failed)} such. {first.why}", first.fix)


def _end_interrupted(target: Stack) -> None:
    """Undoes an upgrade that was killed; unless MLflow has run on the new version, because then there is new work."""
    with postgres.connected(target, swap.SERVER) as server:
        copied = postgres.note(server, _copy(target))
        if not copied and not postgres.exists(server, _copy(target)) and not _kept_images(target):
            return
        if copied and _mlflow_started(target) > datetime.fromisoformat(copied):
            log.warning("an upgrade was interrupted after MLflow had started on the new version: going on from there")
            _forget_in(server, target)
            return
    log.warning("an upgrade was interrupted: going back to what was before it")
    _go_back(target)


def _go_back(target: Stack) -> None:
    """Old images and old data; every step may be repeated. MLflow is stopped if its data changed."""
    for image in _kept_images(target):
        docker("tag", f"{image}:{TAG}", image)
    stack.start_data_services(target.project)
    with postgres.connected(target, swap.SERVER) as server:
        if postgres.note(server, _copy(target)):
            stack.stop_clients(target.project)
            name = target.owner.database
            postgres.close(server, name)
            postgres.close(server, _copy(target))
            postgres.swap(server, name, _copy(target), swap.old_name(target))
            postgres.open_(server, name)
            postgres.annotate(server, name, None)
        _forget_in(server, target)
        swap.settle(target)


def _copy(target: Stack) -> str:
    return f"{target.owner.database[:45]}_before_upgrade"


def _copy_database(target: Stack) -> None:
    name = target.owner.database
    with postgres.connected(target, swap.SERVER) as server:
        postgres.close(server, name)  # a database in use cannot be copied
        try:
            postgres.create(server, _copy(target), template=name)
        finally:
            postgres.open_(server, name)
        postgres.annotate(server, _copy(target), postgres.now(server).isoformat())  # now it is whole


def _keep_images(target: Stack) -> None:
    for image in target.built:
        if docker("image", "ls", "--quiet", image).strip():
            docker("tag", image, f"{image}:{TAG}")


def _kept_images(target: Stack) -> list[str]:
    return [image for image in target.built if docker("image", "ls", "--quiet", f"{image}:{TAG}").strip()]


def _forget(target: Stack) -> None:
    with postgres.connected(target, swap.SERVER) as server:
        _forget_in(server, target)


def _forget_in(server: Connection, target: Stack) -> None:
    postgres.drop(server, _copy(target))
    for image in _kept_images(target):
        docker("image", "rm", f"{image}:{TAG}")


def _mlflow_started(target: Stack) -> datetime:
    """When MLflow's container last started; long ago if it never did."""
    for container in containers(target.project):
        if container.service == "mlflow":
            started = docker("inspect", "--format", "{{.State.StartedAt}}", container.name).strip()
            with suppress(ValueError):  # Docker has nanoseconds
                return datetime.fromisoformat(f"{started[:26].rstrip('Z')}+00:00")
    return datetime.min.replace(tzinfo=UTC)
