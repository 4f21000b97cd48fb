"""Features in Postgres (sql/features): declared, filled, joined to the rows of a training set, and looked up.

The service's login reads, and changes only what the functions of that schema do. None of them changes what is stored.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from queue import Empty, LifoQueue
from typing import Any, Protocol

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extras import Json

from mlstack.retries import retrying
from mlstack.scoring.store import is_lost
from mlstack.settings import Login

log = logging.getLogger(__name__)

CONNECTIONS = {"reading": 4, "writing": 4, "long": 2}
PATIENCE = 10  # seconds for a free connection, and for appends that take longer than their transaction may
LEAD = 1  # seconds, features.lead() in sql/features
OPTIONS = {
    # A look-up runs the same plan each time: planning would take longer than running it.
    "reading": "-c plan_cache_mode=force_generic_plan -c statement_timeout=5s -c default_transaction_read_only=on",
    "writing": "-c transaction_timeout=400ms",
    "long": "-c statement_timeout=30min",
}


class Readable(Protocol):
    """Where COPY reads from."""

    def read(self, size: int = ..., /) -> bytes: ...


class Writable(Protocol):
    """Where COPY writes to."""

    def write(self, data: bytes, /) -> object: ...


class FeatureError(Exception):
    """A declaration, event or look-up that does not fit."""


class UnavailableError(Exception):
    """Postgres does not answer, or not in time."""


class NotStoredError(UnavailableError):
    """Events that were not stored, so that they can be sent again."""


@dataclass(frozen=True)
class View:
    """A definition of a feature view, which never changes."""

    name: str
    hash: str
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    types: tuple[str, ...]

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.hash}"


@dataclass(frozen=True)
class LookedUp:
    """The features of one entity at a time."""

    at: datetime
    features: Mapping[str, Any]


class _Session(Connection):
    """A connection that knows what it has prepared."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.prepared: dict[Sequence[View], str] = {}


class _Pool:
    """Connections for one kind of work, opened as they are needed. A thread that finds none free waits for one."""

    def __init__(self, login: Login, work: str) -> None:
        self._login, self._options = login, OPTIONS[work]
        self._free: LifoQueue[_Session | None] = LifoQueue()
        for _ in range(CONNECTIONS[work]):
            self._free.put(None)

    @contextmanager
    def session(self) -> Iterator[_Session]:
        """A connection in which every statement is its own transaction. Raises UnavailableError."""
        try:
            session = self._free.get(timeout=PATIENCE)
        except Empty:
            raise UnavailableError("every connection to Postgres is in use") from None
        try:
            if session is None or is_lost(session):
                session = self._connect()
            session.autocommit = True
            yield session
            session.rollback()
        except FeatureError:
            session.rollback()  # type: ignore[union-attr] # it comes from a statement
            raise
        except BaseException as error:
            if session is not None:
                session.close()  # it may be broken, or in the middle of a COPY
            if isinstance(error, psycopg2.OperationalError):
                raise UnavailableError(str(error).strip().partition("\n")[0]) from error
            raise
        finally:
            self._free.put(session)

    def _connect(self) -> _Session:
        session: _Session = psycopg2.connect(
            **replace(self._login, options=self._options).parameters,
            connect_timeout=PATIENCE,
            connection_factory=_Session,
        )
        return session


