"""A user's own packages for Jupyter's image: where they are locked, and what a user reads when they cannot be."""

import zipfile
from pathlib import Path

import pytest

from mlstack.errors import MlstackError
from mlstack.host import extra_packages
from mlstack.host.stack import Stack
from tests.support.projects import set_values


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions of a package in a folder, and no other place to look for one."""
    for version in ("1.0", "2.0"):
        with zipfile.ZipFile(tmp_path / f"added-{version}-py3-none-any.whl", "w") as archive:
            info = f"added-{version}.dist-info"
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: added\nVersion: {version}\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("UV_NO_INDEX", "1")


def with_wish(project: Path, wish: str, image: str = "") -> Path:
    set_values(project, JUPYTER_EXTRA_REQUIREMENTS="mine.txt")
    (project / "mine.txt").write_text(wish)
    (project / "requirements").mkdir(exist_ok=True)
    (project / extra_packages.IMAGE).write_text(image)
    return project / extra_packages.LOCK


def test_without_a_wish_an_old_lock_is_removed(project: Path) -> None:
    lock = with_wish(project, "")
    lock.write_text("numpy==1\n")
    set_values(project, JUPYTER_EXTRA_REQUIREMENTS="")
    extra_packages.lock(Stack.of(project), {})
    assert not lock.exists()


def test_file_that_is_missing_is_named(project: Path) -> None:
    set_values(project, JUPYTER_EXTRA_REQUIREMENTS="not-there.txt")
    with pytest.raises(MlstackError, match=r"not-there\.txt is not a file"):
        extra_packages.lock(Stack.of(project), {})


def test_wish_that_contradicts_the_image_is_rejected_before_the_build(project: Path) -> None:
    lock = with_wish(project, "added==1.0\n", image="added==2.0\n")
    with pytest.raises(MlstackError, match=r"added==[12]") as raised:
        extra_packages.lock(Stack.of(project), {})
    assert "requirements/notebook.txt" in str(raised.value)
    assert not lock.exists()


def test_lock_has_hashes_and_the_images_versions_and_is_written_once(project: Path) -> None:
    lock = with_wish(project, "added\n", image="added==1.0\n")
    extra_packages.lock(Stack.of(project), {})
    text = lock.read_text()
    assert "added==1.0" in text and "--hash=sha256:" in text
    lock.write_text(text + "# kept\n")
    extra_packages.lock(Stack.of(project), {})
    assert lock.read_text().endswith("# kept\n")
    with_wish(project, "added>=1\n", image="added==1.0\n")
    extra_packages.lock(Stack.of(project), {})
    assert "# kept" not in lock.read_text()
