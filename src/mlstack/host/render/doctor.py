"""What `make doctor` shows."""

import json
from collections import Counter
from collections.abc import Sequence

from rich.markup import escape

from mlstack.host.doctor.check import Result, State

_MARKS = {State.OK: "[green]✓[/]", State.DOUBTFUL: "[yellow]![/]", State.FAILED: "[red]✗[/]"}


def line(result: Result) -> str | None:
    """A check's line, with cause and fix where it is not well; None for one that was not asked."""
    if result.state is State.NOT_CHECKED:
        return None
    text = f"  {_MARKS[result.state]} {escape(result.name)}"
    if result.state is State.OK:
        return text + (f"  [dim]{escape(result.note)}[/]" if result.note else "")
    return f"{text}\n      {escape(result.cause)}\n      {escape(result.why)}\n      Fix: [bold]{escape(result.fix)}[/]"


def end(results: Sequence[Result]) -> str:
    """The last words: what was not asked and for which cause, and the sum."""
    unasked = Counter((result.cause, result.fix) for result in results if result.state is State.NOT_CHECKED)
    lines = [f"  [dim]– {count} not checked: {escape(cause)}[/]" for (cause, _), count in unasked.items()]
    count = Counter(result.state for result in results)
    failed, doubtful = count[State.FAILED], count[State.DOUBTFUL]
    doubt = f", {doubtful} to look at" if doubtful else ""
    if failed:
        lines.append(f"\n[red]{failed} of {len(results)} checks failed[/]{doubt}. Mend the first one first.")
    else:
        lines.append(f"\n[green]All {len(results)} checks passed[/]{doubt}.")
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> str:
    """For scripts."""
    checks = [
        {"reach": r.reach, "name": r.name, "state": r.state.value, "note": r.note, "cause": r.cause, "why": r.why, "fix": r.fix}
        for r in results
    ]
    return json.dumps({"is_well": all(result.ok for result in results), "checks": checks}, indent=2)
