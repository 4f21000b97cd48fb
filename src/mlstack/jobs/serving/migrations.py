"""Applies the files of sql/: a folder for each schema, in it numbered files, each applied once, and grants.sql.

A file that was applied is never changed: a later one changes what it made.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack.errors import MlstackError
from mlstack.jobs.bootstrap import Outcome, log

GRANTS = "grants.sql"
_LEDGER = (
    "CREATE TABLE IF NOT EXISTS serving.migrations"
    " (name text PRIMARY KEY, digest text NOT NULL, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
)


def apply(connection: Connection, folder: Path) -> Outcome:
    """Applies the files that are new, each in one transaction. Raises MlstackError for one that fails or was changed."""
    with connection.cursor() as cursor:
        cursor.execute(_LEDGER)
        cursor.execute("SELECT name, digest FROM serving.migrations")
        applied: dict[str, str] = dict(cursor.fetchall())
        outcome = Outcome.ALREADY_THERE
        for name, text in _files(folder):
            digest = hashlib.sha256(text.encode()).hexdigest()
            if applied.get(name, digest) != digest:
                raise MlstackError(
                    f"sql/{name} was changed after it was applied.",
                    "The tables would not be those that the file describes.",
                    f"git checkout sql/{name}, and put the change into a file with the next number",
                )
            if name not in applied:
                _apply(connection, name, text, digest)
                outcome = Outcome.CHANGED if applied else Outcome.CREATED
    return outcome


def grant(connection: Connection, folder: Path, service: str) -> None:
    """What the scoring service's role may do: again at each start, because a backup contains no grants."""
    for path in sorted(folder.glob(f"*/{GRANTS}")):
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL(path.read_text(encoding="utf-8")).format(service=sql.Identifier(service)))


def set_retention(connection: Connection, months: int) -> None:
    """For how many months serving.maintain keeps decisions."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO serving.settings VALUES ('retention_months', %s)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE settings.value <> excluded.value",
            (str(months),),
        )


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*/*.sql")):
        if path.name != GRANTS:
            yield f"{path.parent.name}/{path.name}", path.read_text(encoding="utf-8")


def _apply(connection: Connection, name: str, text: str, digest: str) -> None:
    connection.autocommit = False
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(text)
            cursor.execute("INSERT INTO serving.migrations (name, digest) VALUES (%s, %s)", (name, digest))
    except psycopg2.Error as error:
        raise MlstackError(
            f"sql/{name} cannot be applied: {str(error).strip()}", "Nothing of it was applied.", "report this as a bug"
        ) from error
    finally:
        connection.autocommit = True
    log.info("sql/%s: applied", name)
