"""`make bench`: the shipped stack beside MLflow at its defaults and the raw limits, alternately."""

import json
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from benchmarks import growth, report, scoring
from benchmarks.figures import DEFAULTS, MLSTACK, RAW, Figure, Line
from benchmarks.lines import (
    FRAME,
    IMAGES,
    IN_CLIENTS,
    MEMORY,
    OF_MACHINE,
    QUICK,
    Bench,
    Measurement,
    Size,
    chosen,
    described,
    memory,
)
from benchmarks.stacks import HERE, booted
from mlstack.errors import MlstackError
from tests.support.pages import write_block

ROOT = HERE.parent
NAMES = [
    *(measurement.name for measurement in IN_CLIENTS),
    "memory",
    *(measurement.name for measurement in OF_MACHINE),
    "growth",
    "scoring",
]
INTERRUPTED = 130
err = Console(stderr=True, highlight=False)
begun = time.monotonic()


def say(what: str) -> None:
    err.print(f"[dim]{time.monotonic() - begun:6.0f} s[/]  {escape(what)}")


class Record:
    """All figures so far."""

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}

    def expect(self, lines: tuple[Line, ...]) -> None:
        for line in lines:
            self.figures.setdefault(line.key, Figure(line))

    def add(self, side: str, values: Any) -> None:
        for key, value in values.items():
            self.figures[key].values[side].append(value)


def measure(bench: Bench, record: Record, measurement: Measurement) -> None:
    """Each repetition measures all sides, starting with another one, so that disturbances of the host affect all."""
    record.expect(measurement.lines)
    sides = deque([DEFAULTS, MLSTACK, RAW] if measurement.of_raw else [DEFAULTS, MLSTACK])
    for _ in range(bench.size.repetitions):
        for side in sides:
            if side == RAW:
                assert measurement.of_raw
                values = measurement.of_raw(bench, bench.clients[DEFAULTS])
            else:
                values = measurement.of_stack(bench, bench.stacks[side], bench.clients.get(side))  # type: ignore[arg-type]
            record.add(side, values)
            say(f"{measurement.name}: {side}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
        sides.rotate(-1)


def open_clients(bench: Bench, opened: ExitStack) -> dict[str, Any]:
    """A client of each stack, connected once. Raises MlstackError when the client of the defaults is not MLflow's own."""
    bench.clients = {side: opened.enter_context(stack.client()) for side, stack in bench.stacks.items()}
    greetings = {side: client.ask("hello") for side, client in bench.clients.items()}
    if greetings[DEFAULTS]["store"].startswith("mlstack"):
        raise MlstackError(
            "the client of the defaults uses our plugin.", "It would not be a comparison.", "look at benchmarks/reference.yml"
        )
    return greetings


def measure_frames(bench: Bench, record: Record) -> None:
    record.expect((FRAME,))
    runs = bench.size.runs
    cells = bench.clients[MLSTACK].ask("frames_are_equal", name=growth.EXPERIMENT, runs=runs)["cells"]
    say(f"frame: {cells:,} cells are equal to those of mlflow.search_runs")
    for _ in range(bench.size.repetitions):
        record.add(MLSTACK, {"frame": bench.clients[MLSTACK].ask("frame_by_reader", name=growth.EXPERIMENT)["time"]})
    record.add(DEFAULTS, {"frame": bench.clients[DEFAULTS].ask("frame_by_search", name=growth.EXPERIMENT, runs=runs)["time"]})


def run(size: Size, names: list[str], log: Path) -> tuple[dict[str, Any], Record, list[growth.Point], dict[str, bytes]]:
    """Measures everything, on its own stacks."""
    record, points = Record(), []
    wanted = set(names) or set(NAMES)
    say("starting both stacks")
    with booted(log) as (reference, shipped, password), ExitStack() as opened:
        bench = Bench(size, {DEFAULTS: reference, MLSTACK: shipped}, {}, password)
        facts: dict[str, Any] = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": subprocess.run(
                ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
            ).stdout.strip(),
            "stack": shipped.name,
            "machine": report.machine(),
            "size": described(size),
            "images": report.images(shipped),
        }
        with ExitStack() as clients:
            greetings = open_clients(bench, clients)
            facts |= {"mlflow": greetings[MLSTACK]["mlflow"], "clients": greetings}
            if "memory" in wanted:
                measure_memory(bench, record)
            for measurement in chosen(wanted, IN_CLIENTS):
                measure(bench, record, measurement)
        bench.clients = {}
        for measurement in chosen(wanted, OF_MACHINE):
            measure(bench, record, measurement)
        if "growth" in wanted:
            open_clients(bench, opened)
            points = growth.grow(bench, lambda runs: measure_frames(bench, record) if runs == size.runs else None, say)
            facts["growth"] = growth.recorded(points)
            facts["plans"] = {side: growth.plans(stack, bench.clients[side]) for side, stack in bench.stacks.items()}
        if "scoring" in wanted:
            open_clients(bench, opened)
            measure_scoring(bench, record)
        record.expect((IMAGES,))
        record.add(MLSTACK, {"images": facts["images"]["together"]})
        facts["lines"] = report.lines([*record.figures.values()])
        facts["seconds"] = time.monotonic() - begun
        return facts, record, points, report.draw(shipped, [*record.figures.values()], points)


