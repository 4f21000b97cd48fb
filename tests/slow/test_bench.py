"""`make bench` in its smallest form, beside the running stack: it measures something, whatever the values."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks.stacks import beside
from mlstack.host.compose import docker
from tests.support.clone import Clone


@pytest.fixture(scope="module")
def stack(clone: Clone) -> Iterator[Clone]:
    with clone.started():
        yield clone


def test_bench_writes_a_table_and_pictures(stack: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "booted", lambda log: beside(stack, log))
    options = ("--quick", "--repetitions=1", "--lines=loop,forked,growth", f"--results={tmp_path}")
    monkeypatch.setenv("REFERENCE_JOBS", "false")
    monkeypatch.setattr("sys.argv", ["bench", *options])
    assert bench.explained() == 0
    record = json.loads((tmp_path / "benchmark.json").read_text())
    lines = {line["key"]: line for line in record["lines"]}
    assert lines.keys() == {"loop", "overhead", "forked", "frame", "images"}
    assert lines["loop"]["medians"].keys() == {"defaults", "mlstack", "raw"}
    assert all(lines["loop"]["medians"].values()) and lines["loop"]["ratio"] > 0
    assert lines["forked"]["ratio"] > 0 and all(lines["forked"]["values"][who] for who in ("defaults", "mlstack"))
    assert record["clients"]["defaults"]["store"].startswith("mlflow")
    assert {(point["side"], point["runs"]) for point in record["growth"]} == {
        (who, runs) for who in ("defaults", "mlstack") for runs in record["size"]["growth"]
    }
    assert all("latest_metrics" in plan for plan in record["plans"].values())
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("performance.png", "growth.png"))
    assert f"{stack.name}-defaults" not in docker("ps", "--all", "--format", "{{.Names}}")


def test_make_bench_passes_its_options_on(stack: Clone, tmp_path: Path) -> None:
    done = stack.make("bench", "QUICK=1", "REPETITIONS=1", "LINES=speed", f"RESULTS={tmp_path}")
    assert done.returncode != 0
    assert "there is no line speed" in done.stderr
