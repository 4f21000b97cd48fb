"""Postgres: MLflow's role and database, and nothing open to the public."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from mlstack.bootstrap import Outcome, report
from mlstack.errors import MlstackError
from mlstack.settings import Login

DEADLINE = 120  # seconds
# Any number does, as long as it is always the same.
LOCK = 0x6D6C7374
_REFUSED = ("password authentication failed", "no password supplied")
# A role that can log in and nothing more.
_ATTRIBUTES = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"


def bootstrap(connection: Connection, role: Login) -> None:
    """Brings the server to the wanted state, through its owner's connection."""
    report(f"database role {role.user}", ensure_role(connection, role))
    report(f"database {role.database}", ensure_database(connection, role.database, role.user))
    report("database privileges", ensure_closed_to_the_public(connection))


@contextmanager
def turn(login: Login, deadline: float = DEADLINE) -> Iterator[Connection]:
    """A connection whose holder is alone: two bootstraps at once take turns.

    Raises MlstackError when the server does not answer within `deadline` seconds, or refuses the password.
    """
    with connected(login, deadline) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
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


def ensure_role(connection: Connection, role: Login) -> Outcome:
    """A role that can log in with this password and has no other right."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT rolcanlogin AND NOT (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls)"
            " FROM pg_roles WHERE rolname = %s",
            (role.user,),
        )
        found = cursor.fetchone()
        if found and found[0] and _accepts(connection, role):
            return Outcome.ALREADY_THERE
        statement = "ALTER" if found else "CREATE"
        cursor.execute(
            sql.SQL(f"{statement} ROLE {{}} {_ATTRIBUTES} PASSWORD {{}}").format(
                sql.Identifier(role.user), sql.Literal(role.password)
            )
        )
    return Outcome.CHANGED if found else Outcome.CREATED


def ensure_database(connection: Connection, name: str, owner: str) -> Outcome:
    """A database of this name that belongs to `owner`."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", (name,))
        found = cursor.fetchone()
        if found and found[0] == owner:
            return Outcome.ALREADY_THERE
        statement = "ALTER DATABASE {} OWNER TO {}" if found else "CREATE DATABASE {} OWNER {}"
        cursor.execute(sql.SQL(statement).format(sql.Identifier(name), sql.Identifier(owner)))
    return Outcome.CHANGED if found else Outcome.CREATED


def ensure_closed_to_the_public(connection: Connection) -> Outcome:
    """No database lets in a role that was not granted it: Postgres lets everybody connect to each by default."""
    with connection.cursor() as cursor:
        # No ACL at all stands for the default, which is open.
        cursor.execute(
            "SELECT datname FROM pg_database WHERE datallowconn AND"
            " (datacl IS NULL OR EXISTS (SELECT FROM aclexplode(datacl) WHERE grantee = 0)) ORDER BY datname"
        )
        names = [row[0] for row in cursor.fetchall()]
        for name in names:
            cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
    return Outcome.CHANGED if names else Outcome.ALREADY_THERE


def _accepts(connection: Connection, role: Login) -> bool:
    """Whether this server lets `role` in with its password (or only refuses it the database, which comes after)."""
    server = connection.info
    try:
        psycopg2.connect(host=server.host, port=server.port, user=role.user, password=role.password, dbname=role.database).close()
    except psycopg2.OperationalError as error:
        return not _is_refused(error)
    return True


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
        )
    except psycopg2.OperationalError as error:
        raise (_refusal(login) if _is_refused(error) else _silence(login, deadline, error)) from error
    return connection


def _refusal(login: Login) -> MlstackError:
    return MlstackError(
        f"Postgres refuses the password of {login.user}: .env was changed or made anew, and the volume keeps the old one.",
        "Nothing was changed or lost.",
        "put the old POSTGRES_USER and POSTGRES_PASSWORD back into .env; or give the database the new password with"
        f" docker compose exec postgres psql -U {login.user} -d postgres -c '\\password'; or start empty with make reset",
    )


def _silence(login: Login, deadline: float, error: BaseException) -> MlstackError:
    return MlstackError(
        f"Postgres at {login.host}:{login.port} did not answer within {deadline:g} s: {str(error).strip()}",
        "MLflow keeps runs and models there.",
        "docker compose logs postgres",
    )
