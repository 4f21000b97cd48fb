"""The decision log as a table: what the scoring service answered, to whom, with which version and policy.

    from mlstack import decisions
    decisions.table(model="delays", since="2026-11-01")

The column `label` has what became known later (`mlstack.labels`).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mlstack.client.scoring import call

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "time", "request", "row", "model", "version", "role", "policy_version", "client", "entity", "features", "score",
    "lower_bound", "upper_bound", "decision", "latency_ms", "deployment", "label", "label_known_at",
)  # fmt: skip
_TIMES = ("time", "label_known_at")


def table(
    model: str | None = None,
    *,
    since: Any = None,
    until: Any = None,
    entity: str | None = None,
    version: str | None = None,
    role: str | None = None,
    request: str | None = None,
) -> "pd.DataFrame":
    """The decisions that fit all that is given, the oldest first: one row for each scored row. Times are in UTC.

    `since` and `until` are anything that pandas.Timestamp takes; `request` is the header X-Mlstack-Decision of an answer.
    Raises MlstackError if the scoring service does not answer.
    """
    import pandas as pd

    filters = {
        "model": model, "version": version, "role": role, "entity": entity, "request": request,
        "since": time_text(since), "until": time_text(until),
    }  # fmt: skip
    frame = pd.DataFrame(list(_rows(filters)), columns=list(COLUMNS))
    for name in _TIMES:
        frame[name] = pd.to_datetime(frame[name], utc=True, format="ISO8601")
    return frame


def time_text(time: Any) -> str | None:
    """A time as the service reads it; one without a time zone is in UTC."""
    import pandas as pd

    if time is None:
        return None
    stamp = pd.Timestamp(time)
    return str((stamp.tz_localize("UTC") if stamp.tz is None else stamp).isoformat())


def _rows(filters: dict[str, str | None]) -> Iterator[dict[str, Any]]:
    place: dict[str, str] = {}
    while True:
        page = call("GET", "/decisions", **filters, **place)
        yield from page["decisions"]
        if page["is_last"]:
            return
        last = page["decisions"][-1]
        place = {f"after_{name}": str(last[name]) for name in ("time", "request", "row", "role")}
