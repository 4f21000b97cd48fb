"""The database's half of a backup: pg_dump and pg_restore in Postgres' own container, and a checksum of every table."""

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import IO

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack import postgres, settings
from mlstack.errors import MlstackError
from mlstack.host.backup.manifest import CHUNK, Advance, Table, opened
from mlstack.host.backup.stack import Stack

DEADLINE = 60  # seconds
# What a person counts, and the table that holds it.
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
# What says where artifacts are. A server that hands them through itself does not name the bucket there.
_LOCATED = ("experiments", "runs", "model_versions", "logged_models", "trace_tags")
# A row as text must not depend on how a server or a session is configured.
_SESSION = (
    "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres';"
    " SET extra_float_digits = 1; SET bytea_output = 'hex'; SET search_path = public, pg_catalog"
)
_TABLES = (
    "SELECT n.nspname, c.relname, pg_get_userbyid(c.relowner) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition"
    " AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' ORDER BY 1, 2"
)
# Halves of an MD5, each summed: the same rows in any order give the same sums, in constant memory.
_CHECKSUM = (
    "SELECT count(*), coalesce(sum(('x' || left(hash, 16))::bit(64)::bigint::numeric), 0),"
    " coalesce(sum(('x' || right(hash, 16))::bit(64)::bigint::numeric), 0)"
    " FROM (SELECT md5(mlstack_row::text) AS hash FROM {} AS mlstack_row) AS hashes"
)
# What has an owner and is not owned along with its table.
_OWNED = (
    "SELECT format('ALTER SCHEMA %%I OWNER TO %%I', %(schema)s, %(role)s) WHERE %(schema)s <> 'public'"
    " UNION ALL SELECT format('ALTER TABLE %%I.%%I OWNER TO %%I', %(schema)s, c.relname, %(role)s)"
    " FROM pg_class c WHERE c.relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
    " UNION ALL SELECT format('ALTER SEQUENCE %%I.%%I OWNER TO %%I', %(schema)s, c.relname, %(role)s)"
    " FROM pg_class c WHERE c.relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND c.relkind = 'S'"
    " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i'))"
    " UNION ALL SELECT format('ALTER TYPE %%I.%%I OWNER TO %%I', %(schema)s, t.typname, %(role)s)"
    " FROM pg_type t WHERE t.typnamespace = to_regnamespace(quote_ident(%(schema)s)) AND t.typtype IN ('e', 'd')"
)


@dataclass(frozen=True)
class Snapshot:
    """The database at one moment, for as long as its transaction is open."""

    connection: Connection
    name: str
    time: datetime


@contextmanager
def connected(stack: Stack, name: str | None = None) -> Iterator[Connection]:
    """The owner's connection to a database of the stack, MLflow's without a name."""
    with postgres.connected(replace(stack.owner, database=name or stack.owner.database), DEADLINE) as connection:
        with connection.cursor() as cursor:
            cursor.execute(_SESSION)
        yield connection


@contextmanager
def snapshot(stack: Stack) -> Iterator[Snapshot]:
    """One state of the database, which pg_dump and the checksums both read while clients go on writing."""
    with connected(stack) as connection:
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True, autocommit=False)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_export_snapshot()")
            name = str(_one(cursor))
            cursor.execute("SELECT clock_timestamp()")  # after it: what the snapshot shows was committed before
            yield Snapshot(connection, name, datetime.fromisoformat(str(_one(cursor))))
        connection.rollback()


def tables(connection: Connection) -> dict[str, Table]:
    """Rows and checksum of every table."""
    found = {}
    with connection.cursor() as cursor:
        cursor.execute(_TABLES)
        for schema, name, _ in cursor.fetchall():
            cursor.execute(sql.SQL(_CHECKSUM).format(sql.Identifier(schema, name)))
            rows, first, second = cursor.fetchone() or (0, 0, 0)
            found[f"{schema}.{name}"] = Table(int(rows), f"{int(first) % 2**64:016x}{int(second) % 2**64:016x}")
    return found


def counts(found: Mapping[str, Table]) -> dict[str, int]:
    """The numbers that a person knows their work by."""
    rows: dict[str, int] = {}
    for name, table in found.items():
        rows.setdefault(name.partition(".")[2], table.rows)
    return {what: rows[table] for what, table in COUNTED.items() if table in rows}


def owners(connection: Connection, roles: Mapping[str, str]) -> dict[str, str]:
    """Each schema and the variable of `.env` that names its owner: on another machine the role has another name."""
    variables = {role: variable for variable, role in roles.items()}
    with connection.cursor() as cursor:
        cursor.execute(_TABLES)
        return {schema: variables.get(owner, "MLFLOW_DB_USER") for schema, _, owner in cursor.fetchall()}


def mlflow_version(connection: Connection) -> str | None:
    """The MLflow that made the tables, as the migration marked them; None for tables from elsewhere."""
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


