"""Building where a package source cannot be reached."""

import pytest

from mlstack.errors import MlstackError
from mlstack.host.commands import start
from mlstack.host.stack import Stack
from tests.support.clone import Clone


def test_build_names_a_package_index_that_cannot_be_reached(built: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = built.folder / "requirements/uv.txt"
    kept = lock.read_text()
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    try:
        lock.write_text(kept + "# not in the build cache\n")
        with pytest.raises(MlstackError) as failed:
            start.build(Stack.of(built.folder))
    finally:
        lock.write_text(kept)
    assert "an image could not be built" in failed.value.wrong
    assert "package source could not be reached" in failed.value.why
    assert "HTTPS_PROXY" in failed.value.why and "CA_BUNDLE" in failed.value.why
    assert "make up again" in failed.value.fix
