"""The database's part of a backup: pg_dump and pg_restore in Postgres' own container, and a checksum of every table."""

import hashlib
import re
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack import postgres
from mlstack.errors import MlstackError
from mlstack.host.backup.manifest import CHUNK, Advance, Table, opened
from mlstack.host.compose import DOCKER
from mlstack.host.stack import Stack
from mlstack.postgres import ACCOUNTS_SCHEMA, SERVING_SCHEMAS
from mlstack.settings import Login

DEADLINE = 60  # seconds
# What users count, and its table.
COUNTED: Mapping[str, str] = {
    "experiments": "experiments",
    "runs": "runs",
    "metric points": "metrics",
    "parameters": "params",
    "tags": "tags",
    "registered models": "registered_models",
    "model versions": "model_versions",
    "aliases": "registered_model_aliases",
    "accounts": "users",
}
MARK = re.compile(r"migrated by MLflow ([\w.+-]+)")
# A tag with the bucket's name, which the server does not read: it derives the location (server/locations.py).
ARCHIVED = b"\tmlflow.trace.archiveLocation\t"
# Columns with artifact locations. A server that proxies artifacts does not name the bucket there.
_LOCATED = ("experiments", "runs", "model_versions", "logged_models", "trace_tags")
# Rows as text must not depend on the configuration of a server or session.
_SESSION = (
    "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres';"
    " SET extra_float_digits = 1; SET bytea_output = 'hex'; SET search_path = pg_catalog"
)
_TABLES = (
    "SELECT n.nspname, c.relname, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition"
    " AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' ORDER BY 1, 2"
)
# Halves of an MD5, each summed: the same rows in any order give the same sums, in constant memory. Not row::text: a role may
# define that cast for its own tables.
_CHECKSUM = (
    "SELECT count(*), coalesce(sum(('x' || left(hash, 16))::bit(64)::bigint::numeric), 0),"
    " coalesce(sum(('x' || right(hash, 16))::bit(64)::bigint::numeric), 0)"
    " FROM (SELECT md5(textin(record_out(mlstack_row))) AS hash FROM {} AS mlstack_row) AS hashes"
)


@dataclass(frozen=True)
class Snapshot:
    """The database at one point in time, while its transaction is open."""

    connection: Connection
    name: str
    time: datetime


def login_of(stack: Stack, schema: str) -> Login:
    """The login that owns a schema, and alone dumps, reads and restores it (docs/adr/0017)."""
    if schema in SERVING_SCHEMAS:
        return stack.serving
    return stack.accounts if schema == ACCOUNTS_SCHEMA else stack.tracking


def schemas_by_login(stack: Stack, schemas: Iterable[str]) -> dict[Login, list[str]]:
    """The logins that own these schemas, and the schemas of each."""
    by_login: dict[Login, list[str]] = {}
    for schema in schemas:
        by_login.setdefault(login_of(stack, schema), []).append(schema)
    return by_login


def ensure_serving_login(stack: Stack, connection: Connection, schemas: Iterable[str]) -> None:
    """The owner of these schemas' part can log in. While the part is off, nothing else makes it or gives it a new password."""
    if not set(schemas) & set(SERVING_SCHEMAS) or postgres.accepts(stack.serving):
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", (stack.serving.user,))
        verb = "ALTER" if cursor.rowcount else "CREATE"
    name, password = sql.Identifier(stack.serving.user), sql.Literal(stack.serving.password)
    _execute(connection, verb + " ROLE {} LOGIN PASSWORD {}", name, password)
    if stack.serving.is_external:
        postgres.ensure_member(connection, stack.serving.user)


def knows_passwords(stack: Stack) -> bool:
    """Whether MLflow's roles can log in: a server that was not used during `make rotate` has the passwords from before it."""
    return all(postgres.accepts(login) for login in (stack.tracking, stack.accounts))


def schemas(connection: Connection) -> list[str]:
    """Every schema that has a table."""
    with connection.cursor() as cursor:
        cursor.execute(_TABLES)
        return sorted({schema for schema, *_ in cursor.fetchall()})


@contextmanager
def connected(stack: Stack, name: str | None = None) -> Iterator[Connection]:
    """The owner's connection to a database of the stack, by default MLflow's. Only for catalogs, never for rows."""
    login = replace(stack.owner, database=name) if name else stack.catalog
    with postgres.connected(login, DEADLINE) as connection:
        yield connection