def dump(stack: Stack, snapshot_name: str, path: Path, advance: Advance) -> str:
    """Writes the database as the snapshot shows it and returns the file's checksum. Raises MlstackError."""
    command = [
        "pg_dump", "--username", stack.owner.user, "--dbname", stack.owner.database, "--format", "custom",
        "--no-owner", "--no-privileges", "--snapshot", snapshot_name,
    ]  # fmt: skip
    digest = hashlib.sha256()
    with path.open("wb") as file, _in_postgres(stack, *command, wrong="the database could not be dumped") as process:
        assert process.stdout  # noqa: S101 - a pipe, as asked for
        while chunk := process.stdout.read(CHUNK):
            digest.update(chunk)
            file.write(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def load(stack: Stack, path: Path, name: str, advance: Advance) -> None:
    """Fills the empty database `name` from a dump; all of it belongs to MLflow's role. Raises MlstackError."""
    command = [
        "pg_restore", "--username", stack.owner.user, "--dbname", name, "--role", stack.mlflow_role,
        "--no-owner", "--no-privileges", "--exit-on-error",
    ]  # fmt: skip
    with opened(path.parent, path.name) as file, _in_postgres(stack, *command, wrong="the dump could not be loaded") as process:
        assert process.stdin  # noqa: S101 - a pipe, as asked for
        while chunk := file.read(CHUNK):
            process.stdin.write(chunk)
            advance(len(chunk))
        process.stdin.flush()


def names_bucket(image: str, path: Path, bucket: str) -> bool:
    """Whether rows in a dump lead to artifacts by this bucket's name. Reads it with the pg_restore of an image of Postgres.

    Raises MlstackError when the dump cannot be read.
    """
    place = re.compile(rb"\ts3://" + re.escape(bucket.encode()) + rb"[/\t\n]")
    command = [
        "docker", "run", "--rm", "--interactive", "--network", "none", "--entrypoint", "pg_restore", image,
        "--data-only", "--file=-", *(f"--table={table}" for table in _LOCATED),
    ]  # fmt: skip
    with opened(path.parent, path.name) as file, _running(command, "the dump could not be read", stdin=file) as process:
        assert process.stdout  # noqa: S101 - a pipe, as asked for
        found = [line for line in process.stdout if place.search(line)]
    return bool(found)


def give(connection: Connection, schema: str, role: str) -> None:
    """Everything in a schema belongs to this role."""
    with connection.cursor() as cursor:
        cursor.execute(_OWNED, {"schema": schema, "role": role})
        for (statement,) in cursor.fetchall():
            cursor.execute(statement)


def exists(server: Connection, name: str) -> bool:
    """Whether the server has a database of this name."""
    with server.cursor() as cursor:
        cursor.execute("SELECT FROM pg_database WHERE datname = %s", (name,))
        return cursor.rowcount > 0


def note(server: Connection, name: str) -> str | None:
    """What was written to a database with `annotate`."""
    with server.cursor() as cursor:
        cursor.execute("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", (name,))
        row = cursor.fetchone()
    return row[0] if row else None


def annotate(server: Connection, name: str, text: str | None) -> None:
    """Writes a remark to a database, which stays with it; None removes it."""
    _execute(server, "COMMENT ON DATABASE {} IS {}", sql.Identifier(name), sql.Literal(text))


def create(server: Connection, name: str, owner: str, template: str = "template1") -> None:
    """Makes a database, closed to the public as the bootstrap keeps all of them."""
    _execute(server, "CREATE DATABASE {} OWNER {} TEMPLATE {}", *map(sql.Identifier, (name, owner, template)))
    _execute(server, "REVOKE ALL ON DATABASE {} FROM PUBLIC", sql.Identifier(name))


def drop(server: Connection, name: str) -> None:
    """Removes a database, if it is there."""
    _execute(server, "DROP DATABASE IF EXISTS {} WITH (FORCE)", sql.Identifier(name))


def close(server: Connection, name: str) -> None:
    """Nobody connects to this database, whatever starts; who is connected is cut."""
    _execute(server, "ALTER DATABASE {} ALLOW_CONNECTIONS false", sql.Identifier(name))
    with server.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", (name,))


def open_(server: Connection, name: str) -> None:
    """Undoes `close`."""
    _execute(server, "ALTER DATABASE {} ALLOW_CONNECTIONS true", sql.Identifier(name))


def swap(server: Connection, name: str, replacement: str, aside: str) -> None:
    """`replacement` becomes `name`, and what had that name `aside`: both or neither. Nobody may be connected to either."""
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


def _one(cursor: object) -> object:
    row = cursor.fetchone()  # type: ignore[attr-defined]
    return row[0] if row else None


def _execute(connection: Connection, statement: str, *parts: sql.Composable) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL(statement).format(*parts))


@contextmanager
def _in_postgres(stack: Stack, *command: str, wrong: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in Postgres' container, on its own socket: the tools there are those of the server, and need no password."""
    with _running(["docker", "compose", "exec", "--no-TTY", "postgres", *command], wrong, folder=stack.project) as process:
        yield process


@contextmanager
def _running(
    command: Sequence[str], wrong: str, *, stdin: int | IO[bytes] = subprocess.PIPE, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A command between pipes. Raises MlstackError beginning with `wrong` when it fails."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, cwd=folder, env=settings.for_commands(), stdin=stdin, stdout=subprocess.PIPE, stderr=errors
        )
        with process:  # closes the pipes and waits
            try:
                yield process
            except BrokenPipeError:
                pass  # it gave up, and says why
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
            telling = [line for line in lines if "error:" in line] or lines
            raise MlstackError(f"{wrong}: {telling[0]}", "Nothing was changed.", "docker compose logs postgres")
