"""The tables of docs/reliability.md, docs/scoring.md and docs/scale.md, generated from a run."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.experiment import Row
from tests.faults.faults import MATRIX
from tests.support.clone import ROOT
from tests.support.pages import END, begin, write_block

BEGIN = begin("make test-faults")
HEAD = (
    "fault", "what the client saw", "points / s before", "points stored", "artifacts", "registry writes",
    "lost", "registered twice", "never answered, not there", "recovery, s",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    numbers = (row.rate, row.points, row.artifacts, row.registry, row.lost, row.twice, row.unacknowledged, row.recovery)
    return tuple(str(cell).replace("|", "¦") for cell in (row.fault, row.saw, *numbers))


def write(path: Path, rows: list[Row]) -> None:
    """Puts the rows between the page's marks; faults that were not run keep theirs. Raises ValueError without marks."""
    put(path, HEAD, [cells(row) for row in rows], [fault.name for fault in MATRIX])


def put(path: Path, head: Sequence[str], rows: Iterable[Sequence[str]], order: Iterable[str]) -> None:
    """The same for any table whose first column names the fault. Raises ValueError without marks."""
    shown = {row[0]: row for row in (*rows_of(path), *rows)}
    lines = [head, ["---"] * len(head), *(shown[fault] for fault in order if fault in shown)]
    write_block(path, BEGIN, "\n".join(f"| {' | '.join(line)} |" for line in lines))


@contextmanager
def collected(config: pytest.Config, page: str, head: Sequence[str], order: Iterable[str]) -> Iterator[list[Any]]:
    """Rows that have `cells`: what the faults did, in their order. With --report they are put into the page at the end."""
    rows: list[Any] = []
    yield rows
    if config.getoption("--report"):
        put(ROOT / page, head, [row.cells for row in rows], order)


def rows_of(path: Path) -> list[list[str]]:
    """The cells of the table that a page has, without its head."""
    text = path.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    lines = [line.strip().strip("|") for line in text.strip().splitlines()[2:]]
    return [[cell.strip() for cell in line.split("|")] for line in lines]
