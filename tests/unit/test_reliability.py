"""docs/reliability.md has a row for every fault of the matrix, and no row that reports a loss."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import faults, report, scoring
from tests.faults.experiment import Row
from tests.support.pages import END
from tests.support.projects import ROOT

PAGE = ROOT / "docs/reliability.md"
ROW = Row(faults.KERNEL.name, "a | b", 210, 5000, 10, 6, 0, 0, 3.5, "none")


def test_table_has_a_complete_row_for_each_fault() -> None:
    rows = report.rows_of(PAGE)
    assert [row[0] for row in rows] == [fault.name for fault in faults.MATRIX]
    for row in rows:
        assert len(row) == len(report.HEAD) and all(row), row


def test_table_shows_no_loss_and_work_during_each_fault() -> None:
    for row in report.rows_of(PAGE):
        cells = dict(zip(report.HEAD, row, strict=True))
        assert cells["lost"] == "0", row
        assert all(int(cells[name]) > 0 for name in ("points / s before", "points stored", "artifacts", "registry writes")), row
        assert float(cells["recovery, s"]) > 0, row


def test_table_of_scoring_shows_no_loss_and_answers_during_each_fault() -> None:
    rows = report.rows_of(ROOT / "docs/scoring.md")
    assert [row[0] for row in rows] == [fault.name for fault in scoring.MATRIX]
    for row in rows:
        cells = dict(zip(scoring.HEAD, row, strict=True))
        assert (cells["wrong"], cells["not in the log"], cells["twice or differently in the log"]) == ("0", "0", "0"), row
        assert int(cells["answers"]) > 0, row


def test_mlflow_on_the_host_uses_the_tracking_store_that_reports_losses() -> None:
    from mlflow.tracking._tracking_service.utils import _get_store

    assert type(_get_store("http://127.0.0.1:1")).__module__ == "mlstack.client.tracking_store"


def test_report_replaces_the_rows_of_its_faults_and_keeps_the_others(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{report.BEGIN}\nold\n{END}\nbelow\n")
    report.write(page, [ROW])
    report.write(page, [replace(ROW, fault=faults.NETWORK.name)])
    report.write(page, [replace(ROW, points=7)])
    assert page.read_text().startswith("above\n") and page.read_text().endswith("\nbelow\n")
    first, second = report.rows_of(page)
    assert first[0] == faults.NETWORK.name
    assert second == [faults.KERNEL.name, "a ¦ b", "210", "7", "10", "6", "0", "0", "none", "3.5"]


def test_report_leaves_a_page_without_marks_unchanged(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no"):
        report.write(page, [ROW])
    assert page.read_text() == "nothing"
