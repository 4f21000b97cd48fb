"""What may go, decided without a stack."""

from datetime import UTC, datetime, timedelta

import pytest

from mlstack.errors import MlstackError
from mlstack.host.commands import gc
from mlstack.host.commands.gc import Plan, Rows
from mlstack.host.render import gc as gc_screen
from mlstack.host.render import size, span
from mlstack.jobs.gc.versions import Version, expired, folder_of
from mlstack.s3 import DOCTOR, Folder

NOW = datetime(2026, 1, 31, tzinfo=UTC)
DAY = timedelta(days=1)
RUN, MODEL, TRACE = "a" * 32, f"m-{'b' * 32}", f"tr-{'c' * 32}"
OTHER, USED = "d" * 32, "e" * 32
NOTHING = Rows(frozenset(), frozenset(), {}, {}, (), {}, {})


def history(*ages: int, is_deleted: bool = False) -> list[Version]:
    """An object whose versions were made so many days ago, the newest first."""
    made = [NOW - age * DAY for age in ages]
    replaced = [None, *made]
    return [
        Version("x", str(number), 10, is_deleted and number == 0, when, since)
        for number, (when, since) in enumerate(zip(made, replaced, strict=False))
    ]


@pytest.mark.parametrize(
    ("versions", "gone"),
    [
        (history(100), []),
        (history(10, 100), []),  # replaced ten days ago
        (history(40, 100), ["1"]),
        (history(10, 40, 100), ["2"]),  # the middle one was replaced ten days ago
        (history(40, 100, is_deleted=True), ["1", "0"]),  # deleted: its mark goes with it, and after it
        (history(10, 100, is_deleted=True), []),
        (history(10, 40, 100, is_deleted=True), ["2"]),  # the mark stays: without it the middle one would be back
        (history(40, is_deleted=True), ["0"]),  # a mark of what is gone
    ],
)
def test_a_version_counts_from_when_it_was_replaced(versions: list[Version], gone: list[str]) -> None:
    assert [version.id for version in expired(versions, NOW, 30 * DAY)] == gone


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        (f"0/{RUN}/artifacts/model/x", f"0/{RUN}/"),
        (f"12/models/{MODEL}/artifacts/x", f"12/models/{MODEL}/"),
        (f"12/traces/{TRACE}/artifacts/x", f"12/traces/{TRACE}/"),
        (f"custom/place/{RUN}/artifacts/x", f"custom/place/{RUN}/"),
        (f"0/{RUN}", ""),  # a file of that name
        ("0/notes.txt", ""),
        ("mine/table.csv", ""),
        (f"{DOCTOR}x", DOCTOR),
        ("", ""),
    ],
)
def test_an_object_belongs_to_a_run_a_model_a_trace_or_nobody(name: str, folder: str) -> None:
    assert folder_of(name) == folder


@pytest.mark.parametrize(
    ("text", "age"), [("30d", 30 * DAY), ("12h", DAY / 2), ("5m", DAY / 288), ("0s", timedelta(0)), (" 7d ", 7 * DAY)]
)
def test_an_age(text: str, age: timedelta) -> None:
    assert gc.age_of(text) == age


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1w", "1.5d", "30d; rm"])
def test_no_age(text: str) -> None:
    with pytest.raises(MlstackError, match="is no age"):
        gc.age_of(text)


def plan(rows: Rows, *folders: Folder) -> Plan:
    return gc._sorted_out(rows, {folder.name: folder for folder in folders}, 30 * DAY)


def test_a_run_in_the_trash_goes_with_its_files() -> None:
    rows = Rows(frozenset({RUN}), frozenset(), {RUN: f"0/{RUN}/"}, {}, (), {}, {})
    found = plan(rows, Folder(f"0/{RUN}/", 2, 100, 50, 1, 50))
    assert (found.runs, found.folders, found.folders_size) == ((RUN,), (f"0/{RUN}/",), 150)
    assert (found.expired, found.size) == (0, 150)  # its versions are counted once


@pytest.mark.parametrize("trash", ["trashed_runs", "trashed_models"])
def test_what_a_registered_model_uses_stays(trash: str) -> None:
    fields = {"trashed_runs": {}, "trashed_models": {}, trash: {RUN: f"0/{RUN}/"}}
    rows = Rows(frozenset({RUN}), frozenset({RUN}), trashed_experiments=(), models={}, versions={}, **fields)
    found = plan(rows, Folder(f"0/{RUN}/", 2, 100))
    assert (found.is_empty, found.kept) == (True, (RUN,))


@pytest.mark.parametrize(
    ("folder", "is_orphan"),
    [
        (f"0/{OTHER}/", True),
        (f"0/{RUN}/", False),  # known
        (f"0/{USED}/", False),  # a registered model's, whose run is gone for good
        (f"mine/{OTHER}/", False),  # not MLflow's shape: somebody's own
        ("", False),
    ],
)
def test_a_folder_without_a_row_is_an_orphan_when_it_is_mlflows(folder: str, is_orphan: bool) -> None:
    rows = Rows(frozenset({RUN}), frozenset({USED}), {}, {}, (), {}, {})
    assert bool(plan(rows, Folder(folder, 1, 10)).orphans) is is_orphan


def test_a_young_orphan_may_be_an_upload_under_way() -> None:
    now = datetime.now(UTC).timestamp()
    found = plan(NOTHING, Folder(f"0/{RUN}/", 1, 10, changed=now))
    assert (found.orphans, found.young, found.is_empty) == ((), 1, True)


def test_a_folder_that_holds_only_old_versions_is_no_orphan() -> None:
    found = plan(NOTHING, Folder(f"0/{RUN}/", 0, 0, 30, 3, 30))
    assert (found.orphans, found.expired, found.expired_size) == ((), 3, 30)


def test_rows_without_files_are_named() -> None:
    rows = Rows(
        frozenset({MODEL, RUN}), frozenset({RUN, OTHER}), {}, {}, (),
        {MODEL: ("net", f"0/models/{MODEL}/")}, {"classifier version 1": OTHER, "classifier version 2": RUN},
    )  # fmt: skip
    found = plan(rows, Folder(f"0/{RUN}/", 1, 10))
    assert found.missing == (f"model net ({MODEL})", "registered model classifier version 1")


def test_long_lists_are_cut_with_the_rest_counted() -> None:
    names = tuple(f"name{number}" for number in range(25))
    lines = gc_screen.screen(Plan(age=DAY, kept=names), "1d").renderables
    assert "  name9" in lines and "  name10" not in lines and "  and 15 more" in lines


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (65, "1 min"), (3 * 3600 + 1200, "3 h 20 min"), (12 * 86400 + 5, "12 d")]
)
def test_a_duration_is_short(seconds: int, text: str) -> None:
    assert span(seconds) == text


def test_a_size_that_is_unknown_is_no_number() -> None:
    assert (size(None), size(1_500_000)) == ("?", "1.5 MB")
