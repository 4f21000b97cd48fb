"""Runs in a one-shot: `python3 -m mlstack.jobs.gc ACTION`, with a request as JSON on stdin and the answer on stdout."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.jobs.gc import datasets, versions
from mlstack.logger import get_logger
from mlstack.s3 import client_for

log = get_logger("mlstack.gc")


def purge(request: Mapping[str, Any]) -> dict[str, int]:
    """Removes all versions of all objects in these folders of the bucket for artifacts and of that for data sets."""
    owner = settings.storage_owner()
    client = client_for(owner)
    removed = sum(versions.purge(client, owner.bucket, prefix) for prefix in request["prefixes"])
    return {"removed": removed + sum(datasets.purge(client, owner.datasets, folder) for folder in request["datasets"])}


def survey(request: Mapping[str, Any]) -> dict[str, Any]:
    """The content of both buckets, by folder, and the folders of data sets that are complete."""
    owner = settings.storage_owner()
    client, age = client_for(owner), timedelta(seconds=request["age"])
    changed = {bucket: frozenset(names) for bucket, names in request["changed"].items()}
    artifacts = versions.survey(client, owner.bucket, age, changed[owner.bucket])
    of_datasets = versions.survey(client, owner.datasets, age, changed[owner.datasets], datasets.folder_of)
    return {
        "artifacts": [asdict(folder) for folder in artifacts],
        "datasets": [asdict(folder) for folder in of_datasets],
        "complete": datasets.complete(client, owner.datasets),  # after the survey: a version may have become so meanwhile
    }


def aged(request: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """By bucket: name and id of the versions that were replaced or deleted longer ago than `age`, by their dates."""
    owner = settings.storage_owner()
    client, age = client_for(owner), timedelta(seconds=request["age"])
    return {bucket: [(version.name, version.id) for version in versions.aged(client, bucket, age)] for bucket in owner.buckets}


def remove(request: Mapping[str, Any]) -> dict[str, int]:
    """Removes these versions, given by bucket, name and id."""
    client = client_for(settings.storage_owner())
    return {"removed": sum(versions.remove(client, bucket, doomed) for bucket, doomed in request["versions"].items())}


def runs(request: Mapping[str, Any]) -> dict[str, int]:
    """Deletes these runs, models and experiments from MLflow's trash."""
    from mlstack.jobs.gc import runs as trash

    with redirect_stdout(sys.stderr):  # MLflow prints a line for each
        trash.delete(request["runs"], request.get("models", []), request.get("experiments", []))
    return {"removed": len(request["runs"])}


def traces(request: Mapping[str, Any]) -> dict[str, int]:
    """Deletes these traces, given by experiment and id."""
    from mlstack.jobs.gc import runs as rows

    with redirect_stdout(sys.stderr):
        return {"removed": rows.delete_traces(request["traces"])}


def archive(request: Mapping[str, Any]) -> dict[str, int]:
    """Moves the spans of these traces, given by id, from Postgres to the bucket."""
    from mlstack.jobs.gc import archive as archived

    with redirect_stdout(sys.stderr):
        return {"archived": archived.archive(request["traces"])}


ACTIONS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "survey": survey,
    "purge": purge,
    "aged": aged,
    "remove": remove,
    "runs": runs,
    "traces": traces,
    "archive": archive,
}


def main(action: str) -> int:
    try:
        answer = ACTIONS[action](json.load(sys.stdin))
    except MlstackError as error:
        log.error("%s %s Fix: %s", error.wrong, error.why, error.fix)  # noqa: TRY400 # no traceback for a user's error
        return 1
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
