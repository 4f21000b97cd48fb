"""Replaces a stack's content; can be undone until its last step, also after a crash.

The new database is created beside the old one, which accepts no connections meanwhile, with the start time as its remark;
objects are added as new versions. Then two names are swapped in one transaction. So the state of a swap is in the stack
itself: a database `…_restoring` means undo, a database `…_replaced` means that only the old one has to be removed.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack.errors import MlstackError
from mlstack.host.backup import bucket, data_services, log, postgres
from mlstack.host.backup.journal import Journal
from mlstack.host.stack import Stack


def new_name(target: Stack) -> str:
    """The database that is being filled."""
    return f"{target.database[:50]}_restoring"


def old_name(target: Stack) -> str:
    """The database that was replaced."""
    return f"{target.database[:50]}_replaced"


@contextmanager
def exchange(target: Stack) -> Iterator[Journal]:
    """A context in which the caller fills the database `new_name` and the bucket, recording each version in the journal.

    At its end both are the stack's; on any failure everything is as before.
    """
    with postgres.server(target) as server:
        _settle(server, target)
        journal = Journal(server, new_name(target))
        journal.start()
        postgres.create(server, new_name(target))
        postgres.annotate(server, new_name(target), postgres.now(server).isoformat())
        postgres.close(server, target.database)
        with _undone_on_failure(server, target):
            yield journal
            postgres.close(server, new_name(target))
            postgres.swap(server, target.database, new_name(target), old_name(target))
        postgres.open_(server, target.database)


@contextmanager
def on_trial(target: Stack) -> Iterator[None]:
    """A context in which the caller tries the new content. On failure the old content is restored; otherwise it is removed."""
    try:
        yield
    except BaseException:
        data_services.stop_clients(target)
        with postgres.server(target) as server, _undone_on_failure(server, target):
            postgres.close(server, target.database)
            postgres.swap(server, target.database, old_name(target), new_name(target))
            raise
    with postgres.server(target) as server:
        _settle(server, target)


def settle(target: Stack) -> None:
    """Ends a killed swap: undoes it if the names are not swapped yet, completes it otherwise."""
    if not target.has_administrator or not postgres.is_set_up(target):
        return  # no swap was begun
    with postgres.server(target) as server:
        _settle(server, target)


def _settle(server: Connection, target: Stack) -> None:
    if postgres.exists(server, new_name(target)):
        _undo(server, target)
        log.warning("an interrupted restore was undone: the stack holds what it held before")
    if postgres.exists(server, old_name(target)):
        postgres.annotate(server, target.database, None)
        postgres.drop(server, old_name(target))
        Journal(server, new_name(target)).end()
    if postgres.exists(server, target.database):
        postgres.open_(server, target.database)  # the command that closed it has ended: only one runs at a time


@contextmanager
def _undone_on_failure(server: Connection, target: Stack) -> Iterator[None]:
    try:
        yield
    except BaseException:
        log.warning("undoing: this takes a moment, the stack will hold what it held before")
        _undo(server, target)
        log.warning("undone. MLflow is stopped: make up starts it")
        raise


def _undo(server: Connection, target: Stack) -> None:
    """Every step may be repeated; the marker of an unfinished swap, its database, is removed last."""
    journal = Journal(server, new_name(target))
    if postgres.note(server, new_name(target)):
        if not journal.exists():
            raise MlstackError(
                "a restore by an earlier version of mlstack was interrupted.",
                "It left no list of what it wrote into the bucket.",
                "check out that version, make up there, then this version again",
            )
        client = data_services.storage_client(target.keys)
        for name in target.keys.buckets:
            bucket.remove(client, name, journal.written(client, name))
    if postgres.exists(server, target.database):
        postgres.open_(server, target.database)
    postgres.drop(server, new_name(target))
    journal.end()
