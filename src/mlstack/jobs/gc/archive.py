"""Moves the spans of traces from Postgres to the bucket with MLflow's own archival, trace by trace: exactly what was confirmed.

MLflow's server reads them there. Its archival as a whole (`archive_traces`) would also follow tags that any account may set.
"""

import os
from collections.abc import Iterable
from functools import partial
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

from minio import Minio

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.s3 import client_for


class Bucket:
    """What MLflow's archival needs of a repository of artifacts: one of its folders, by URI."""

    def __init__(self, client: Minio, uri: str) -> None:
        self._client = client
        self._bucket, self._folder = urlsplit(uri).netloc, urlsplit(uri).path.lstrip("/")

    def upload_archived_trace_data_bytes(self, data: bytes) -> None:
        from mlflow.tracing.otel.otel_archival import TRACE_ARCHIVAL_FILENAME as NAME

        self._client.put_object(self._bucket, f"{self._folder}/{NAME}", BytesIO(data), len(data))

    def delete_artifacts(self, path: str) -> None:
        self._client.remove_object(self._bucket, f"{self._folder}/{path}")


def archive(traces: Iterable[str]) -> int:
    """Archives traces by id. Returns how many; one that has changed meanwhile, or is gone, is left as it is.

    Raises MlstackError when the bucket takes no more.
    """
    settings.publish(_for_libpq(settings.tracking_login()))
    from mlflow.exceptions import MlflowException
    from mlflow.server.handlers import _get_tracking_store
    from mlflow.store.tracking import sqlalchemy_store

    from mlstack.jobs.bootstrap.mlflow import URI

    keys = settings.tracking_keys()
    client = client_for(keys)
    stores: Any = sqlalchemy_store
    stores.get_artifact_repository = partial(Bucket, client)
    store: Any = _get_tracking_store(URI, os.curdir)
    count = 0
    for trace in traces:
        try:
            count += store._archive_trace_candidate(trace_id=trace, resolved_trace_archival_location=f"s3://{keys.bucket}")
        except MlflowException as error:
            raise MlstackError(
                f"the spans of {trace} could not be archived: {error.__cause__ or error}",
                "They stay in Postgres; those that were archived before it are in the bucket.",
                "free space, or raise MINIO_BUCKET_QUOTA, then make gc again; make logs SERVICE=minio",
            ) from error
    return count


def _for_libpq(login: settings.Login) -> dict[str, str]:
    """MLflow's login, which libpq takes from the environment; this one-shot has that of the database's owner too."""
    return {
        "PGHOST": login.host,
        "PGPORT": str(login.port),
        "PGUSER": login.user,
        "PGPASSWORD": login.password,
        "PGDATABASE": login.database,
    }
