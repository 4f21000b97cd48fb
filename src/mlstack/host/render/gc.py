"""What `make gc` shows before it asks."""

from collections.abc import Sequence

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from mlstack.errors import quoted
from mlstack.host.commands.gc import Plan
from mlstack.host.render import size

SHOWN = 10  # names of a list


def screen(plan: Plan, age: str) -> Group:
    """What would be deleted, and what is kept."""
    table = Table("what", "number", "size", title=f"make gc deletes what is older than {age}", title_justify="left")
    parts = (
        ("deleted runs, with their files", len(plan.runs), None),
        ("deleted models, with their files", len(plan.models), None),
        ("deleted experiments", len(plan.experiments), None),
        ("traces older than TRACE_RETENTION", len(plan.traces), None),
        ("traces older than TRACE_ARCHIVE: spans move to the bucket", len(plan.archive), None),
        ("files of those runs, models and traces (folders)", len(plan.folders), plan.folders_size),
        ("versions of files that were replaced or deleted", plan.expired, plan.expired_size),
        ("folders of no run, model or trace", len(plan.orphans), sum(folder.size + folder.old_size for folder in plan.orphans)),
        (
            "versions of data sets that are deleted or incomplete",
            len(plan.datasets),
            sum(folder.size + folder.old_size for folder in plan.datasets),
        ),
        (
            "images that newer ones have replaced (layers may be shared)",
            len(plan.images),
            sum(image.size for image in plan.images),
        ),
    )
    for label, number, count in parts:
        if number:
            table.add_row(label, str(number), "" if count is None else size(count))
    lines = [
        *_listed("folders of no run, model or trace:", [orphan.name for orphan in plan.orphans]),
        *_listed("versions of data sets that are deleted or incomplete:", [folder.name for folder in plan.datasets]),
        *_listed("in the trash and kept, because a registered model uses their files:", plan.kept),
        *_listed("rows whose files are missing (make restore, or delete the row in MLflow):", plan.missing),
        *_counted(plan.young, "folders of no run, model, trace or data set are too young to judge: an upload may be under way."),
        *_counted(plan.foreign, "objects are none of MLflow's: they stay."),
        "Docker's build cache is shared by all projects, so it stays: docker builder prune empties it.",
    ]
    head = "Nothing to delete." if plan.is_empty else table
    return Group(head, *lines)


def _counted(count: int, label: str) -> list[str]:
    return [f"{count} {label}"] if count else []


def _listed(title: str, names: Sequence[str]) -> list[str]:
    shown = [f"  {escape(quoted(name))}" for name in names[:SHOWN]]
    rest = [f"  and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return [title, *shown, *rest] if names else []
