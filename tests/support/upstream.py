"""The committed fingerprints of what the stack uses of MLflow and uvicorn beyond their public API."""

import json
import os
from pathlib import Path

from tests.support import fingerprints
from tests.support.clone import ROOT

PROGRAM = Path(fingerprints.__file__).read_text()


def compare(room: str, output: str) -> None:
    """Fails for fingerprints that differ from the committed ones; with REPORT=1, commits to them instead."""
    current: dict[str, str] = json.loads(output.splitlines()[-1])
    table = ROOT / "tests" / "upstream" / f"{room}.json"
    if os.environ.get("REPORT"):
        table.write_text(json.dumps(current, indent=4) + "\n")
    known: dict[str, str] = json.loads(table.read_text())
    changed = sorted(name for name in known.keys() | current.keys() if known.get(name) != current.get(name))
    assert not changed, (
        f"{len(changed)} names that src/mlstack/{room} uses are not what was read when they were taken into use."
        f" docs/upgrading-mlflow.md says what to do. Read again:\n" + "\n".join(changed)
    )
