"""What `make gc` may delete, decided without a stack."""

from dataclasses import replace
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
    """An object whose versions were created so many days ago, the newest first."""
    created = [NOW - age * DAY for age in ages]
    replaced = [None, *created]
    return [
        Version("x", str(number), 10, is_deleted and number == 0, start, end)
        for number, (start, end) in enumerate(zip(created, replaced, strict=False))
    ]


def test_version_expires_by_the_time_since_it_was_replaced(subtests: pytest.Subtests) -> None:
    for versions, ids in (
        (history(100), []),
        (history(10, 100), []),  # replaced ten days ago
        (history(40, 100), ["1"]),
        (history(10, 40, 100), ["2"]),  # the middle one was replaced ten days ago
        (history(40, 100, is_deleted=True), ["1", "0"]),  # deleted: its delete marker is removed too, and after it
        (history(10, 100, is_deleted=True), []),
        (history(10, 40, 100, is_deleted=True), ["2"]),  # the marker stays: without it the middle version would be visible
        (history(40, is_deleted=True), ["0"]),  # a delete marker without a version
    ):
        with subtests.test(versions=versions):
            assert [version.id for version in expired(versions, NOW, 30 * DAY)] == ids


def test_folder_of_is_the_folder_of_a_run_model_or_trace(subtests: pytest.Subtests) -> None:
    for key, folder in (
        (f"0/{RUN}/artifacts/model/x", f"0/{RUN}/"),
        (f"12/models/{MODEL}/artifacts/x", f"12/models/{MODEL}/"),
        (f"12/traces/{TRACE}/artifacts/x", f"12/traces/{TRACE}/"),
        (f"custom/place/{RUN}/artifacts/x", f"custom/place/{RUN}/"),
        (f"0/{RUN}", ""),  # a file of that name
        ("0/notes.txt", ""),
        ("mine/table.csv", ""),
        (f"{DOCTOR}x", DOCTOR),
        ("", ""),
    ):
        with subtests.test(key=key):
            assert folder_of(key) == folder


def test_age_of_reads_a_number_and_a_unit() -> None:
    ages = {"30d": 30 * DAY, "12h": DAY / 2, "5m": DAY / 288, "0s": timedelta(0), " 7d ": 7 * DAY}
    assert {text: gc.age_of(text) for text in ages} == ages


def test_age_of_rejects_anything_else(subtests: pytest.Subtests) -> None:
    for text in ("", "30", "d", "-1d", "1w", "1.5d", "30d; rm"):
        with subtests.test(text=text), pytest.raises(MlstackError, match="is no age"):
            gc.age_of(text)


def plan(rows: Rows, *folders: Folder) -> Plan:
    return gc._sorted_out(rows, {folder.name: folder for folder in folders}, 30 * DAY)


def test_plan_deletes_a_run_in_the_trash_with_its_artifacts() -> None:
    rows = Rows(frozenset({RUN}), frozenset(), {RUN: f"0/{RUN}/"}, {}, (), {}, {})
    planned = plan(rows, Folder(f"0/{RUN}/", 2, 100, 50, 1, 50))
    assert (planned.runs, planned.folders, planned.folders_size) == ((RUN,), (f"0/{RUN}/",), 150)
    assert (planned.expired, planned.size) == (0, 150)  # its versions are counted once


@pytest.mark.parametrize("trash", ["trashed_runs", "trashed_models"])
def test_plan_keeps_what_a_registered_model_uses(trash: str) -> None:
    fields = {"trashed_runs": {}, "trashed_models": {}, trash: {RUN: f"0/{RUN}/"}}
    rows = Rows(frozenset({RUN}), frozenset({RUN}), trashed_experiments=(), models={}, versions={}, **fields)
    planned = plan(rows, Folder(f"0/{RUN}/", 2, 100))
    assert (planned.is_empty, planned.kept) == (True, (RUN,))


def test_plan_takes_a_folder_of_mlflow_without_a_row_for_an_orphan(subtests: pytest.Subtests) -> None:
    rows = Rows(frozenset({RUN}), frozenset({USED}), {}, {}, (), {}, {})
    for folder, is_orphan in (
        (f"0/{OTHER}/", True),
        (f"0/{RUN}/", False),  # known
        (f"0/{USED}/", False),  # of a registered model whose run was deleted permanently
        (f"mine/{OTHER}/", False),  # not in MLflow's layout: a user's own
        ("", False),
    ):
        with subtests.test(folder=folder):
            assert bool(plan(rows, Folder(folder, 1, 10)).orphans) is is_orphan


