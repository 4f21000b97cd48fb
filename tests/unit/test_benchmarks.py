"""The arithmetic and the table of the benchmark; tests/slow/test_bench.py runs it."""

from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import growth, report, scoring
from benchmarks.figures import DEFAULTS, MLSTACK, RAW, Against, Better, Figure, Goal, Line, number, percentile
from benchmarks.lines import IN_CLIENTS, OF_MACHINE, QUICK, Size
from tests.support.clone import ROOT
from tests.support.pages import END, write_block

RATE = Line("rate", "calls", "calls/s", Better.MORE, (Goal(Against.DEFAULTS, 5), Goal(Against.RAW, 0.9)))
TIME = Line("time", "a call", "ms", Better.LESS, (Goal(Against.DEFAULTS, 5), Goal(Against.VALUE, 20)))


def figure(line: Line, defaults: list[float], ours: list[float], raw: list[float]) -> Figure:
    return Figure(line, {DEFAULTS: defaults, MLSTACK: ours, RAW: raw})


def test_figure_of_a_rate_is_better_when_larger() -> None:
    result = figure(RATE, [10, 30, 20], [190, 200, 100], [200])
    assert (result.median(DEFAULTS), result.spread(MLSTACK)) == (20, (100, 200))
    assert (result.ratio, result.share, result.met) == (9.5, 0.95, True)


def test_figure_of_a_time_is_better_when_smaller() -> None:
    result = figure(TIME, [100], [10, 30], [5])
    assert (result.ratio, result.share, result.met) == (5, 0.25, True)


def test_goal_is_met_only_by_measured_values(subtests: pytest.Subtests) -> None:
    for defaults, ours, raw, met in (
        ([20], [99], [100], False),  # of the ratio
        ([10], [89], [100], False),  # of the share
        ([10], [90], [100], True),
        ([], [90], [100], None),
        ([10], [90], [], None),
        ([10], [], [100], None),
    ):
        with subtests.test(defaults=defaults, ours=ours, raw=raw):
            assert figure(RATE, defaults, ours, raw).met is met


def test_line_without_a_goal_neither_meets_nor_misses_it() -> None:
    assert figure(Line("a", "a", "s", Better.LESS), [1], [2], []).met is None


def test_percentile_is_one_of_the_values() -> None:
    percentiles = {0.5: 50, 0.99: 99, 1: 100, 0: 1}
    assert {share: percentile(list(range(100, 0, -1)), share) for share in percentiles} == percentiles


def test_number_has_three_significant_digits() -> None:
    texts = {0: "0", 0.01234: "0.0123", 4.0: "4", 99.94: "99.9", 123.4: "123", 10_500.2: "10,500"}
    assert {value: number(value) for value in texts} == texts


def test_row_shows_the_values_and_both_comparisons() -> None:
    assert report.cells(figure(TIME, [100], [10, 30], [5])) == (
        "a call, ms", "100", "20 (10–30)", "5×", "5", "25%",
    )  # fmt: skip


def test_slope_is_the_exponent_of_growth() -> None:
    points = [
        growth.Point("mlstack", runs, rate=1, latency=1, search=seconds) for runs, seconds in ((100, 1), (1000, 10), (10000, 10))
    ]
    assert growth.slope(points, "mlstack", "search") == pytest.approx([1, 0])


def test_report_writes_between_the_marks_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{END}\nafter\n")
    write_block(page, report.BEGIN, "new")
    assert page.read_text() == f"before\n{report.BEGIN}\nnew\n{END}\nafter\n"


def test_report_leaves_a_page_without_marks_unchanged(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("mine\n")
    with pytest.raises(ValueError, match="begin"):
        write_block(page, report.BEGIN, "new")
    assert page.read_text() == "mine\n"


@pytest.mark.parametrize("page", ["performance.md", "scoring.md"])
def test_page_has_the_marks(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert END in text.partition(report.BEGIN)[2]


def test_lines_of_scoring_have_its_prefix() -> None:
    lines = [line for group in scoring.measurements(bench.Bench(bench.QUICK, {}, {}, ""), {}) for line in group.lines]
    assert all(line.key.startswith(scoring.PREFIX) for line in lines)
    assert not any(line.key.startswith(scoring.PREFIX) for group in (*IN_CLIENTS, *OF_MACHINE) for line in group.lines)


def test_names_of_lines_are_unique() -> None:
    keys = [line.key for group in (*IN_CLIENTS, *OF_MACHINE) for line in group.lines]
    assert len(keys) == len(set(keys))
    assert len(bench.NAMES) == len(set(bench.NAMES))


def test_quick_benchmark_is_small_and_has_sizes_in_its_growth() -> None:
    assert QUICK.points < Size().points / 10
    assert QUICK.runs in QUICK.growth and Size().runs in Size().growth


def test_bench_rejects_an_unknown_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--lines", "speed"])
    assert bench.explained() == 1
    assert "there is no line speed" in capsys.readouterr().err
