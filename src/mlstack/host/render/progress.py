"""The progress of a long command: a bar at a terminal, nothing in a file or a CI log (which get log lines)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


@contextmanager
def bar(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar of `total` bytes (None: unknown); yields a function to advance it."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<24}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal or total == 0) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)
        progress.update(task, total=progress.tasks[0].completed)  # full, also if the total was unknown
