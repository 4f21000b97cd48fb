"""Every classifier and regressor of scikit-learn, and models of other libraries, through the stack and back (docs/models.md).

make test-slow REPORT=1 TESTS="-k models" writes the page's table.
"""

import json
import os
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.support.clone import ROOT, Clone
from tests.support.pages import begin, write_block

PROGRAM = (ROOT / "tests/support/model_program.py").read_text()
PAGE = ROOT / "docs/models.md"
# Installed as a user would, in the notebooks' environment.
OTHERS = ("catboost", "prophet", "xgboost-cpu")
NETWORKS = ("torch", "torchvision", "lightning", "transformers", "keras")  # 5 GB with the libraries for GPUs


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, clone: Clone) -> list[dict[str, Any]]:
    with clone.started():
        clone.in_container("jupyter", "pip", "install", "--quiet", *OTHERS, *NETWORKS)
        printed = clone.in_container("jupyter", "python", "-W", "ignore", "-c", PROGRAM)
    rows = [json.loads(line.removeprefix("RESULT ")) for line in printed.splitlines() if line.startswith("RESULT ")]
    if os.environ.get("MLSTACK_REPORT"):
        write(PAGE, rows)
    return rows


def write(page: Path, results: list[dict[str, Any]]) -> None:
    """Puts a line for each library between the page's marks. Raises ValueError without marks."""
    lines = ["| library | logged with defaults, loaded by alias, same predictions | problems |", "|---|---|---|"]
    for library, rows in groupby(sorted(results, key=lambda row: (row["library"], row["name"])), lambda row: row["library"]):
        models = list(rows)
        good = ", ".join(row["name"] for row in models if row["fits"] and not row["problem"])
        bad = ", ".join(
            f"{row['name']}: {' '.join(row['problem'].split()) or 'fits on none of the tables'}"
            for row in models
            if not good_row(row)
        )
        lines.append(f"| {library} | {good} | {bad.replace('|', '¦')} |")
    write_block(page, begin("make test-slow"), "\n".join(lines))


def good_row(row: dict[str, Any]) -> bool:
    return bool(row["fits"] and not row["problem"])


def test_every_model_that_fits_is_logged_loaded_by_alias_and_predicts_the_same(results: list[dict[str, Any]]) -> None:
    assert [(row["name"], row["problem"]) for row in results if row["fits"] and row["problem"]] == []


def test_every_model_fits_on_one_of_the_small_tables(results: list[dict[str, Any]]) -> None:
    assert len(results) > 100
    assert [row["name"] for row in results if not row["fits"]] == []