def is_set_up(stack: Stack) -> bool:
    """Whether there can be a database of this stack, or one that replaces it: the bootstrap has run at an external server."""
    if not stack.owner.is_external:
        return True
    with connected(stack, "postgres") as connection:
        return exists(connection, stack.server.database)


@contextmanager
def server(stack: Stack) -> Iterator[Connection]:
    """The owner's connection to the database from which MLflow's is replaced."""
    with postgres.connected(stack.server, DEADLINE) as connection:
        yield connection


@contextmanager
def snapshot(stack: Stack) -> Iterator[Snapshot]:
    """One state of the database, read by pg_dump and the checksums while clients write."""
    with connected(stack) as connection:
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True, autocommit=False)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_export_snapshot()")
            name = str(_one(cursor))
            cursor.execute("SELECT clock_timestamp()")  # after it: the snapshot contains only earlier commits
            yield Snapshot(connection, name, datetime.fromisoformat(str(_one(cursor))))
        connection.rollback()


def require_readable(stack: Stack, connection: Connection) -> None:
    """Raises MlstackError naming tables that the login of their schema cannot read: a backup would lack them."""
    with connection.cursor() as cursor:
        cursor.execute(_TABLES)
        for schema, name, oid in cursor.fetchall():
            user = login_of(stack, schema).user
            cursor.execute(
                "SELECT has_table_privilege(%s, %s::oid, 'SELECT') AND has_schema_privilege(%s, %s, 'USAGE')",
                (user, oid, user, schema),
            )
            if _one(cursor) is not True:
                raise MlstackError(
                    f"the table {schema}.{name} is not readable for {user}, who dumps that schema.",
                    "The backup would lack it.",
                    f"as {stack.catalog.user}: GRANT USAGE ON SCHEMA {schema} TO {user};"
                    f" ALTER TABLE {schema}.{name} OWNER TO {user}",
                )


def tables(stack: Stack, listing: Connection, snapshot_name: str | None = None) -> dict[str, Table]:
    """Rows and checksum of every table that the owner's connection lists, each read by the login that owns its schema."""
    by_name = {}
    with listing.cursor() as cursor:
        cursor.execute(_TABLES)
        listed = [(schema, table) for schema, table, _ in cursor.fetchall()]
    for login, own in schemas_by_login(stack, dict.fromkeys(schema for schema, _ in listed)).items():
        with postgres.connected(replace(login, database=listing.info.dbname), DEADLINE) as connection:
            with connection.cursor() as cursor:
                cursor.execute(_SESSION)
                connection.set_session(isolation_level="REPEATABLE READ", readonly=True, autocommit=False)
                if snapshot_name:
                    cursor.execute("SET TRANSACTION SNAPSHOT %s", (snapshot_name,))
                for schema, table in ((schema, table) for schema, table in listed if schema in own):
                    cursor.execute(sql.SQL(_CHECKSUM).format(sql.Identifier(schema, table)))
                    rows, first, second = cursor.fetchone() or (0, 0, 0)
                    by_name[f"{schema}.{table}"] = Table(int(rows), f"{int(first) % 2**64:016x}{int(second) % 2**64:016x}")
            connection.rollback()
    return dict(sorted(by_name.items()))


def counts(by_name: Mapping[str, Table]) -> dict[str, int]:
    """Row counts that users know."""
    rows: dict[str, int] = {}
    for name, table in by_name.items():
        rows.setdefault(name.partition(".")[2], table.rows)
    return {label: rows[table] for label, table in COUNTED.items() if table in rows}


def owners(connection: Connection) -> dict[str, str]:
    """Each schema and the variable of `.env` that names its owner: on another host the role has another name."""
    names = {ACCOUNTS_SCHEMA: "ACCOUNTS_DB_USER", **dict.fromkeys(SERVING_SCHEMAS, "SERVING_DB_USER")}
    return {schema: names.get(schema, "MLFLOW_DB_USER") for schema in schemas(connection)}


