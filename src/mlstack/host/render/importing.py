"""What `make import` shows before it asks, and at its end."""

from collections.abc import Sequence

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from mlstack.errors import quoted
from mlstack.host.commands.importing import COUNTED, Plan, Report
from mlstack.host.render import size

SHOWN = 20  # problems; all are in the log file

LEFT_OUT = "Never imported: evaluation datasets, scorers, webhooks, gateway endpoints, reviews, issues and accounts."


def screen(plan: Plan) -> Group:
    """What would be imported, and what cannot be read."""
    table = Table("what", "number", "size", title="make import adds what the stack lacks of", title_justify="left")
    for name, label in COUNTED.items():
        if count := plan.counts[name]:
            table.add_row(label, f"{count:,}", "")
    table.add_row("files", f"{len(plan.files):,}", size(plan.size))
    return Group(table, LEFT_OUT, *_listed("cannot be read, and is left out:", plan.problems))


def comparison(report: Report) -> Group:
    """The source beside the stack."""
    table = Table("what", "in the source", "in the stack", "checksum", title="the source and the stack", title_justify="left")
    for item in report.compared:
        if item.expected:
            sums = (item.expected_checksum, item.stored_checksum)
            checksum, style = (sums[0], None) if item.is_equal else (" is not ".join(sums), "red")
            table.add_row(item.what.replace("_", " "), f"{item.expected:,}", f"{item.stored:,}", checksum, style=style)
    different = [
        f"{item.what.replace('_', ' ')}: {label}" for item in report.compared if not item.is_equal for label in item.differing
    ]
    return Group(
        table,
        *_listed("missing in the stack, or different there:", different),
        *_listed("not imported, because it cannot be read:", report.problems),
    )


def _listed(title: str, texts: Sequence[str]) -> list[str]:
    shown = [f"  {escape(quoted(text))}" for text in texts[:SHOWN]]
    rest = [f"  and {len(texts) - SHOWN} more, which are in the log file"] if len(texts) > SHOWN else []
    return [title, *shown, *rest] if texts else []
