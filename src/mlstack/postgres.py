"""Connections to Postgres: waiting for the server, taking turns, and errors that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from mlstack.errors import MlstackError
from mlstack.settings import Login

DEADLINE = 120  # seconds
ACCOUNTS_SCHEMA = "accounts"  # of MLflow's accounts; its tracking tables are in public
# Any number does, as long as it is always the same.
LOCK = 0x6D6C7374
TURN = 300  # seconds that a migration waits for the one before it
# The password was right, and there is no right to enter the database, or no database yet.
_NO_ENTRY = (
    "permission denied for database",
    "does not exist",
    "not currently accepting connections",
    "too many connections for role",
)
_REFUSED = ("password authentication failed", "no password supplied")


@contextmanager
def turn(login: Login, deadline: float = DEADLINE, patience: float = TURN) -> Iterator[Connection]:
    """A connection whose holder is alone: two bootstraps at once take turns. No role of a reader or an account can take one.

    Raises MlstackError when the server does not answer within `deadline` seconds or refuses the password, and when somebody
    else keeps the turn for `patience` seconds.
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
    """A connection in which every statement is a transaction of its own, waiting for the server if need be."""
    connection = _connect(login, deadline)
    try:
        connection.autocommit = True
        yield connection
    finally:
        connection.close()


def accepts(login: Login) -> bool:
    """Whether the server knows this password; what the role may enter is another matter.

    Raises psycopg2.OperationalError when there is no server to ask.
    """
    try:
        psycopg2.connect(
            host=login.host, port=login.port, user=login.user, password=login.password, dbname=login.database, connect_timeout=5,
            options=login.options,
        ).close()  # fmt: skip
    except psycopg2.OperationalError as error:
        if not _is_refused(error) and not any(
            text in str(error) for text in _NO_ENTRY
        ):  # no right to enter it, or there is none yet
            raise
        return not _is_refused(error)
    return True


def set_password(connection: Connection, role: Login) -> None:
    """Gives a role that exists this password."""
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role.user), sql.Literal(role.password)))


def _is_refused(error: BaseException) -> bool:
    return any(text in str(error) for text in _REFUSED)


def _connect(login: Login, deadline: float) -> Connection:
    # A refusal does not get better with time; everything else may be a server that is still starting.
    retrying = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, psycopg2.OperationalError) and not _is_refused(error)),
        stop=stop_after_delay(deadline),
        wait=wait_fixed(1),
        reraise=True,
    )
    try:
        connection: Connection = retrying(
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
        raise (_refusal(login) if _is_refused(error) else _silence(login, deadline, error)) from error
    return connection


def _refusal(login: Login) -> MlstackError:
    return MlstackError(
        f"Postgres refuses the password of {login.user}: .env was changed or regenerated, and the volume keeps the old one.",
        "Nothing was changed or lost.",
        "make up, which sets every password but the owner's; for the owner's,"
        " put the old POSTGRES_USER and POSTGRES_PASSWORD back into .env; or give the database the new password with"
        f" docker compose exec postgres psql -U {login.user} -d postgres -c '\\password'; or start empty with make reset",
    )


def _silence(login: Login, deadline: float, error: BaseException) -> MlstackError:
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
