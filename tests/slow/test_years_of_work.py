"""Much work: backed up while clients write, lost, and restored in a fresh clone with new secrets."""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlstack.host.backup import manifest
from mlstack.host.render import size
from tests.support.clone import Clone, make_clone
from tests.support.work import admin, everything, fill, finished, started

log = logging.getLogger(__name__)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Logs how long it took (pytest --log-cli-level=INFO); no test depends on it."""
    started_at = time.monotonic()
    yield
    log.info("%s: %.1f s", what, time.monotonic() - started_at)


def make(clone: Clone, *targets: str, **environment: str) -> str:
    with timed("make " + " ".join(targets)):
        done = clone.make(*targets, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def disk(*folders: Path) -> int:
    """Bytes on the disk, each file once."""
    sizes = {path.lstat().st_ino: path.lstat().st_blocks * 512 for folder in folders for path in folder.rglob("*")}
    return sum(sizes.values())


@pytest.mark.timeout(3000)
def test_year_of_work_is_restored_in_a_fresh_clone(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> None:
    make(clone, "up")
    with timed("filling"):
        fill(clone, runs=200, points=50_000, megabytes=1050, models=3)
    backups = clone.folder / "backups"
    writer = started(*admin(clone), "fill", "--runs=20", "--points=1000", "--megabytes=10", "--seed=2")
    make(clone, "backup")
    finished(writer)
    first = manifest.folders(backups)[0]
    make(clone, "backup")
    second = manifest.folders(backups)[0]
    for folder in (first, second):
        contents = manifest.read_manifest(folder)
        log.info("%s: %s, new %s; %s", folder.name, size(contents.bytes), size(contents.new_bytes), dict(contents.counts))
    new = manifest.read_manifest(second).new_bytes
    assert new < 10_000_000 + 2 * (second / manifest.DUMP).stat().st_size
    assert disk(first, second) - disk(first) < 2 * new
    seen = everything(clone)
    counts = manifest.read_manifest(second).counts
    assert counts["runs"] >= 200 and counts["metric points"] >= 50_000 and counts["registered models"] >= 3
    make(clone, "reset", YES="1")

    other = make_clone(tmp_path_factory.mktemp("fresh"))  # the same name: the first stack is removed
    assert other.values["POSTGRES_PASSWORD"] != (clone.folder / ".env").read_text().partition("POSTGRES_PASSWORD=")[2][:32]
    carried = other.folder / "carried"
    shutil.move(backups, carried)
    make(other, "restore", BACKUP=str(carried / second.name))
    with timed("reading everything through MLflow"):
        assert everything(other) == seen
    make(other, "verify", BACKUP=str(carried / first.name))
    other.erase()
