"""Runs in a one-shot: `python3 -m mlstack.jobs.importing ACTION`; prints what could not be read, as a JSON list."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path

# Both are mounted, the source for reading only.
SOURCE = Path("/source")
STAGING = Path("/staging")
DATABASE = STAGING / "rows.db"
TRACES = STAGING / "traces.jsonl"


def upgrade() -> list[str]:
    """Migrates the database, or makes an empty one."""
    from mlflow.db import upgrade

    upgrade.main([f"sqlite:///{DATABASE}"], standalone_mode=False)
    return []


def files() -> list[str]:
    """Reads the folder of a file store into a new database."""
    from mlstack.jobs.importing import file_store

    return [*upgrade(), *file_store.read(SOURCE, DATABASE)]


def traces() -> list[str]:
    """Adds the traces that were read from a server."""
    from mlstack.jobs.importing import traces

    return traces.add(TRACES, DATABASE)


ACTIONS: Mapping[str, Callable[[], list[str]]] = {"upgrade": upgrade, "files": files, "traces": traces}


def main(action: str) -> int:
    with redirect_stdout(sys.stderr):  # MLflow prints what it does
        problems = ACTIONS[action]()
    json.dump(problems, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
