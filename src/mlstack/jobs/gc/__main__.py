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
from mlstack.jobs.gc import versions
from mlstack.logger import get_logger
from mlstack.s3 import client_for

log = get_logger("mlstack.gc")


def purge(request: Mapping[str, Any]) -> dict[str, int]:
    """Removes all versions of all objects under these prefixes."""
    owner = settings.storage_owner()
    return {"removed": sum(versions.purge(client_for(owner), owner.bucket, prefix) for prefix in request["prefixes"])}


def survey(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The content of the bucket, by folder."""
    owner = settings.storage_owner()
    age, changed = timedelta(seconds=request["age"]), frozenset(request["changed"])
    return [asdict(folder) for folder in versions.survey(client_for(owner), owner.bucket, age, changed)]


def aged(request: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and id of the versions that were replaced or deleted longer ago than `age`, by their dates."""
    owner = settings.storage_owner()
    aged_versions = versions.aged(client_for(owner), owner.bucket, timedelta(seconds=request["age"]))
    return [(version.name, version.id) for version in aged_versions]


def remove(request: Mapping[str, Any]) -> dict[str, int]:
    """Removes these versions, given by name and id."""
    owner = settings.storage_owner()
    return {"removed": versions.remove(client_for(owner), owner.bucket, request["versions"])}


def runs(request: Mapping[str, Any]) -> dict[str, int]:
    """Deletes these runs, models and experiments from MLflow's trash."""
    from mlstack.jobs.gc import runs as trash

    with redirect_stdout(sys.stderr):  # MLflow prints a line for each
        trash.delete(request["runs"], request.get("models", []), request.get("experiments", []))
    return {"removed": len(request["runs"])}


ACTIONS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "survey": survey,
    "purge": purge,
    "aged": aged,
    "remove": remove,
    "runs": runs,
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
