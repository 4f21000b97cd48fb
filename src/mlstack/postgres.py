"""Connections to Postgres: waiting for the server, an exclusive lock, and errors that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack.errors import MlstackError
from mlstack.retries import retrying
from mlstack.settings import Login

DEADLINE = 120  # seconds
ACCOUNTS_SCHEMA = "accounts"  # schema of MLflow's accounts; its tracking tables are in public
SERVING_SCHEMAS = ("serving", "features")  # schemas of the optional part `scoring`, and of no other
# Any number, always the same.
LOCK = 0x6D6C7374
TURN = 300  # seconds that a migration waits for the one before it
# The password is right, but the role may not connect to the database, or the database does not exist yet.
_CANNOT_CONNECT = (
    "permission denied for database",
    "does not exist",
    "not currently accepting connections",
    "too many connections for role",
)
_REJECTED = ("password authentication failed", "no password supplied")


@contextmanager
def turn(login: Login, deadline: float = DEADLINE, patience: float = TURN) -> Iterator[Connection]:
    """A connection with an exclusive lock: two concurrent bootstraps take turns. The reader and the accounts cannot take it.

    Raises MlstackError when the server does not answer within `deadline` seconds or rejects the password, and when another
    session holds the lock for `patience` seconds.
    """
    with connected(login, deadline) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, false)", (f"{patience:g}s",))
            try:
                cursor.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
            except psycopg2.errors.LockNotAvailable as error:
                raise _busy(connection, patience) from error
            cursor.execute("SET lock_timeout = 0")
        yield connection


@contextmanager
def connected(login: Login, deadline: float = DEADLINE) -> Iterator[Connection]:
    """A connection in which every statement is its own transaction. Waits until the server accepts it."""
    connection = _connect(login, deadline)
    try:
        connection.autocommit = True
        yield connection
    finally:
        connection.close()


def accepts(login: Login) -> bool:
    """Whether the server accepts this password, even if the role may not connect to the database.

    Raises psycopg2.OperationalError when no server answers.
    """
    try:
        psycopg2.connect(
            host=login.host, port=login.port, user=login.user, password=login.password, dbname=login.database, connect_timeout=5,
            options=login.options,
        ).close()  # fmt: skip
    except psycopg2.OperationalError as error:
        if not _is_rejected(error) and not any(text in str(error) for text in _CANNOT_CONNECT):
            raise
        return not _is_rejected(error)
    return True


def set_password(connection: Connection, role: Login) -> None:
    """Sets the password of an existing role."""
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role.user), sql.Literal(role.password)))


def _is_rejected(error: BaseException) -> bool:
    return any(text in str(error) for text in _REJECTED)


def _connect(login: Login, deadline: float) -> Connection:
    # A rejected password stays rejected; any other error may come from a server that is still starting.
    def is_transient(error: BaseException) -> bool:
        return isinstance(error, psycopg2.OperationalError) and not _is_rejected(error)

    try:
        connection: Connection = retrying(deadline, is_transient)(
            psycopg2.connect,
            host=login.host,
            port=login.port,
            user=login.user,
            password=login.password,
            dbname=login.database,
            connect_timeout=5,
            options=login.options,
        )
    except psycopg2.OperationalError as error:
        raise (_wrong_password(login) if _is_rejected(error) else _no_answer(login, deadline, error)) from error
    return connection


def _wrong_password(login: Login) -> MlstackError:
    return MlstackError(
        f"Postgres rejects the password of {login.user}: .env was changed or regenerated, and the volume keeps the old one.",
        "Nothing was changed or lost.",
        "make up, which sets every password but the owner's; for the owner's,"
        " put the old POSTGRES_USER and POSTGRES_PASSWORD back into .env; or give the database the new password with"
        f" docker compose exec postgres psql -U {login.user} -d postgres -c '\\password'; or start empty with make reset",
    )


def _no_answer(login: Login, deadline: float, error: BaseException) -> MlstackError:
    return MlstackError(
        f"Postgres at {login.host}:{login.port} did not answer within {deadline:g} s: {str(error).strip()}",
        "MLflow keeps runs and models there.",
        "docker compose logs postgres",
    )


def _busy(connection: Connection, patience: float) -> MlstackError:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT format('%%s, process %%s, since %%s', usename, pid, to_char(backend_start, 'HH24:MI:SS'))"
            " FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE locktype = 'advisory' AND granted AND classid = 0 AND objid = %s AND datname = current_database()",
            (LOCK,),
        )
        holders = "; ".join(holder for (holder,) in cursor.fetchall())
    return MlstackError(
        f"another bootstrap or migration did not end within {patience:g} s (role {holders or 'unknown'}).",
        "Two at once would change the same tables.",
        "wait for it; or docker compose restart postgres ends it, then make up",
    )
