"""`make bench` in its smallest form: it measures something, whatever the values."""

import json
import subprocess
from pathlib import Path

from tests.support.clone import ROOT, users_environment


def test_bench_writes_a_table_and_pictures(tmp_path: Path) -> None:
    sizes = {"QUICK": "1", "REPETITIONS": "1", "LINES": "loop,forked,growth", "RESULTS": str(tmp_path)}
    done = subprocess.run(
        ["make", "bench"], cwd=ROOT, env=users_environment() | sizes, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
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
    containers = subprocess.run(["docker", "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True, check=True)
    assert record["stack"] not in containers.stdout
