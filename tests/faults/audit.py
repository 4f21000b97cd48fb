"""What is stored of a run, read directly from Postgres and MinIO. Runs in the bootstrap's container, which has the logins.

python3 audit.py RUN MODEL PREFIX [forget]: prints one JSON object; `forget` deletes the run's objects afterwards.
"""

import hashlib
import json
import sys
from typing import Any

import psycopg2
from minio import Minio
from minio.deleteobjects import DeleteObject

from mlstack import settings


def rows(statement: str, *values: str) -> list[Any]:
    owner = settings.database_owner()
    connection = psycopg2.connect(host=owner.host, user=owner.user, password=owner.password, dbname=owner.database)
    with connection, connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall()


def checksum(storage: Minio, bucket: str, name: str) -> str:
    digest = hashlib.sha256()
    response = storage.get_object(bucket, name)
    for chunk in response.stream(1024**2):
        digest.update(chunk)
    response.close()
    return digest.hexdigest()


def main(run: str, model: str, prefix: str, *forget: str) -> None:
    keys = settings.storage_owner()
    storage = Minio(keys.endpoint, access_key=keys.access_key, secret_key=keys.secret_key, secure=False)
    bucket = keys.bucket
    names = [item.object_name for item in storage.list_objects(bucket, prefix, recursive=True)]
    stored = {
        "points": rows("SELECT key, value, timestamp, step FROM metrics WHERE run_uuid = %s", run),
        "latest": rows("SELECT key, value, timestamp, step FROM latest_metrics WHERE run_uuid = %s", run),
        "artifacts": {name.removeprefix(prefix): checksum(storage, bucket, name) for name in names},
        "versions": rows(
            "SELECT t.value, t.version::text FROM model_version_tags t JOIN model_versions v USING (name, version)"
            " WHERE name = %s AND t.key = 'ledger'",
            model,
        ),
        "aliases": rows("SELECT alias, version::text FROM registered_model_aliases WHERE name = %s", model),
    }
    if forget:
        versions = storage.list_objects(bucket, prefix, recursive=True, include_version=True)
        for error in storage.remove_objects(bucket, (DeleteObject(item.object_name, item.version_id) for item in versions)):
            raise RuntimeError(str(error))
    print(json.dumps(stored))  # noqa: T201 # the answer


if __name__ == "__main__":
    main(*sys.argv[1:])