def measure_scoring(bench: Bench, record: Record) -> None:
    """The part `scoring` beside MLflow's own scoring server, both only while they are measured."""
    say("scoring: starting both servers")
    with scoring.scorers(bench) as servers:
        *before, after = scoring.measurements(bench, servers)
        for measurement in before:
            measure(bench, record, measurement)
        measure(bench, record, scoring.of_entities(bench, servers))
        measure(replace(bench, size=replace(bench.size, repetitions=1)), record, scoring.swaps(bench, servers))
        scoring.log_after(bench.stacks[MLSTACK], servers[MLSTACK])
        measure(bench, record, after)


def measure_memory(bench: Bench, record: Record) -> None:
    """After a pause and one call to each, so that lazily loaded code is loaded."""
    record.expect(MEMORY)
    say(f"memory: {bench.size.rest:.0f} s of rest")
    time.sleep(bench.size.rest)
    for side, stack in bench.stacks.items():
        values = memory(stack)
        record.add(side, values)
        say(f"memory: {side}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: whether it works, not how fast it is.")] = False,
    repetitions: Annotated[int | None, typer.Option(min=1, help="Of each line and side.")] = None,
    lines: Annotated[str, typer.Option(help=f"Only these, by commas: {', '.join(NAMES)}")] = "",
    results: Annotated[Path, typer.Option(help="The folder for the table as JSON, the pictures and the clients' log.")] = HERE
    / "results",
    docs: Annotated[
        Path | None,
        typer.Option("--report", help="The folder of the pages whose generated blocks are written again."),
    ] = None,
) -> None:
    size = QUICK if quick else Size()
    size = replace(size, repetitions=repetitions or size.repetitions)
    names = [name for name in lines.split(",") if name]
    if unknown := set(names) - set(NAMES):
        raise MlstackError(
            f"there is no line {', '.join(sorted(unknown))}.", "Nothing was measured.", f"choose from {', '.join(NAMES)}"
        )
    results.mkdir(parents=True, exist_ok=True)
    log = results / "clients.log"
    log.write_text("")
    facts, record, points, pictures = run(size, names, log)
    figures = [*record.figures.values()]
    (results / "benchmark.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, picture in pictures.items():
        (results / f"{name}.png").write_bytes(picture)
    report.show(Console(), figures)
    err.print(f"Everything is in {results}/; it took {facts['seconds'] / 60:.1f} minutes.")
    if docs and (of_scoring := [figure for figure in figures if figure.line.key.startswith(scoring.PREFIX)]):
        write_block(docs / "scoring.md", report.BEGIN, report.measured(facts, of_scoring))
        figures = [figure for figure in figures if figure not in of_scoring]
    if docs and names != ["scoring"]:
        write_block(docs / "performance.md", report.BEGIN, report.markdown(facts, figures, points))
        for name, picture in pictures.items():
            (docs / "images" / f"{name}.png").write_bytes(picture)


def explained() -> int:
    """Runs the command; every error is shown as what is wrong, why it matters and what fixes it."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    code = 1
    try:
        code = int(app(standalone_mode=False) or 0)
    except MlstackError as error:
        err.print(f"[bold red]bench:[/] {escape(str(error))}", soft_wrap=True)
    except typer.TyperException as error:
        err.print(f"[bold red]bench:[/] {escape(error.message)}")
        code = error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    if code == INTERRUPTED:
        err.print("\nStopped. Nothing is broken: what it had started is removed.")
    return code


if __name__ == "__main__":
    sys.exit(explained())
