"""Logging and searching with a growing number of runs: both databases are filled with the same rows, as MLflow writes them."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import log
from statistics import median
from typing import Any

from benchmarks.lines import Bench
from benchmarks.stacks import Client, Stack
from mlstack.errors import MlstackError

EXPERIMENT = "benchmark-growth"
# Without triggers, as pg_restore does: the rows are consistent. Both databases get the same values.
ROWS = """
SET session_replication_role = replica;
CREATE TEMP VIEW added AS SELECT i, md5('run' || i) AS run FROM generate_series({first}, {last}) AS i;
CREATE TEMP VIEW points AS
  SELECT run, 'm' || k AS key, ('x' || substr(md5(i || '-' || k), 1, 8))::bit(32)::bigint / 4294967296.0 AS value,
         1760000000000 + i AS timestamp
  FROM added, generate_series(0, {keys} - 1) AS k;
INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time,
                  source_version, lifecycle_stage, artifact_uri, experiment_id)
  SELECT run, 'run-' || i, 'UNKNOWN', '', '', 'ada', 'FINISHED', 1760000000000 + i * 1000, 1760000000500 + i * 1000,
         '', 'active', '{location}/' || run || '/artifacts', {experiment}
  FROM added;
INSERT INTO tags (run_uuid, key, value)
  SELECT run, tag.key, tag.value
  FROM added, LATERAL (VALUES ('mlflow.runName', 'run-' || i), ('mlflow.user', 'ada'),
                              ('mlflow.source.name', 'train.py'), ('mlflow.source.type', 'LOCAL')) AS tag(key, value);
INSERT INTO metrics (run_uuid, key, value, timestamp, step, is_nan) SELECT run, key, value, timestamp, 0, false FROM points;
INSERT INTO latest_metrics (run_uuid, key, value, timestamp, step, is_nan)
  SELECT run, key, value, timestamp, 0, false FROM points;
INSERT INTO params (run_uuid, key, value)
  SELECT run, 'p' || k, substr(md5(i || '+' || k), 1, 8) FROM added, generate_series(0, {keys} - 1) AS k;
RESET session_replication_role;
ANALYZE runs, tags, metrics, latest_metrics, params;
"""


@dataclass(frozen=True)
class Point:
    """One stack at one size: medians of logging and searching."""

    side: str
    runs: int
    rate: float
    """log_metric in a loop, flushed: calls a second."""
    latency: float
    """Of a synchronous log_metric, seconds."""
    search: float
    """The first hundred of the runs that a metric selects, ordered by another: seconds."""


def grow(bench: Bench, at_size: Callable[[int], None], say: Callable[[str], None]) -> list[Point]:
    """A point for each stack at each size; `at_size` can measure more at that size."""
    places = {side: client.ask("experiment", name=EXPERIMENT) for side, client in bench.clients.items()}
    points, filled = [], 0
    for runs in bench.size.growth:
        for side, stack in bench.stacks.items():
            say(f"growth: {runs:,} runs into the database of {side}")
            stack.sql(
                ROWS.format(
                    first=filled + 1,
                    last=runs,
                    keys=bench.size.keys,
                    location=places[side]["location"],
                    experiment=places[side]["id"],
                )
            )
        filled = runs
        points += _measure(bench, runs)
        at_size(runs)
    return points


def _measure(bench: Bench, runs: int) -> list[Point]:
    by_side: dict[str, list[Point]] = {side: [] for side in bench.stacks}
    answers = set()
    for _ in range(bench.size.repetitions):
        for side, stack in bench.stacks.items():
            client = bench.clients[side]
            calls = bench.of(stack, bench.size.points // 5, bench.size.points_of_defaults // 5)
            rate = calls / client.ask("loop", calls=calls)["total"]
            latency = median(client.ask("synchronous", clients=1, calls=max(2, bench.size.calls // 4))["latencies"])
            searched = client.ask("search", name=EXPERIMENT, searches=bench.size.searches)
            answers.add(tuple(searched["run_ids"]))
            by_side[side].append(Point(side, runs, rate, latency, median(searched["times"])))
    if len(answers) != 1:
        raise MlstackError(
            "the stacks find different runs.", "They hold the same, so one of them is wrong.", "open both databases"
        )
    return [
        Point(side, runs, *(median(getattr(point, name) for point in several) for name in ("rate", "latency", "search")))
        for side, several in by_side.items()
    ]


def plans(stack: Stack, client: Client) -> str:
    """Postgres' plan for that search: the last statement with its plan, as auto_explain logs it."""
    # auto_explain's settings exist only where it is loaded.
    stack.sql(
        "LOAD 'auto_explain'; ALTER SYSTEM SET session_preload_libraries = 'auto_explain';"
        "ALTER SYSTEM SET auto_explain.log_min_duration = 0; ALTER SYSTEM SET auto_explain.log_analyze = on;"
    )
    _renew_connections(stack)
    try:
        client.ask("search", name=EXPERIMENT, searches=1)
    finally:
        stack.sql(
            "LOAD 'auto_explain'; ALTER SYSTEM RESET session_preload_libraries;"
            "ALTER SYSTEM RESET auto_explain.log_min_duration; ALTER SYSTEM RESET auto_explain.log_analyze;"
        )
        _renew_connections(stack)
    written = subprocess.run(
        ["docker", "logs", stack.container("postgres")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    return _plan_in(written.stdout)


def _renew_connections(stack: Stack) -> None:
    stack.sql(
        "SELECT pg_reload_conf(); SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )


def _plan_in(log: str) -> str:
    """The last plan of a search that orders by a metric."""
    entries = re.split(r"^(?=\d{4}-\d\d-\d\d )", log, flags=re.MULTILINE)
    plans_of_search = [entry for entry in entries if " plan:" in entry and "latest_metrics" in entry and "ORDER BY" in entry]
    return plans_of_search[-1].partition("plan:\n")[2] if plans_of_search else ""


def slope(points: list[Point], side: str, name: str) -> list[float]:
    """The exponents between neighbouring sizes: 1 is linear, 0 is independent of how many runs there are."""
    own = sorted((point for point in points if point.side == side), key=lambda point: point.runs)
    return [log(getattr(after, name) / getattr(before, name)) / log(after.runs / before.runs) for before, after in pairwise(own)]


def recorded(points: list[Point]) -> list[dict[str, Any]]:
    return [vars(point) for point in points]