def test_plan_keeps_a_young_orphan_which_may_be_an_upload_in_progress() -> None:
    now = datetime.now(UTC).timestamp()
    planned = plan(NOTHING, Folder(f"0/{RUN}/", 1, 10, changed=now))
    assert (planned.orphans, planned.young, planned.is_empty) == ((), 1, True)


def test_plan_takes_no_folder_of_old_versions_for_an_orphan() -> None:
    planned = plan(NOTHING, Folder(f"0/{RUN}/", 0, 0, 30, 3, 30))
    assert (planned.orphans, planned.expired, planned.expired_size) == ((), 3, 30)


def test_plan_lists_rows_without_artifacts() -> None:
    rows = Rows(
        frozenset({MODEL, RUN}), frozenset({RUN, OTHER}), {}, {}, (),
        {MODEL: ("net", f"0/models/{MODEL}/")}, {"classifier version 1": OTHER, "classifier version 2": RUN},
    )  # fmt: skip
    planned = plan(rows, Folder(f"0/{RUN}/", 1, 10))
    assert planned.missing == (f"model net ({MODEL})", "registered model classifier version 1")


def test_screen_shortens_a_long_list_and_counts_the_rest() -> None:
    names = tuple(f"name{number}" for number in range(25))
    lines = gc_screen.screen(Plan(age=DAY, kept=names), "1d").renderables
    assert "  name9" in lines and "  name10" not in lines and "  and 15 more" in lines


def test_span_has_at_most_two_units() -> None:
    spans = {5: "5 s", 65: "1 min", 3 * 3600 + 1200: "3 h 20 min", 12 * 86400 + 5: "12 d"}
    assert {seconds: span(seconds) for seconds in spans} == spans


def test_size_that_is_unknown_is_a_question_mark() -> None:
    assert (size(None), size(1_500_000)) == ("?", "1.5 MB")


def test_plan_deletes_old_versions_of_data_sets_that_nobody_sees() -> None:
    now = datetime.now(UTC)
    old, young = ((now - age * DAY).timestamp() for age in (40, 10))
    complete, deleted, begun = (f"trips/{digit * 32}/" for digit in "123")
    folders = [
        Folder(complete, 2, 100, 30, 1, 30, old),
        Folder(deleted, 2, 100, 30, 1, 30, old),
        Folder(begun, 1, 100, 0, 0, 0, young),
        Folder("", 3, 100, 0, 0, 0, old),
    ]
    planned = gc._with_datasets(Plan(age=30 * DAY), folders, [complete])
    assert [folder.name for folder in planned.datasets] == [deleted]
    assert (planned.expired, planned.expired_size, planned.young, planned.foreign) == (1, 30, 1, 3)
    assert planned.size == 160 and not planned.is_empty


def test_old_traces_are_deleted_although_nothing_else_is_old() -> None:
    planned = gc._sorted_out(replace(NOTHING, old_traces=(("1", TRACE),)), {}, 30 * DAY)
    assert (planned.traces, planned.is_empty) == ((("1", TRACE),), False)
    assert gc._sorted_out(NOTHING, {}, 30 * DAY).is_empty


def test_plan_archives_traces_and_takes_the_files_of_deleted_ones() -> None:
    rows = replace(NOTHING, known=frozenset({TRACE}), old_traces=(("1", TRACE),), archivable=("tr-1",))
    planned = plan(rows, Folder(f"1/traces/{TRACE}/", 1, 100), Folder("2/traces/tr-1/", 1, 100))
    assert (planned.archive, planned.folders, planned.orphans) == (("tr-1",), (f"1/traces/{TRACE}/",), ())
    assert not plan(replace(NOTHING, archivable=("tr-1",))).is_empty


def test_traces_are_archived_before_they_are_deleted(subtests: pytest.Subtests) -> None:
    for archived, deleted, ages in (
        ("", "", (None, None)),
        ("30", "", (30 * DAY, None)),
        ("", "30", (None, 30 * DAY)),
        ("29", "30", (29 * DAY, 30 * DAY)),
    ):
        with subtests.test(archived=archived, deleted=deleted):
            assert gc._trace_ages({"TRACE_ARCHIVE": archived, "TRACE_RETENTION": deleted}) == ages
    for archived in ("30", "31"):
        with pytest.raises(MlstackError, match=f"TRACE_ARCHIVE={archived} is not less than TRACE_RETENTION=30"):
            gc._trace_ages({"TRACE_ARCHIVE": archived, "TRACE_RETENTION": "30"})