class Store:
    """The features. Its methods may be called from any thread."""

    def __init__(self, login: Login) -> None:
        self._reading, self._writing, self._long = (_Pool(login, work) for work in CONNECTIONS)
        self._views: dict[str, View] = {}
        self.late_commits = 0

    # ---- declarations ----------------------------------------------------------------------------

    def create_source(self, name: str, kind: str, keys: Sequence[str], types: Mapping[str, str]) -> None:
        """A source of events. Raises FeatureError if it exists with another declaration."""
        with self._long.session() as session, _explained(), session.cursor() as cursor:
            declared = name, kind, list(keys), list(types), list(types.values())
            cursor.execute("SELECT features.create_source(%s, %s, %s, %s, %s)", declared)

    def create_view(self, name: str, keys: Sequence[str], features: Mapping[str, str], definition: str) -> View:
        """The view with this definition, which is now the current one of its name. Raises FeatureError."""
        with self._long.session() as session, _explained(), session.cursor() as cursor:
            declared = name, list(keys), list(features), list(features.values()), definition
            cursor.execute("SELECT features.create_view(%s, %s, %s, %s, %s)", declared)
            ((digest,),) = cursor.fetchall()
        return View(name, digest, tuple(keys), tuple(features), tuple(features.values()))

    def views(self, references: Sequence[str]) -> tuple[View, ...]:
        """The views with these names, or `name@hash`. Raises FeatureError naming the one that is missing."""
        views = tuple(self._views.get(reference) or self._view(reference) for reference in references)
        names = [column for view in views for column in view.columns]
        if len(names) != len(set(names)):
            raise FeatureError("two of the feature views have a feature of the same name")
        return views

    def _view(self, reference: str) -> View:
        name, _, digest = reference.partition("@")
        with self._reading.session() as session, session.cursor() as cursor:
            cursor.execute(
                "SELECT name, hash, keys, columns, types FROM features.views WHERE name = %s AND %s IN ('', hash)"
                " ORDER BY applied DESC LIMIT 1",
                (name, digest),
            )
            row = cursor.fetchone()
        if row is None:
            raise FeatureError(f"there is no feature view {reference}")
        view = View(row[0], row[1], *map(tuple, row[2:]))
        self._views[view.reference] = view
        return view

    # ---- events ----------------------------------------------------------------------------------

    def append(self, source: str, events: Sequence[Mapping[str, Any]]) -> datetime:
        """Stores events of now, and returns when the last of them is known. Raises FeatureError or UnavailableError."""
        append = retrying(PATIENCE, lambda error: isinstance(error, NotStoredError))
        known: datetime = append(self._append, source, events)
        return known

    def _append(self, source: str, events: Sequence[Mapping[str, Any]]) -> datetime:
        """Raises NotStoredError if they certainly are not, UnavailableError if nobody knows."""
        started = time.monotonic()
        transaction = None
        try:
            with self._writing.session() as session, _explained(hides_values=True), session.cursor() as cursor:
                session.autocommit = False
                cursor.execute("SELECT pg_current_xact_id()::text, features.append(%s, %s)", (source, Json(events)))
                ((transaction, known),) = cursor.fetchall()
                session.commit()
        except UnavailableError as error:
            if transaction is None or self._status(transaction) == "aborted":
                raise NotStoredError(str(error)) from error
            if self._status(transaction) != "committed":
                raise
        if (seconds := time.monotonic() - started) > LEAD:
            self.late_commits += 1
            log.warning("events of %s were stored after %.1f s: a look-up made meanwhile may lack them", source, seconds)
        return known  # type: ignore[no-any-return]

    def _status(self, transaction: str) -> str:
        """What became of a transaction whose commit was not acknowledged: committed, aborted or in progress."""
        with self._reading.session() as session, session.cursor() as cursor:
            cursor.execute("SELECT pg_xact_status(%s::xid8)", (transaction,))
            ((status,),) = cursor.fetchall()
        return str(status)

    def backfill(self, source: str, columns: Sequence[str], lines: Readable) -> int:
        """Stores events of the past from CSV, all or none, and returns how many rows they became. Raises FeatureError."""
        with self._long.session() as session, _explained(hides_values=True), session.cursor() as cursor:
            session.autocommit = False
            cursor.execute("SELECT features.begin_backfill(%s)", (source,))
            ((staged,),) = cursor.fetchall()
            cursor.copy_expert(_copied(staged, columns), lines)  # type: ignore[arg-type] # it calls no readline
            cursor.execute("SELECT features.end_backfill(%s)", (source,))
            ((rows,),) = cursor.fetchall()
            session.commit()
        return int(rows)

    # ---- features --------------------------------------------------------------------------------

    def training_set(self, views: Sequence[View], spine: Readable, features: Writable) -> None:
        """Writes the features of each row of a spine, in its order. The spine is CSV of the views' keys and `at`.

        Raises FeatureError. Nothing is held in memory.
        """
        keys = keys_of(views)
        joined = "COPY (SELECT {} FROM {} spine {} ORDER BY position) TO STDOUT (FORMAT csv, HEADER)"
        with self._long.session() as session, _explained(hides_values=True), session.cursor() as cursor:
            session.autocommit = False
            cursor.execute("SELECT features.begin_spine(%s)", (list(keys),))
            ((staged,),) = cursor.fetchall()
            cursor.copy_expert(_copied(staged, (*keys, "at")), spine)  # type: ignore[arg-type] # it calls no readline
            cursor.execute("SELECT features.end_spine()")
            cursor.copy_expert(sql.SQL(joined).format(_columns(views), sql.SQL(staged), _joins(views)), features)

    def lookup(self, views: Sequence[View], entities: Sequence[Mapping[str, Any]]) -> list[LookedUp]:
        """The features of each entity, at its `at` or now: the same that a training set has. Raises FeatureError."""
        keys = (*keys_of(views), "at")
        if missing := [key for key in keys[:-1] if any(not isinstance(entity.get(key), str) for entity in entities)]:
            raise FeatureError(f"an entity has no text in the key {missing[0]}")
        with self._reading.session() as session, _explained(hides_values=True), session.cursor() as cursor:
            name = session.prepared.get(views) or _prepare(session, views)
            arrays = "%s::text[], " * (len(keys) - 1) + "%s::timestamptz[]"
            execute = sql.SQL("EXECUTE {} (" + arrays + ")").format(sql.Identifier(name))
            cursor.execute(execute, [[entity.get(key) for entity in entities] for key in keys])
            rows = cursor.fetchall()
        names = [column for view in views for column in view.columns]
        return [LookedUp(at, dict(zip(names, values, strict=True))) for at, *values in rows]


