"""The same programs with our client and our server, and with genuine MLflow's: the same is returned, raised and stored."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import programs
from tests.conformance.comparison import Comparison
from tests.conformance.deliberate import OF_CLIENT, OfClient
from tests.conformance.servers import Side, differences, normal

SOURCE = Path(programs.__file__).read_text(encoding="utf-8")
CASES = ("values", "calls", "runs", "artifacts", "runs_of_workers fork", "runs_of_workers spawn")
Ended = tuple[int, Any]


def ended(side: Side, *arguments: str) -> Ended:
    """How a program ended, and the JSON that it printed last."""
    done = side.run_program(SOURCE, *arguments)
    printed = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert printed, done.stderr
    return done.returncode, json.loads(printed[-1])


def stored(side: Side, runs: Sequence[str]) -> list[Any]:
    """What each run consists of, without what every run has of its own."""
    return [of_run(tables) for tables in side.rows(runs).values()]


def of_run(tables: Mapping[str, list[Any]]) -> Any:
    def points(table: str) -> list[Any]:
        return sorted(([row[name] for name in ("key", "step", "timestamp", "value", "is_nan")] for row in tables[table]), key=str)

    return {
        "run": {name: tables["runs"][0][name] for name in ("status", "lifecycle_stage")},
        "metrics": points("metrics"),
        "latest_metrics": points("latest_metrics"),
        "params": {row["key"]: row["value"] for row in tables["params"]},
        "tags": {row["key"]: row["value"] for row in tables["tags"] if not row["key"].startswith("mlflow.")},
    }


def compared(comparison: Comparison, program: str) -> dict[str, list[str]]:
    """The differences of each case of a program."""

    def cases(side: Side) -> dict[str, Any]:
        code, output = ended(side, *program.split())
        assert code == 0
        results: dict[str, Any] = output["cases"]
        for case, rows in zip(results.values(), stored(side, [case["run_id"] for case in results.values()]), strict=True):
            case["stored"] = rows
            if program == "artifacts":
                case["objects"] = side.objects(case["run_id"])
        return results

    ours, genuine = comparison.pair.both(cases)
    assert ours.keys() == genuine.keys()
    comparison.runs[f"the client: {program.split(maxsplit=1)[0]}"] += len(ours)
    return {f"{program}: {name}": differences(normal(ours[name]), normal(genuine[name])) for name in ours}


def is_known(case: str, line: str) -> bool:
    return any(re.fullmatch(known.cases, case) and re.match(known.line, line) for known in OF_CLIENT)


@pytest.fixture(scope="module")
def by_program(comparison: Comparison) -> dict[str, dict[str, list[str]]]:
    """The differences of every program; each program runs once."""
    return {program: compared(comparison, program) for program in CASES}


@pytest.mark.parametrize("program", CASES)
def test_program_reads_and_stores_the_same_as_with_mlflow(by_program: dict[str, dict[str, list[str]]], program: str) -> None:
    unknown = {case: [line for line in lines if not is_known(case, line)] for case, lines in by_program[program].items()}
    wrong = {case: lines for case, lines in unknown.items() if lines}
    assert not wrong, "\n".join(f"{case}\n    " + "\n    ".join(lines[:6]) for case, lines in wrong.items())


@pytest.mark.parametrize("known", OF_CLIENT, ids=lambda known: known.name)
def test_deliberate_difference_of_the_client_still_differs(by_program: dict[str, dict[str, list[str]]], known: OfClient) -> None:
    lines = [
        line
        for cases in by_program.values()
        for case, case_lines in cases.items()
        if re.fullmatch(known.cases, case)
        for line in case_lines
    ]
    assert any(re.match(known.line, line) for line in lines), "nothing differs any more: remove it from deliberate.py"


@pytest.mark.parametrize("kind", programs.KINDS)
def test_process_loses_nothing_that_mlflow_stores(comparison: Comparison, kind: str) -> None:
    """Every point whose call has returned is stored, and the process ends as with MLflow."""

    def end(side: Side) -> Any:
        code, output = ended(side, "process", kind)
        return normal({"exit code": code, "stored": stored(side, [output["run_id"]])})

    ours, genuine = comparison.pair.both(end)
    comparison.runs["the client: kinds of processes"] += 1
    assert not differences(ours, genuine)
