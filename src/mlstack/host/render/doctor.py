"""What `make doctor` shows."""

import json
from collections import Counter
from collections.abc import Sequence

from rich.markup import escape

from mlstack.host.doctor.check import Result, State

_MARKS = {State.OK: "[green]✓[/]", State.WARNING: "[yellow]![/]", State.FAILED: "[red]✗[/]"}


def line(result: Result) -> str | None:
    """A check's line, with cause and fix if it did not pass; None for one that did not run."""
    if result.state is State.NOT_CHECKED:
        return None
    text = f"  {_MARKS[result.state]} {escape(result.name)}"
    if result.state is State.OK:
        return text + (f"  [dim]{escape(result.note)}[/]" if result.note else "")
    return f"{text}\n      {escape(result.cause)}\n      {escape(result.why)}\n      Fix: [bold]{escape(result.fix)}[/]"


def end(results: Sequence[Result]) -> str:
    """The last lines: checks that did not run with their cause, and the totals."""
    skipped = Counter((result.cause, result.fix) for result in results if result.state is State.NOT_CHECKED)
    lines = [f"  [dim]– {count} not checked: {escape(cause)}[/]" for (cause, _), count in skipped.items()]
    count = Counter(result.state for result in results)
    failed, warnings = count[State.FAILED], count[State.WARNING]
    to_look_at = f", {warnings} to look at" if warnings else ""
    if failed:
        lines.append(f"\n[red]{failed} of {len(results)} checks failed[/]{to_look_at}. Fix the first one first.")
    else:
        lines.append(f"\n[green]All {len(results)} checks passed[/]{to_look_at}.")
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> str:
    """For scripts."""
    checks = [
        {"reach": r.reach, "name": r.name, "state": r.state.value, "note": r.note, "cause": r.cause, "why": r.why, "fix": r.fix}
        for r in results
    ]
    return json.dumps({"is_healthy": all(result.ok for result in results), "checks": checks}, indent=2)
