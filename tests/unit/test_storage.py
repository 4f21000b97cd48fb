"""docs/storage.md lists what tests/integration/test_storage_contract.py checks."""

from mlstack.settings import STORES
from tests.integration import test_storage_contract
from tests.support.clone import ROOT


def test_page_lists_every_promise_and_how_each_store_keeps_it() -> None:
    marks = [mark for test in vars(test_storage_contract).values() for mark in getattr(test, "pytestmark", ())]
    promises = [mark for mark in marks if mark.name == "promise"]
    lines = [" | ".join((mark.args[0], *(mark.kwargs.get(store, "kept") for store in STORES))) for mark in promises]
    page = (ROOT / "docs/storage.md").read_text(encoding="utf-8")
    table = page.partition("| promise | MinIO | VersityGW |\n|---|---|---|\n")[2].partition("\n\n")[0]
    assert lines
    assert table.splitlines() == [f"| {line} |" for line in lines]
