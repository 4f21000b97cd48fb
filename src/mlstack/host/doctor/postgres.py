"""Postgres, by logging in: each role, reading and writing, room, and MLflow's schema."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg2

from mlstack import postgres
from mlstack.errors import MlstackError
from mlstack.host.doctor.check import Check, check
from mlstack.host.doctor.context import Subject
from mlstack.host.doctor.stack import service
from mlstack.settings import Login

REACH = "database"
PATIENCE = 5  # seconds


@dataclass(frozen=True)
class Role:
    """A login: its variables for name and password, and whether it creates tables or only reads MLflow's."""

    user: str
    password: str
    writes: bool


@dataclass(frozen=True)
class Schema:
    """Tables that MLflow migrates: their owner, the table with their revision, and the folder of MLflow's migrations."""

    name: str
    role: Role
    table: str
    migrations: str


OWNER = Role("POSTGRES_USER", "POSTGRES_PASSWORD", writes=True)
TRACKING = Role("MLFLOW_DB_USER", "MLFLOW_DB_PASSWORD", writes=True)
ACCOUNTS = Role("ACCOUNTS_DB_USER", "ACCOUNTS_DB_PASSWORD", writes=True)
READER = Role("READER_DB_USER", "READER_DB_PASSWORD", writes=False)
ROLES = (OWNER, TRACKING, ACCOUNTS, READER)
SCHEMAS = (
    Schema("tracking", TRACKING, "alembic_version", "store/db_migrations"),
    Schema("accounts", ACCOUNTS, "alembic_version_auth", "server/auth/db/migrations"),
)

# Prints the newest revisions of MLflow's migrations, without importing MLflow, which takes two seconds.
_HEADS = """
import sys
from importlib.util import find_spec
from pathlib import Path
from alembic.config import Config
from alembic.script import ScriptDirectory
for migrations in sys.argv[1:]:
    config = Config()
    config.set_main_option("script_location", str(Path(find_spec("mlflow").origin).parent / migrations))
    print(*ScriptDirectory.from_config(config).get_heads())
"""


def _login(role: Role) -> Check:
    @check(REACH, f"login of {role.user}", service("postgres"))
    def login(subject: Subject) -> str:
        if role is OWNER and not subject.stack.has_administrator:
            return "none: .env has no administrator's login to the external Postgres"
        with _connected(subject, role) as cursor:
            if not role.writes:
                cursor.execute("SELECT count(*) FROM experiments")
            try:
                # The owner writes only where no other role can have created anything that its session would run.
                kind = "TEMPORARY TABLE" if role is OWNER else "TABLE"
                cursor.execute(f"CREATE {kind} mlstack_doctor AS SELECT 42 AS answer, current_user AS who")
            except (psycopg2.errors.ReadOnlySqlTransaction, psycopg2.errors.InsufficientPrivilege):
                if role.writes:
                    raise
                return "reads, and cannot write"
            if not role.writes:
                raise MlstackError(
                    f"{role.user} may write.",
                    "Who is given this login to look could change MLflow's data.",
                    "make up sets its rights",
                )
            cursor.execute("SELECT answer, who FROM mlstack_doctor")
            row = cursor.fetchone()
        if row != (42, _login_of(subject, role).user):
            raise MlstackError(f"Postgres gave back {row}.", "A row is not what was written.", "make logs SERVICE=postgres")
        return "wrote, read and took back"

    return login


LOGINS = {role: _login(role) for role in ROLES}


@check(REACH, "connections left", LOGINS[OWNER])
def connections(subject: Subject) -> str:
    with _connected(subject, OWNER) as cursor:
        cursor.execute(
            "SELECT count(*), current_setting('max_connections')::int FROM pg_stat_activity WHERE backend_type = 'client backend'"
        )
        used, limit = cursor.fetchone() or (0, 1)
    if used > subject.limits.connection_share * limit:
        raise MlstackError(
            f"{used} of Postgres' {limit} connections are in use.",
            "MLflow cannot open more than that.",
            "close notebooks and scripts that talk to Postgres; or docker compose restart mlflow",
        )
    return f"{used} of {limit} used"


