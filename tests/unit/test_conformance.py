"""docs/conformance.md shows the deliberate differences of tests/conformance; make test-conformance compares with MLflow."""

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.conformance import fuzz, report, sequences
from tests.conformance.deliberate import EVERY, quoted
from tests.conformance.servers import Call, differences, normal
from tests.support.pages import END
from tests.support.projects import ROOT

PAGE = ROOT / "docs/conformance.md"


def test_page_lists_every_deliberate_difference() -> None:
    assert report.deliberate_of(PAGE) == report.deliberate(), "make test-conformance REPORT=1 writes it"


def test_names_of_deliberate_differences_are_unique() -> None:
    names = [known.name for known in EVERY]
    assert len(names) == len(set(names))


def test_report_replaces_only_the_generated_part(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{report.BEGIN}\n<former content>\n{END}\nbelow\n")
    report.write(page, 7, Counter({"odd calls": 1200}), Counter({"odd calls": 3}))
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("\nbelow\n") and "<former content>" not in text
    assert "| odd calls | 1,200 | 3 |" in text and "seed 7" in text
    assert report.deliberate_of(page) == report.deliberate()


def test_report_leaves_a_page_without_marks_unchanged(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no"):
        report.write(page, 7, Counter(), Counter())
    assert page.read_text() == "nothing"


def test_malformed_calls_are_the_same_for_the_same_seed() -> None:
    first, second, other = (
        [*fuzz.calls(chance, 200), *sequences.sequence(chance, 50)] for chance in map(random.Random, (1, 1, 2))
    )
    assert first == second != other


def test_quoted_quotes_bare_special_numbers_only(subtests: pytest.Subtests) -> None:
    for body, expected in (
        (b'{"value": NaN}', b'{"value": "NaN"}'),
        (b'{"value": -Infinity, "a": Infinity}', b'{"value": "-Infinity", "a": "Infinity"}'),
        (b'{"value": -1e400}', b'{"value": "-Infinity"}'),
        (b'{"key": "a NaN \\" NaN", "value": 1e100}', None),
        (b'{"value": "NaN"}', None),
    ):
        with subtests.test(body=body):
            call = quoted(Call("POST", "/api/2.0/mlflow/runs/log-metric", body))
            assert (call and call.body) == expected


def test_differences_distinguish_equal_values_of_different_types() -> None:
    nan = float("nan")
    assert not differences({"a": [1, nan]}, {"a": [1, nan]})
    assert differences({"a": 1}, {"a": True}) == ["a: ours 1, genuine True"]
    assert differences([1], [1, 2]) and differences({"a": None}, {"a": 0})


def test_normal_keeps_what_a_caller_sent_and_replaces_generated_values() -> None:
    assert normal({"run_id": "0" * 32, "step": 3, "uri": "s3://bucket/a"}) == {
        "run_id": "<id>",
        "step": 3,
        "uri": "s3://<bucket>/a",
    }