def keys_of(views: Sequence[View]) -> tuple[str, ...]:
    """The keys of all entities of the views, each once."""
    return tuple(dict.fromkeys(key for view in views for key in view.keys))


def _prepare(session: _Session, views: Sequence[View]) -> str:
    """Plans the look-up of these views once in a session."""
    keys = keys_of(views)
    name = f"lookup_{len(session.prepared)}"
    statement = sql.SQL(
        "PREPARE {name} ({types}timestamptz[]) AS SELECT at, {columns} FROM ("
        "SELECT {keys}coalesce(given_at, now()) AS at, position"
        " FROM unnest({parameters}) WITH ORDINALITY AS given ({keys}given_at, position)) spine {joins} ORDER BY position"
    ).format(
        name=sql.Identifier(name),
        types=sql.SQL("text[], " * len(keys)),
        keys=sql.SQL("").join(sql.Identifier(key) + sql.SQL(", ") for key in keys),
        parameters=sql.SQL(", ".join(f"${number}" for number in range(1, len(keys) + 2))),
        columns=_columns(views),
        joins=_joins(views),
    )
    with session.cursor() as cursor:
        cursor.execute(statement)
    session.prepared[views] = name
    return name


def _columns(views: Sequence[View]) -> sql.Composable:
    return sql.SQL(", ").join(sql.Identifier(view.name, column) for view in views for column in view.columns)


def _joins(views: Sequence[View]) -> sql.Composable:
    return sql.SQL(" ").join(
        sql.SQL("LEFT JOIN LATERAL {}({}, spine.at) {} ON true").format(
            sql.Identifier("features", f"{view.name}_{view.hash}"),
            sql.SQL(", ").join(sql.Identifier("spine", key) for key in view.keys),
            sql.Identifier(view.name),
        )
        for view in views
    )


def _copied(table: str, columns: Sequence[str]) -> sql.Composable:
    """`table` is a name that Postgres gave."""
    return sql.SQL("COPY " + table + " ({}) FROM STDIN (FORMAT csv)").format(sql.SQL(", ").join(map(sql.Identifier, columns)))


@contextmanager
def _explained(*, hides_values: bool = False) -> Iterator[None]:
    """Turns Postgres' complaints about what was sent into a FeatureError; about data, without the values that it names."""
    try:
        yield
    except (psycopg2.DataError, psycopg2.ProgrammingError, psycopg2.IntegrityError, psycopg2.NotSupportedError) as error:
        is_own = isinstance(error, psycopg2.errors.InvalidParameterValue)
        message = error.diag.message_primary or type(error).__name__
        raise FeatureError(
            message if is_own or not hides_values else f"a value does not fit its column: {type(error).__name__}"
        ) from error