def mlflow_version(connection: Connection) -> str | None:
    """The MLflow version that created the tables, from the migration's comment; None for other tables."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT obj_description(to_regclass('public.alembic_version'), 'pg_class')")
        mark = MARK.fullmatch(str(_one(cursor)))
    return mark[1] if mark else None


def server_version(connection: Connection) -> str:
    """Postgres' own, for example 17.6."""
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version")
        return str(_one(cursor)).split()[0]


def size(connection: Connection) -> int:
    """Bytes on Postgres' disk, more than any dump of it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_database_size(current_database())")
        return int(str(_one(cursor)))


def dump(stack: Stack, login: Login, schemas: Iterable[str], *, snapshot_name: str, path: Path, advance: Advance) -> str:
    """Writes schemas as the snapshot shows them, with this login, and returns the file's checksum. Raises MlstackError."""
    command = [
        "pg_dump", "--username", login.user, "--dbname", stack.database, "--format", "custom",
        "--no-owner", "--no-privileges", "--snapshot", snapshot_name, *_only(schemas),
    ]  # fmt: skip
    digest = hashlib.sha256()
    with path.open("wb") as file, _in_postgres(stack, login, *command, wrong="the database could not be dumped") as process:
        assert process.stdout  # noqa: S101 - a pipe, as asked for
        while chunk := process.stdout.read(CHUNK):
            digest.update(chunk)
            file.write(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def prepare(stack: Stack, name: str, schemas: Collection[str]) -> None:
    """Grants the logins access to a new database, each in its own schemas only."""
    with connected(stack, name) as connection:
        ensure_serving_login(stack, connection, schemas)
        for login in {stack.tracking, stack.accounts, *schemas_by_login(stack, schemas)}:
            _execute(connection, "GRANT CONNECT ON DATABASE {} TO {}", sql.Identifier(name), sql.Identifier(login.user))
        _execute(connection, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
        _execute(connection, "GRANT USAGE, CREATE ON SCHEMA public TO {}", sql.Identifier(stack.tracking.user))
        for schema in {*schemas, ACCOUNTS_SCHEMA} - {"public"}:
            owner = login_of(stack, schema).user
            _execute(connection, "CREATE SCHEMA {} AUTHORIZATION {}", sql.Identifier(schema), sql.Identifier(owner))


def load(stack: Stack, login: Login, schemas: Iterable[str], *, path: Path, name: str, advance: Advance) -> None:
    """Fills schemas of the database `name` from a dump. Its SQL can do what this login may do. Raises MlstackError."""
    command = [
        "pg_restore", "--username", login.user, "--dbname", name,
        "--no-owner", "--no-privileges", "--exit-on-error", *(f"--schema={schema}" for schema in schemas),
    ]  # fmt: skip
    with (
        opened(path.parent, path.name) as file,
        _in_postgres(stack, login, *command, wrong="the dump could not be loaded") as process,
    ):
        assert process.stdin  # noqa: S101 - a pipe, as asked for
        while chunk := file.read(CHUNK):
            process.stdin.write(chunk)
            advance(len(chunk))
        process.stdin.flush()


def names_bucket(image: str, path: Path, bucket: str) -> bool:
    """Whether rows in a dump name this bucket in artifact locations. Reads it with the pg_restore of an image of Postgres.

    Raises MlstackError when the dump cannot be read.
    """
    place = re.compile(rb"\ts3://" + re.escape(bucket.encode()) + rb"[/\t\n]")
    command = [
        "run", "--rm", "--interactive", "--network", "none", "--entrypoint", "pg_restore", image,
        "--data-only", "--file=-", *(f"--table={table}" for table in _LOCATED),
    ]  # fmt: skip
    with (
        opened(path.parent, path.name) as file,
        DOCKER.piped(*command, wrong="the dump could not be read", stdin=file) as process,
    ):
        assert process.stdout  # noqa: S101 - a pipe, as asked for
        lines = [line for line in process.stdout if place.search(line) and ARCHIVED not in line]
    return bool(lines)


def exists(server: Connection, name: str) -> bool:
    """Whether the server has a database of this name."""
    with server.cursor() as cursor:
        cursor.execute("SELECT FROM pg_database WHERE datname = %s", (name,))
        return cursor.rowcount > 0


def note(server: Connection, name: str) -> str | None:
    """The remark that `annotate` wrote to a database."""
    with server.cursor() as cursor:
        cursor.execute("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", (name,))
        row = cursor.fetchone()
    return row[0] if row else None


def annotate(server: Connection, name: str, text: str | None) -> None:
    """Stores a remark with a database; None removes it."""
    _execute(server, "COMMENT ON DATABASE {} IS {}", sql.Identifier(name), sql.Literal(text))


def create(server: Connection, name: str, template: str = "template1") -> None:
    """Creates a database with the template's logins, but not PUBLIC, as the bootstrap keeps all."""
    _execute(server, "CREATE DATABASE {} TEMPLATE {}", *map(sql.Identifier, (name, template)))
    _execute(server, "REVOKE ALL ON DATABASE {} FROM PUBLIC", sql.Identifier(name))
    with server.cursor() as cursor:
        # Postgres copies no privileges on the database itself.
        cursor.execute(
            "SELECT pg_get_userbyid(grantee) FROM pg_database, aclexplode(datacl)"
            " WHERE datname = %s AND privilege_type = 'CONNECT' AND grantee NOT IN (0, datdba)",
            (template,),
        )
        roles = [role for (role,) in cursor.fetchall()]
    for role in roles:
        _execute(server, "GRANT CONNECT ON DATABASE {} TO {}", sql.Identifier(name), sql.Identifier(role))


def drop(server: Connection, name: str) -> None:
    """Removes a database, if it exists."""
    if _is_superuser(server):
        _execute(server, "DROP DATABASE IF EXISTS {} WITH (FORCE)", sql.Identifier(name))
    elif exists(server, name):
        close(server, name)
        _execute(server, "DROP DATABASE {}", sql.Identifier(name))


def close(server: Connection, name: str) -> None:
    """Forbids connections to this database and ends the existing ones."""
    _execute(server, "ALTER DATABASE {} ALLOW_CONNECTIONS false", sql.Identifier(name))
    with server.cursor() as cursor:
        # Only a superuser may end Postgres' own processes; the statement that follows waits for them.
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = %s AND (%s OR backend_type = 'client backend')",
            (name, _is_superuser(server)),
        )


def open_(server: Connection, name: str) -> None:
    """Undoes `close`."""
    _execute(server, "ALTER DATABASE {} ALLOW_CONNECTIONS true", sql.Identifier(name))


def swap(server: Connection, name: str, replacement: str, aside: str) -> None:
    """`replacement` becomes `name`, and what had that name `aside`: both or neither. Neither may have connections."""
    server.autocommit = False
    try:
        _execute(server, "ALTER DATABASE {} RENAME TO {}", sql.Identifier(name), sql.Identifier(aside))
        _execute(server, "ALTER DATABASE {} RENAME TO {}", sql.Identifier(replacement), sql.Identifier(name))
        server.commit()
    finally:
        server.rollback()
        server.autocommit = True


def now(server: Connection) -> datetime:
    """The time on the clock that MinIO's container shares."""
    with server.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        return datetime.fromisoformat(str(_one(cursor)))


def _is_superuser(server: Connection) -> bool:
    return server.info.parameter_status("is_superuser") == "on"


def _only(schemas: Iterable[str]) -> list[str]:
    """pg_dump expects patterns: quoted, a name matches itself."""
    quoted = (schema.replace('"', '""') for schema in schemas)
    return ["--strict-names", *(f'--schema="{schema}"' for schema in quoted)]


def _one(cursor: object) -> object:
    row = cursor.fetchone()  # type: ignore[attr-defined]
    return row[0] if row else None


def _execute(connection: Connection, statement: str, *parts: sql.Composable) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL(statement).format(*parts))


@contextmanager
def _in_postgres(stack: Stack, login: Login, *command: str, wrong: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in Postgres' container, on its own socket: the tools there are those of the server, and need no password.

    For an external server in a container of the same image, which has the address and gets the password in its environment.
    """
    place: tuple[str, ...] = ("exec", "--no-TTY", "postgres")
    environment = {}
    if login.is_external:
        place = ("run", "--rm", "--no-deps", "--no-TTY", "--env", "PGPASSWORD", "postgres")
        environment = {"PGPASSWORD": login.password}
    with stack.compose.piped(*place, *command, wrong=wrong, environment=environment) as process:
        yield process
