"""The comparison that the faults rely on reports every loss."""

import dataclasses

import pytest

from tests.faults import comparison
from tests.faults.comparison import Entry, Ledger
from tests.faults.stack import Stack, start_client


@pytest.fixture(scope="module")
def calm(stack: Stack) -> Ledger:
    """What a client wrote without any fault."""
    client = start_client(stack, "calm", large=0)
    client.wait_until_steady()
    return client.stop()


def test_comparison_reports_what_is_missing_or_changed(stack: Stack, calm: Ledger) -> None:
    """In Postgres a point, an alias and a version; in MinIO one artifact less, and a byte flipped in another."""
    before = comparison.compare(calm, stack.look(calm))
    assert before.is_good, before
    gone, flipped = [entry.items[0]["path"] for entry in calm.stored("artifact")][:2]
    key, value, _, step = next(calm.stored("sync")).items[7]
    alias = next(calm.stored("alias")).items[0][0]
    version = next(calm.stored("version"))
    sql(
        stack,
        f"DELETE FROM metrics WHERE run_uuid = '{calm.run}' AND key = '{key}' AND step = {step};"  # noqa: S608 # names of our own
        f"DELETE FROM registered_model_aliases WHERE name = '{calm.model}' AND alias = '{alias}';"
        f"DELETE FROM model_version_tags WHERE name = '{calm.model}' AND version = {version.answer};"
        f"DELETE FROM model_versions WHERE name = '{calm.model}' AND version = {version.answer};",
    )
    tamper(stack, f"storage.remove_object(bucket, '{calm.prefix}{gone}')")
    tamper(
        stack,
        f"content = bytearray(storage.get_object(bucket, '{calm.prefix}{flipped}').read()); content[-1] ^= 1;"
        f"storage.put_object(bucket, '{calm.prefix}{flipped}', io.BytesIO(content), len(content))",
    )
    after = comparison.compare(calm, stack.look(calm))
    assert [line for line in after.lost if line.startswith(f"point ('{key}', {value},")]
    assert f"artifact {gone}" in after.lost
    assert f"version {version.answer} of {version.items[0]}" in after.lost
    assert [line for line in after.lost if line.startswith(f"alias {alias} ")]
    assert after.broken == [f"artifact {flipped}"]


def test_comparison_reports_a_write_that_never_happened(stack: Stack, calm: Ledger) -> None:
    lie = Entry("sync", 10**6, [["sync_0", 0.5, 1, 10**6]], "stored")
    file = Entry("artifact", 10**6 + 1, [{"path": "never.bin", "size": 1, "sha256": "0" * 64}], "stored")
    verdict = comparison.compare(dataclasses.replace(calm, entries=[*calm.entries, lie, file]), stack.look(calm))
    assert "point ('sync_0', 0.5, 1, 1000000)" in verdict.lost and "artifact never.bin" in verdict.lost


def test_comparison_reports_what_no_client_wrote(stack: Stack, calm: Ledger) -> None:
    sql(
        stack,
        "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)"  # noqa: S608
        " SELECT key, value, timestamp + 1, run_uuid, step, is_nan FROM metrics"
        f" WHERE run_uuid = '{calm.run}' AND key = 'sync_1' AND step = 0",
    )
    verdict = comparison.compare(calm, stack.look(calm))
    assert verdict.doubled == ["point ('sync_1', 0)"]
    assert len(verdict.unknown) == 1 and verdict.unknown[0].startswith("point ('sync_1', ")


def sql(stack: Stack, statements: str) -> None:
    """As the owner of the database."""
    values = stack.clone.values
    stack.compose(
        "exec", "--no-TTY", "postgres", "psql", "--quiet", "--set", "ON_ERROR_STOP=1", "--username", values["POSTGRES_USER"],
        "--dbname", values["POSTGRES_DB"], "--command", statements,
    )  # fmt: skip


def tamper(stack: Stack, statement: str) -> None:
    """As the owner of MinIO."""
    program = (
        "import io; from mlstack import s3, settings; keys = settings.storage_owner(); bucket = keys.bucket;"
        "storage = s3.client_for(keys);"
    )
    stack.compose("run", "--rm", "--no-deps", "--no-TTY", "bootstrap", "python3", "-c", program + statement)
