"""The generated part of docs/conformance.md: what was compared, and what differs on purpose."""

from collections import Counter
from pathlib import Path

from tests.conformance.deliberate import EVERY
from tests.support.pages import END, begin, write_block

BEGIN = begin("make test-conformance")
MIDDLE = "## Different on purpose"


def deliberate() -> str:
    """The table of deliberate differences."""
    rows = [("what", "here", "in MLflow 3.17.2", "why"), ("---",) * 4]
    rows += [(known.name, known.ours, known.genuine, known.reason) for known in EVERY]
    return "\n".join(f"| {' | '.join(cell.replace('|', '¦') for cell in row)} |" for row in rows)


def compared(seed: int, answers: Counter[str], runs: Counter[str]) -> str:
    """The table of what one run of the tests compared."""
    areas = sorted(answers.keys() | runs.keys())
    rows = [("area", "answers", "runs with all their rows"), ("---", "---:", "---:")]
    rows += [(area, f"{answers[area]:,}", f"{runs[area]:,}") for area in areas]
    rows.append(("together", f"{answers.total():,}", f"{runs.total():,}"))
    return f"Compared with seed {seed}:\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write(path: Path, seed: int, answers: Counter[str], runs: Counter[str]) -> None:
    """Replaces the generated part. Raises ValueError for a page without its marks."""
    write_block(path, BEGIN, "\n\n".join((compared(seed, answers, runs), MIDDLE, deliberate())))


def deliberate_of(path: Path) -> str:
    """The table of deliberate differences that a page shows."""
    return path.read_text(encoding="utf-8").partition(MIDDLE)[2].partition(END)[0].strip()
