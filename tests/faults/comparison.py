"""Acknowledged writes compared with what is stored."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Point = tuple[str, float, int, int]  # key, value, timestamp, step
KINDS = ("sync", "async", "artifact", "version", "alias")


@dataclass(frozen=True)
class Entry:
    """One call of the client."""

    kind: str
    number: int
    items: list[Any]
    outcome: str = "unanswered"  # or stored, failed
    answer: str = ""
    seconds: float = 0.0
    position: int = 0  # in the ledger, of its outcome
    at: float = 0.0  # time of the answer


@dataclass(frozen=True)
class Ledger:
    """All calls of one client."""

    run: str
    model: str
    prefix: str  # of its artifacts in the bucket
    pid: int
    entries: list[Entry]
    has_ended: bool
    length: int

    def stored(self, *kinds: str) -> Iterator[Entry]:
        return (entry for entry in self.entries if entry.outcome == "stored" and entry.kind in kinds)

    def rate(self, kind: str) -> float:
        """Acknowledged points a second, from the first answer on."""
        acknowledged = list(self.stored(kind))
        if len(acknowledged) < 2:
            return 0.0
        return sum(len(entry.items) for entry in acknowledged[1:]) / (
            max(entry.at for entry in acknowledged) - min(entry.at for entry in acknowledged)
        )

    def failed(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.outcome == "failed"]


def read(path: Path) -> Ledger:
    """The ledger as far as it is written. Raises ValueError when it has not been begun."""
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]  # the last line may be incomplete
    if not events:
        raise ValueError(f"{path} is empty")
    start, calls, has_ended = events[0], {}, False
    for position, event in enumerate(events):
        match event["event"]:
            case "tried":
                calls[event["number"]] = Entry(event["kind"], event["number"], event["items"])
            case "stored" | "failed" as outcome:
                tried = calls[event["number"]]
                answer = event["answer"] if outcome == "stored" else event["message"]
                calls[event["number"]] = Entry(
                    tried.kind, tried.number, tried.items, outcome, answer, event["seconds"], position, event["at"]
                )
            case "ended":
                has_ended = True
    prefix = start["artifacts"].removeprefix("mlflow-artifacts:/").lstrip("/") + "/"
    return Ledger(start["run"], start["model"], prefix, start["pid"], list(calls.values()), has_ended, len(events))


@dataclass(frozen=True)
class Verdict:
    """The comparison of one ledger with the stores. Everything but the counts has to be empty."""

    points: int = 0  # acknowledged
    artifacts: int = 0
    registry: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # artifacts whose content is not what was sent
    unknown: list[str] = field(default_factory=list)  # what no client wrote
    versions_again: list[str] = field(default_factory=list)  # registered twice by one call: its first answer was lost
    unanswered: int = 0  # points in flight that were neither acknowledged nor rejected
    unanswered_lost: int = 0  # of these, not stored

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.doubled or self.broken or self.unknown)


def compare(ledger: Ledger, stored: dict[str, Any]) -> Verdict:
    """Point by point and by checksum. What was tried and never acknowledged may be stored, but only completely."""
    lost, doubled, broken, unknown = [], [], [], []

    rows: list[Point] = [tuple(row) for row in stored["points"]]
    points_stored = set(rows)
    acknowledged = [tuple(point) for entry in ledger.stored("sync", "async") for point in entry.items]
    tried = {tuple(point) for entry in ledger.entries if entry.kind in ("sync", "async") for point in entry.items}
    lost += [f"point {point}" for point in acknowledged if point not in points_stored]
    doubled += [f"point {name}" for name, count in Counter((key, step) for key, _, _, step in rows).items() if count > 1]
    unknown += [f"point {point}" for point in points_stored - tried]
    newest: dict[str, Point] = {}
    for row in rows:
        newest[row[0]] = max(newest.get(row[0], row), row, key=lambda point: point[3])
    lost += [f"latest {row}" for row in newest.values() if list(row) not in [list(latest) for latest in stored["latest"]]]

    sent = {item["path"]: item["sha256"] for entry in ledger.entries if entry.kind == "artifact" for item in entry.items}
    files = [item for entry in ledger.stored("artifact") for item in entry.items]
    lost += [f"artifact {item['path']}" for item in files if item["path"] not in stored["artifacts"]]
    for path, checksum in stored["artifacts"].items():
        if path not in sent:
            unknown.append(f"artifact {path}")
        elif checksum != sent[path]:
            broken.append(f"artifact {path}")

    versions = [tuple(row) for row in stored["versions"]]
    registered = [(entry.items[0], entry.answer) for entry in ledger.stored("version")]
    lost += [f"version {version} of {tag}" for tag, version in registered if (tag, version) not in versions]
    again = [tag for tag, count in Counter(tag for tag, _ in versions).items() if count > 1]
    tags = {entry.items[0] for entry in ledger.entries if entry.kind == "version"}
    unknown += [f"version {version} of {tag}" for tag, version in versions if tag not in tags]
    aliases = [tuple(row) for row in stored["aliases"]]
    named = [tuple(entry.items[0]) for entry in ledger.stored("alias")]
    lost += [f"alias {alias} for {version}" for alias, version in named if (alias, version) not in aliases]

    open_points = [
        tuple(point)
        for entry in ledger.entries
        if entry.kind in ("sync", "async") and entry.outcome == "unanswered"
        for point in entry.items
    ]
    return Verdict(
        points=len(acknowledged),
        artifacts=len(files),
        registry=len(registered) + len(named),
        lost=lost,
        doubled=doubled,
        broken=broken,
        unknown=unknown,
        versions_again=again,
        unanswered=len(open_points),
        unanswered_lost=sum(point not in points_stored for point in open_points),
    )
