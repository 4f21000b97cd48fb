"""What docs/storage.md says of the stores, and which moves make storage rejects."""

from pathlib import Path

import pytest

from mlstack.errors import MlstackError
from mlstack.host.commands import storage
from mlstack.host.stack import Stack
from mlstack.settings import STORES
from tests.integration import test_storage_contract
from tests.support.clone import ROOT
from tests.support.projects import set_values


def test_page_lists_every_promise_and_how_each_store_keeps_it() -> None:
    marks = [mark for test in vars(test_storage_contract).values() for mark in getattr(test, "pytestmark", ())]
    promises = [mark for mark in marks if mark.name == "promise"]
    lines = [" | ".join((mark.args[0], *(mark.kwargs.get(store, "kept") for store in STORES))) for mark in promises]
    page = (ROOT / "docs/storage.md").read_text(encoding="utf-8")
    table = page.partition("| promise | MinIO | VersityGW |\n|---|---|---|\n")[2].partition("\n\n")[0]
    assert lines
    assert table.splitlines() == [f"| {line} |" for line in lines]


def test_move_to_the_other_store_is_possible(project: Path) -> None:
    storage.require_possible(Stack.of(project), "versitygw")
    set_values(project, STORAGE="versitygw", MINIO_BUCKET_QUOTA="5g")
    storage.require_possible(Stack.of(project), "minio")


@pytest.mark.parametrize(
    ("target", "values", "wrong"),
    [
        ("s3", {}, "is no store"),
        ("minio", {}, "in minio already"),
        ("versitygw", {"STORAGE": "versitygw"}, "in versitygw already"),
        ("versitygw", {"MINIO_BUCKET_QUOTA": "5g"}, "has no quota"),
        (
            "versitygw",
            {"EXTERNAL_S3": "https://s3", "EXTERNAL_S3_ACCESS_KEY_ID": "key", "EXTERNAL_S3_SECRET_ACCESS_KEY": "12345678"},
            "external store",
        ),
    ],
)
def test_move_is_rejected_with_a_fix(project: Path, target: str, values: dict[str, str], wrong: str) -> None:
    set_values(project, **values)
    with pytest.raises(MlstackError, match=wrong) as rejected:
        storage.require_possible(Stack.of(project), target)
    assert rejected.value.fix


def test_move_is_rejected_while_the_shell_chooses_the_store(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE", "minio")
    with pytest.raises(MlstackError, match="from your shell"):
        storage.require_possible(Stack.of(project), "versitygw")
