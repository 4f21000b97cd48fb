"""The shipped notebooks and the user's copies of them."""

import os
from pathlib import Path

import pytest

from mlstack.host import examples
from mlstack.host.stack import Stack
from tests.support.projects import set_values

NAME = "01_first.ipynb"
TEXT = '"open http://127.0.0.1:5001 or http://127.0.0.1:8888/?token=… or http://mlflow.localhost:5001, not 5001"'


@pytest.fixture
def shipped(project: Path) -> Path:
    (project / examples.ORIGINALS).mkdir()
    (project / examples.ORIGINALS / NAME).write_text(TEXT)
    examples.offer(Stack.of(project))
    return project


def names(project: Path) -> list[str]:
    return sorted(path.name for path in (project / "notebooks").iterdir())


def newer(project: Path, text: str = "newer") -> None:
    (project / examples.ORIGINALS / NAME).write_text(text)
    examples.offer(Stack.of(project))


def test_copy_has_the_ports_of_this_stack(project: Path) -> None:
    set_values(project, MLFLOW_PORT="25001", JUPYTER_PORT="28888")
    (project / examples.ORIGINALS).mkdir()
    newer(project, TEXT)
    text = (project / "notebooks" / NAME).read_text()
    assert text == ('"open http://127.0.0.1:25001 or http://127.0.0.1:28888/?token=… or http://mlflow.localhost:25001, not 5001"')


def test_newer_version_replaces_a_copy_that_nobody_has_changed(shipped: Path) -> None:
    newer(shipped)
    assert ((shipped / "notebooks" / NAME).read_text(), names(shipped)) == ("newer", [NAME])


def test_newer_version_comes_beside_a_copy_with_changes(shipped: Path) -> None:
    own = shipped / "notebooks" / NAME
    own.write_text("mine")
    newer(shipped)
    assert own.read_text() == "mine"
    (beside,) = set(names(shipped)) - {NAME}
    assert (shipped / "notebooks" / beside).read_text() == "newer"
    examples.offer(Stack.of(shipped))
    assert len(names(shipped)) == 2  # offered once


def test_copy_that_was_deleted_comes_back_only_in_a_newer_version(shipped: Path) -> None:
    (shipped / "notebooks" / NAME).unlink()
    examples.offer(Stack.of(shipped))
    assert names(shipped) == []
    newer(shipped)
    assert names(shipped) == [NAME]


def test_no_link_in_the_folder_leads_to_another_file(shipped: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    copy = shipped / "notebooks" / NAME
    copy.unlink()
    copy.symlink_to(outside)
    newer(shipped)
    assert outside.read_text() == "mine"
    copy.unlink()
    os.mkfifo(copy)  # opening it for reading would wait forever
    newer(shipped, "newest")
    assert outside.read_text() == "mine"
