"""The arithmetic and the table of the benchmark; tests/stack/test_bench.py runs it."""

from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import growth, report
from benchmarks.figures import DEFAULTS, MLSTACK, RAW, Against, Better, Figure, Goal, Line, number, percentile
from benchmarks.lines import IN_CLIENTS, OF_MACHINE, QUICK, Size
from tests.support.clone import ROOT

RATE = Line("rate", "calls", "calls/s", Better.MORE, (Goal(Against.DEFAULTS, 5), Goal(Against.RAW, 0.9)))
TIME = Line("time", "a call", "ms", Better.LESS, (Goal(Against.DEFAULTS, 5), Goal(Against.VALUE, 20)))


def figure(line: Line, defaults: list[float], ours: list[float], raw: list[float]) -> Figure:
    return Figure(line, {DEFAULTS: defaults, MLSTACK: ours, RAW: raw})


def test_a_rate_is_better_when_it_is_more() -> None:
    found = figure(RATE, [10, 30, 20], [190, 200, 100], [200])
    assert (found.median(DEFAULTS), found.spread(MLSTACK)) == (20, (100, 200))
    assert (found.ratio, found.share, found.met) == (9.5, 0.95, True)


def test_a_time_is_better_when_it_is_less() -> None:
    found = figure(TIME, [100], [10, 30], [5])
    assert (found.ratio, found.share, found.met) == (5, 0.25, True)


@pytest.mark.parametrize(
    ("defaults", "ours", "raw", "met"),
    [
        ([20], [99], [100], False),  # of the ratio
        ([10], [89], [100], False),  # of the share
        ([10], [90], [100], True),
        ([], [90], [100], None),
        ([10], [90], [], None),
        ([10], [], [100], None),
    ],
)
def test_a_goal_is_met_only_by_what_was_measured(
    defaults: list[float], ours: list[float], raw: list[float], met: bool | None
) -> None:
    assert figure(RATE, defaults, ours, raw).met is met


def test_a_line_without_a_goal_neither_meets_nor_misses_it() -> None:
    assert figure(Line("a", "a", "s", Better.LESS), [1], [2], []).met is None


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1, 100), (0, 1)])
def test_a_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01234, "0.0123"), (4.0, "4"), (99.94, "99.9"), (123.4, "123"), (10_500.2, "10,500")]
)
def test_a_number_has_the_digits_that_mean_something(value: float, text: str) -> None:
    assert number(value) == text


def test_a_row_says_what_was_measured_and_against_what() -> None:
    assert report.cells(figure(TIME, [100], [10, 30], [5])) == (
        "a call, ms", "100", "20 (10–30)", "5×", "5", "25%",
    )  # fmt: skip


def test_growth_is_told_by_its_exponent() -> None:
    points = [
        growth.Point("mlstack", runs, rate=1, latency=1, search=seconds) for runs, seconds in ((100, 1), (1000, 10), (10000, 10))
    ]
    assert growth.slope(points, "mlstack", "search") == pytest.approx([1, 0])


def test_the_page_is_written_between_its_marks_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_page(page, "new")
    assert page.read_text() == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("mine\n")
    with pytest.raises(ValueError, match="begin"):
        report.write_page(page, "new")
    assert page.read_text() == "mine\n"


def test_the_shipped_page_has_the_marks() -> None:
    text = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert text.index(report.BEGIN) < text.index(report.END)


def test_every_line_has_a_name_of_its_own() -> None:
    keys = [line.key for each in (*IN_CLIENTS, *OF_MACHINE) for line in each.lines]
    assert len(keys) == len(set(keys))
    assert len(bench.NAMES) == len(set(bench.NAMES))


def test_the_small_form_is_small_and_measures_the_same() -> None:
    assert QUICK.points < Size().points / 10
    assert QUICK.runs in QUICK.growth and Size().runs in Size().growth


def test_a_line_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--lines", "speed"])
    assert bench.explained() == 1
    assert "there is no line speed" in capsys.readouterr().err
