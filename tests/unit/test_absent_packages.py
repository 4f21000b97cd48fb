import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlstack.client import absent_packages


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package that is looked for, is not there, and will be written to a folder of sys.path."""
    monkeypatch.syspath_prepend(tmp_path)
    finders = [*sys.meta_path]
    absent_packages.remember("not_there_yet")
    yield "not_there_yet"
    sys.meta_path[:] = finders


def is_there(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name == name
        return False
    return True


def later(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(absent_packages.time, "monotonic", lambda: 1e12)


@pytest.mark.parametrize("forgotten", [lambda _: importlib.invalidate_caches(), later])
def test_an_absent_package_is_looked_for_once_and_found_when_it_came(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: object
) -> None:
    assert not is_there(package)
    (tmp_path / f"{package}.py").write_text("")
    assert not is_there(package)  # remembered
    forgotten(monkeypatch)  # type: ignore[operator]
    importlib.invalidate_caches()
    assert is_there(package)
    del sys.modules[package]