@check(REACH, "pages are as they were written", LOGINS[OWNER])
def checksums(subject: Subject) -> None:
    with _connected(subject, OWNER) as cursor:
        cursor.execute("SELECT coalesce(sum(checksum_failures), 0)::int FROM pg_stat_database")
        (failures,) = cursor.fetchone() or (0,)
    if failures:
        raise MlstackError(
            f"Postgres read {failures} pages that are not as it wrote them.",
            "The disk or the memory of the host loses data.",
            "make backup now; then check the disk (smartctl, dmesg) and restore on another one",
        )


def _schema(schema: Schema) -> Check:
    @check(REACH, f"schema of {schema.name} at head", LOGINS[schema.role], service("mlflow"))
    def at_head(subject: Subject) -> str:
        with _connected(subject, schema.role) as cursor:
            cursor.execute("SELECT to_regclass(%s)", (schema.table,))
            (exists,) = cursor.fetchone() or (None,)
            revision = ""
            if exists:
                cursor.execute(f"SELECT version_num FROM {schema.table}")  # noqa: S608 # a name of ours
                (revision,) = cursor.fetchone() or ("",)
        expected = _heads(subject)[schema.name]
        if revision != expected:
            raise MlstackError(
                f"the {schema.name} tables are at revision {revision or 'none'}; the running MLflow has {expected}.",
                "MLflow fails where the tables differ from what it expects.",
                "make up migrates older tables; for newer ones, use the version of this project that made them",
            )
        return expected

    return at_head


def _heads(subject: Subject) -> dict[str, str]:
    """The newest revisions of the running MLflow's migrations."""
    lines = subject.once("heads", lambda: subject.python_inside("mlflow", _HEADS, *(schema.migrations for schema in SCHEMAS)))
    return dict(zip((schema.name for schema in SCHEMAS), lines.splitlines(), strict=True))


def _login_of(subject: Subject, role: Role) -> Login:
    stack = subject.stack
    logins = {OWNER: lambda: stack.catalog, TRACKING: lambda: stack.tracking, ACCOUNTS: lambda: stack.accounts}
    return logins.get(role, lambda: stack.reader)()


@contextmanager
def _connected(subject: Subject, role: Role) -> Iterator[Any]:
    """A cursor in a transaction that is never committed."""
    login = _login_of(subject, role)
    user = login.user
    try:
        options = f"-c statement_timeout={PATIENCE}s {login.options}"
        connection = psycopg2.connect(**replace(login, options=options).parameters, connect_timeout=PATIENCE)
    except psycopg2.OperationalError as error:
        if login.is_external:
            raise postgres.explained(login, error) from error
        message = str(error).strip().splitlines()[-1]
        if "password authentication failed" in message or "does not exist" in message or "no password supplied" in message:
            raise MlstackError(
                f"Postgres rejects {role.user} {user}: {message.rpartition('FATAL:')[2].strip()}.",
                "The volume has another password or role than .env.",
                f"put the old {role.user} and {role.password} back into .env"
                + ("" if role is OWNER else "; or make up, which gives the database the one in .env"),
            ) from error
        raise MlstackError(
            f"Postgres does not answer at {login.host}:{login.port}: {message}",
            "MLflow keeps runs and models there.",
            "make logs SERVICE=postgres",
        ) from error
    try:
        with connection.cursor() as cursor:
            yield cursor
    except psycopg2.Error as error:
        raise MlstackError(
            f"Postgres answers {role.user} {user} with: {str(error).strip().splitlines()[0]}",
            "MLflow keeps runs and models there.",
            "make logs SERVICE=postgres",
        ) from error
    finally:
        connection.close()


HEADS = {schema.name: _schema(schema) for schema in SCHEMAS}
