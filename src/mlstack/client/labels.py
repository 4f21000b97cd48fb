"""Labels: what turned out to be true for a decision, with the time at which it was known.

from mlstack import labels
labels.put("019ac9…", 1.5, known_at="2026-11-28T12:00Z")
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mlstack.client.decisions import time_text
from mlstack.client.scoring import call

_PAGE = 10_000


@dataclass(frozen=True)
class Label:
    """A label of the row `row` of a request. `decision` is the header X-Mlstack-Decision of its answer."""

    decision: str
    value: Any
    known_at: Any
    row: int = 0


def put(decision: str, value: Any, known_at: Any, *, row: int = 0) -> bool:
    """Adds a label; False if it was there. A correction is another label, known later. Raises MlstackError."""
    return put_many([Label(str(decision), value, known_at, row)]) == 1


def put_many(labels: Iterable[Label]) -> int:
    """Adds labels and returns how many are new; the same call can be repeated. Raises MlstackError."""
    bodies = [
        {"request": label.decision, "row": label.row, "value": label.value, "known_at": time_text(label.known_at)}
        for label in labels
    ]
    pages = (bodies[start : start + _PAGE] for start in range(0, len(bodies), _PAGE))
    return sum(call("POST", "/labels", body={"labels": page})["added"] for page in pages)
