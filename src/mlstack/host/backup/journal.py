"""The record of every version that a restore writes into the buckets, so that undoing it removes exactly those.

Dates are no evidence: a client that may write an object may choose its date, and may write during the restore.
The journal is a table of the server's owner, in a database that no other role can connect to.
"""

import json
from collections.abc import Iterable, Mapping, Sequence

from minio import Minio
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack import s3

# By key: the ids of the versions and delete markers before the restore.
Ids = Mapping[str, Sequence[str]]


class Journal:
    """The journal of one restore, named after the database that it fills."""

    def __init__(self, server: Connection, name: str) -> None:
        self._server, self._table = server, sql.Identifier("mlstack", name)

    def start(self) -> None:
        """Creates an empty journal."""
        self._execute("CREATE SCHEMA IF NOT EXISTS mlstack")
        self.end()
        self._execute(
            "CREATE TABLE {} (bucket text, key text, before jsonb NOT NULL, deletes bool NOT NULL, version text,"
            " PRIMARY KEY (bucket, key))"
        )

    def end(self) -> None:
        """Removes the journal."""
        self._execute("DROP TABLE IF EXISTS {}")

    def exists(self) -> bool:
        """Whether a restore has a journal that names buckets: those of earlier versions did not."""
        with self._server.cursor() as cursor:
            cursor.execute(
                "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'bucket')",
                (self._table.as_string(self._server),),
            )
            return cursor.fetchone() == (True,)

    def intend(self, bucket: str, keys: Iterable[str], before: Ids, *, deletes: bool = False) -> None:
        """Records keys of a bucket before they are written, or hidden by a delete marker. It is on the disk when this returns."""
        rows = [{"key": key, "before": before.get(key, ())} for key in keys]
        self._execute(
            "SET LOCAL synchronous_commit = on; INSERT INTO {} SELECT %s, row->>'key', row->'before', %s"
            " FROM jsonb_array_elements(%s::jsonb) AS rows(row)",
            bucket,
            deletes,
            json.dumps(rows),
        )

    def wrote(self, bucket: str, key: str, version: str) -> None:
        """Records a version that the restore wrote. If this is lost in a crash, the ids from before identify it."""
        self._execute(
            "SET LOCAL synchronous_commit = off; UPDATE {} SET version = %s WHERE bucket = %s AND key = %s", version, bucket, key
        )

    def written(self, client: Minio, bucket: str) -> list[tuple[str, str]]:
        """Key and version id of exactly what the restore wrote into this bucket."""
        with self._server.cursor() as cursor:
            query = sql.SQL("SELECT key, before, deletes, version FROM {} WHERE bucket = %s").format(self._table)
            cursor.execute(query, (bucket,))
            rows = cursor.fetchall()
        versions = [(key, version) for key, _, _, version in rows if version]
        unknown = {key: (set(before), deletes) for key, before, deletes, version in rows if not version}
        for item in s3.versions(client, bucket) if unknown else ():
            before, deletes = unknown.get(item.name, (None, False))
            if before is not None and item.id not in before and item.is_marker == deletes:
                versions.append((item.name, item.id))
        return versions

    def _execute(self, statement: str, *values: object) -> None:
        with self._server.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(self._table), values or None)
