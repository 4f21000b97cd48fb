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
# Versions of an external server: older ones open the schema public to all roles, newer ones reject the pg_dump of the image.
OLDEST, NEWEST = 15, 17
# The password is right, but the role may not connect to the database, or the database does not exist yet.
_CANNOT_CONNECT = (
    "permission denied for database",
    "does not exist",
    "not currently accepting connections",
    "too many connections for role",
)
_REJECTED = ("password authentication failed", "no password supplied")
# Errors of an external server that waiting does not change: what is wrong, and how to fix it.
_FINAL = {
    "could not translate host name": (
        "no host has the name {host}",
        "correct EXTERNAL_POSTGRES in .env, or the DNS of the host",
    ),
    "certificate verify failed": (
        "the certificate of {host} is signed by no authority of {sslrootcert}",
        "set EXTERNAL_POSTGRES_CA in .env to the file with the authority's certificate",
    ),
    "does not match host name": (
        "the certificate of {host} is for another name",
        "set EXTERNAL_POSTGRES in .env to the name in the certificate; EXTERNAL_POSTGRES_TLS=verify-ca accepts any name",
    ),
    "root certificate file": (
        "the certificates of EXTERNAL_POSTGRES_CA cannot be read",
        "set EXTERNAL_POSTGRES_CA in .env to a file in PEM format that everybody may read",
    ),
    "server does not support SSL": (
        "{host} does not offer TLS",
        "switch TLS on at the server; EXTERNAL_POSTGRES_TLS=disable sends everything unencrypted",
    ),
    "no pg_hba.conf entry": (
        "{host} accepts no connection of {user} from here",
        "let the server accept this host's address (its firewall, security group or pg_hba.conf)",
    ),
    "permission denied for database": (
        "{user} may not connect to the database {database}",
        "as an administrator of the server: GRANT CONNECT ON DATABASE {database} TO {user}",
    ),
    "does not exist": (
        "the database {database} or the role {user} does not exist at {host}",
        "let an administrator create them; with EXTERNAL_POSTGRES_USER in .env make up does (docs/external.md)",
    ),
    **dict.fromkeys(
        _REJECTED,
        ("{host} rejects the password of {user}", "correct the user and the password in .env, or set the password at the server"),
    ),
}


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
        psycopg2.connect(**login.parameters, connect_timeout=5).close()
    except psycopg2.OperationalError as error:
        if not _is_rejected(error) and not any(text in str(error) for text in _CANNOT_CONNECT):
            raise
        return not _is_rejected(error)
    return True


def ensure_member(connection: Connection, role: str) -> None:
    """This session's role may act for another. Creating a role does not include that for an administrator who is no superuser."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_has_role(%s, 'USAGE')", (role,))
        if cursor.fetchone() != (True,):
            cursor.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(role)))


def require_supported(connection: Connection, oldest: int = OLDEST, newest: int = NEWEST) -> None:
    """Raises MlstackError for a server whose version the stack does not support."""
    version = connection.info.server_version // 10000
    if not oldest <= version <= newest:
        raise MlstackError(
            f"{connection.info.host} runs Postgres {version}; versions {oldest} to {newest} are supported.",
            "MLflow's tables or their backups would not work there.",
            "use a server of one of these versions, or the stack's own: EXTERNAL_POSTGRES= in .env",
        )


def set_password(connection: Connection, role: Login) -> None:
    """Sets the password of an existing role, also as the role itself if its sessions only read."""
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = off")
        cursor.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role.user), sql.Literal(role.password)))


def _is_rejected(error: BaseException) -> bool:
    return any(text in str(error) for text in _REJECTED)


def _connect(login: Login, deadline: float) -> Connection:
    # A rejected password stays rejected; any other error may come from a server that is still starting.
    def is_transient(error: BaseException) -> bool:
        is_final = login.is_external and _final(error) is not None
        return isinstance(error, psycopg2.OperationalError) and not _is_rejected(error) and not is_final

    try:
        connection: Connection = retrying(deadline, is_transient)(psycopg2.connect, **login.parameters, connect_timeout=5)
    except psycopg2.OperationalError as error:
        if login.is_external:
            raise explained(login, error) from error
        raise (_wrong_password(login) if _is_rejected(error) else _no_answer(login, deadline, error)) from error
    return connection


def explained(login: Login, error: psycopg2.Error) -> MlstackError:
    """Why an external server accepts no connection."""
    message = " ".join(str(error).split())
    wrong, fix = _final(error) or (
        "{host}:{port} does not answer",
        "correct EXTERNAL_POSTGRES and EXTERNAL_POSTGRES_PORT in .env, or start the server",
    )
    names = vars(login)
    return MlstackError(
        f"external Postgres: {wrong.format(**names)} ({message}).", "MLflow keeps runs and models there.", fix.format(**names)
    )


def _final(error: BaseException) -> tuple[str, str] | None:
    return next((explanation for text, explanation in _FINAL.items() if text in str(error)), None)


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
