"""`make upgrade`: newer images on the existing data, or a rollback.

The old state is kept in the stack, so that the next upgrade undoes a killed one: the old images keep a second tag, and the
database is copied inside Postgres once all writers are stopped (restoring the copy is one transaction; loading the backup
would take minutes).
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack.errors import MlstackError
from mlstack.host.backup import data_services, log, postgres, swap
from mlstack.host.commands import start
from mlstack.host.commands.backup import Taken, back_up
from mlstack.host.doctor import State, diagnose
from mlstack.host.stack import Stack

TAG = "before-upgrade"


@dataclass(frozen=True)
class Upgraded:
    """What an upgrade did."""

    backup: Taken
    mlflow_before: str | None
    mlflow_after: str | None


@data_services.explained()
def upgrade(stack: Stack) -> Upgraded:
    """Takes a backup, builds, migrates and starts. On any failure it rolls back and raises MlstackError."""
    target = start.check(stack)
    is_own = not target.services.by_name["postgres"].is_external
    if is_own and f"{target.name}_postgres" not in target.engine.volumes(target.name):
        raise MlstackError("there is no stack here to upgrade.", "Its database has no volume.", "make up starts a new one")
    data_services.start_data_services(target)
    swap.settle(target)
    _end_interrupted(target)
    was_running = data_services.are_healthy(target, "mlflow")
    log.info("a backup first")
    taken = back_up(target)
    before = taken.manifest.versions["mlflow"]
    try:
        _keep_images(target)
        start.build(target)
        data_services.stop_clients(target)
        _copy_database(target)
        start.start(target)
        _diagnose(target)
    except BaseException as error:
        log.error("the upgrade did not succeed; going back to what was before")
        _go_back(target)
        if was_running:
            start.start(target)
        log.info("the stack is as it was before the upgrade; the backup %s stays", taken.folder.name)
        if isinstance(error, MlstackError):
            raise MlstackError(
                f"the upgrade failed: {error.wrong}", "The stack is as it was before: same images, same data.", error.fix
            ) from error
        raise
    _forget(target)
    with postgres.connected(target) as connection:
        return Upgraded(taken, before, postgres.mlflow_version(connection))


def _diagnose(target: Stack) -> None:
    """Raises MlstackError with what the doctor finds wrong in the upgraded stack."""
    if failed := [result for result in diagnose(target) if result.state is State.FAILED]:
        first = failed[0]
        raise MlstackError(f"{first.name}: {first.cause}", f"The doctor found {len(failed)} such. {first.why}", first.fix)


def _end_interrupted(target: Stack) -> None:
    """Undoes a killed upgrade, unless a service has written since the copy: then there may be new work."""
    with postgres.server(target) as server:
        copied = postgres.note(server, _copy(target))
        if not copied and not postgres.exists(server, _copy(target)) and not _kept_images(target):
            return
        if copied and _writers_started(target) > datetime.fromisoformat(copied):
            log.warning("an upgrade was interrupted after the new version had started: going on from there")
            _forget_in(server, target)
            return
    log.warning("an upgrade was interrupted: going back to what was before it")
    _go_back(target)


def _go_back(target: Stack) -> None:
    """Rolls back to the old images and data; every step may be repeated. MLflow is stopped if its data changed."""
    for image in _kept_images(target):
        target.engine.tag(f"{image}:{TAG}", image)
    data_services.start_data_services(target)
    with postgres.server(target) as server:
        if postgres.note(server, _copy(target)):
            data_services.stop_clients(target)
            name = target.database
            postgres.close(server, name)
            postgres.close(server, _copy(target))
            postgres.swap(server, name, _copy(target), swap.old_name(target))
            postgres.open_(server, name)
            postgres.annotate(server, name, None)
        _forget_in(server, target)
        swap.settle(target)


def _copy(target: Stack) -> str:
    return f"{target.database[:45]}_before_upgrade"


def _copy_database(target: Stack) -> None:
    name = target.database
    with postgres.server(target) as server:
        postgres.close(server, name)  # a database in use cannot be copied
        try:
            postgres.create(server, _copy(target), template=name)
        finally:
            postgres.open_(server, name)
        postgres.annotate(server, _copy(target), postgres.now(server).isoformat())  # now it is complete


def _keep_images(target: Stack) -> None:
    for image in _own_images(target):
        if target.engine.has_image(image):
            target.engine.tag(image, image, TAG)


def _kept_images(target: Stack) -> list[str]:
    return [image for image in _own_images(target) if target.engine.has_image(f"{image}:{TAG}")]


def _own_images(target: Stack) -> list[str]:
    return [target.image(service) for service in target.built]


def _forget(target: Stack) -> None:
    with postgres.server(target) as server:
        _forget_in(server, target)


def _forget_in(server: Connection, target: Stack) -> None:
    postgres.drop(server, _copy(target))
    for image in _kept_images(target):
        target.engine.remove_image(f"{image}:{TAG}")


def _writers_started(target: Stack) -> datetime:
    """When MLflow, or another service that takes new work, last started; the earliest date if none ever did."""
    names = [service.name for service in target.services.writers if service.is_long_running]
    started = [container.started for name in names if (container := target.containers.get(name)) and container.started]
    return max(started, default=datetime.min.replace(tzinfo=UTC))
