import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlstack import __version__
from mlstack.errors import MlstackError
from mlstack.host.backup import manifest, signature
from mlstack.host.backup.manifest import Artifact, Manifest, Table
from mlstack.host.commands import backup, rotate
from mlstack.host.render import size
from mlstack.host.stack import Stack
from tests.support.projects import with_package

CONTENT = {"run/model.pkl": b"a model", "run/copy.pkl": b"a model", "run/empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete backup of three artifacts, two of them the same bytes."""
    folder = tmp_path / "20261124T065000Z"
    folder.mkdir()
    artifacts = [
        Artifact(key, "v1", "etag", len(data), hashlib.sha256(data).hexdigest(), {"content-type": "x/y"})
        for key, data in CONTENT.items()
    ]
    for artifact in artifacts:
        (folder / artifact.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / artifact.path).write_bytes(CONTENT[artifact.key])
    (folder / manifest.DUMP).write_bytes(b"a dump")
    (folder / manifest.OBJECTS_LIST).write_text("".join(artifact.as_line() for artifact in artifacts))
    (folder / manifest.DATASETS_LIST).write_text(replace(artifacts[0], key="flights/1/data.parquet").as_line())
    names = (manifest.DUMP, manifest.OBJECTS_LIST, manifest.DATASETS_LIST)
    files = {name: manifest.sha256_of(folder, name) for name in names}
    manifest.write(
        folder,
        Manifest(
            created="2026-11-24T06:50:00.123456Z", bytes=13, new_bytes=13,
            versions={"mlstack": "0.1.0", "mlflow": "3.17.2", "postgres": "17.6", "minio": "RELEASE.x"},
            bucket="mlflow", owners={"public": "MLFLOW_DB_USER"}, counts={"runs": 1},
            tables={"public.runs": Table(1, "0" * 32)}, files=files,
        ),
    )  # fmt: skip
    return folder


def checked(folder: Path) -> manifest.Backup:
    backup = manifest.read(folder)
    manifest.check(backup, lambda _: None)
    return backup


def test_read_returns_what_was_written(folder: Path) -> None:
    contents = checked(folder)
    assert {artifact.key: artifact.size for artifact in contents.artifacts} == {key: len(data) for key, data in CONTENT.items()}
    assert [artifact.key for artifact in contents.datasets or ()] == ["flights/1/data.parquet"]
    assert contents.manifest.time.isoformat() == "2026-11-24T06:50:00.123456+00:00"
    assert contents.manifest.tables == {"public.runs": Table(1, "0" * 32)}


def test_check_rejects_a_damaged_file_by_name(folder: Path, subtests: pytest.Subtests) -> None:
    damages: dict[str, Callable[[bytes], bytes]] = {
        "one bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
        "shorter": lambda data: data[:-2],
        "longer": lambda data: data + b"x",
        "empty": lambda data: b"",
    }
    an_object = manifest.path_of(hashlib.sha256(b"a model").hexdigest())
    for name in (manifest.MANIFEST, manifest.CHECKSUM, manifest.DUMP, manifest.OBJECTS_LIST, an_object):
        path = folder / name
        data = path.read_bytes()
        for damage, damaged in damages.items():
            if name == manifest.CHECKSUM and damage in ("shorter", "longer"):
                continue  # the checksum itself is complete: only the file name after it is not
            with subtests.test(name=name, damage=damage):
                path.write_bytes(damaged(data))
                assert_rejected(folder, name)
        with subtests.test(name=name, damage="missing"):
            path.unlink()
            assert_rejected(folder, name)
        path.write_bytes(data)
    checked(folder)


def assert_rejected(folder: Path, name: str) -> None:
    with pytest.raises(MlstackError) as error:
        checked(folder)
    assert name in error.value.wrong
    assert "Nothing was changed" in error.value.why


def test_read_manifest_rejects_any_changed_byte(folder: Path) -> None:
    data = (folder / manifest.MANIFEST).read_bytes()
    for index in range(len(data)):
        (folder / manifest.MANIFEST).write_bytes(data[:index] + bytes([data[index] ^ 4]) + data[index + 1 :])
        with pytest.raises(MlstackError, match=r"manifest\.json"):
            manifest.read_manifest(folder)


def test_a_backup_says_which_mlstack_made_it(folder: Path) -> None:
    written = manifest.read_manifest(folder)
    assert written.made_by == "mlstack 0.1.0"
    assert replace(written, versions={"mlflow": "3.17.2"}).made_by == "mlstack of an unknown version"


def test_the_list_of_backups_shows_which_mlstack_made_each(folder: Path, project: Path) -> None:
    shutil.copytree(folder, project / "backups" / folder.name)
    command = [sys.executable, "-m", "mlstack", "restore"]
    done = subprocess.run(command, cwd="/", env=with_package(project), capture_output=True, text=True, check=True)
    assert re.search(rf"{folder.name} .* 3\.17\.2 .* 0\.1\.0 ", done.stdout)


def test_a_backup_of_a_newer_format_is_rejected_with_both_versions(folder: Path) -> None:
    written = manifest.read_manifest(folder)
    manifest.write(folder, replace(written, format=manifest.FORMAT + 1, versions={**written.versions, "mlstack": "99.0\n"}))
    with pytest.raises(MlstackError) as rejected:
        manifest.read_manifest(folder)
    assert rf"in format {manifest.FORMAT + 1}, written by mlstack 99.0\n; this is mlstack " + __version__ in rejected.value.wrong


def test_read_rejects_a_checksum_that_is_a_path_out_of_the_backup(folder: Path) -> None:
    line = json.dumps(
        {**json.loads((folder / manifest.OBJECTS_LIST).read_text().splitlines()[0]), "sha256": "../../../etc/passwd"}
    )
    (folder / manifest.OBJECTS_LIST).write_text(line + "\n")
    content = manifest.read_manifest(folder)
    files = {**content.files, manifest.OBJECTS_LIST: manifest.sha256_of(folder, manifest.OBJECTS_LIST)}
    manifest.write(folder, replace(content, files=files))
    with pytest.raises(MlstackError, match="not a checksum"):
        manifest.read(folder)


def test_folders_lists_complete_backups_newest_first(folder: Path) -> None:
    backups = folder.parent
    shutil.copytree(folder, backups / "20271124T065000Z")
    shutil.copytree(folder, backups / backup.INCOMPLETE)
    shutil.copytree(folder, backups / f"{backup.REMOVED}20251124T065000Z")
    (backups / "20281124T065000Z").mkdir()
    (backups / "notes.txt").touch()
    assert [path.name for path in manifest.folders(backups)] == ["20271124T065000Z", "20261124T065000Z"]
    assert manifest.folders(backups / "nowhere") == []


def test_prune_keeps_the_newest_and_the_files_it_shares_with_older_ones(folder: Path) -> None:
    newer = folder.parent / "20271124T065000Z"
    shutil.copytree(folder, newer, copy_function=os.link)
    assert list(backup.prune(folder.parent, 1)) == [folder]
    assert sorted(path.name for path in folder.parent.iterdir()) == [newer.name]
    checked(newer)


def test_require_room_rejects_a_disk_with_too_little_room(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    backup.require_room(tmp_path, 0)
    with pytest.raises(MlstackError, match="too little room") as error:
        backup.require_room(tmp_path, free)
    assert "BACKUP_DIR" in error.value.fix


def test_size_is_shown_with_a_unit() -> None:
    sizes = {0: "0 bytes", 999: "999 bytes", 1500: "1.5 kB", 2 * 10**9: "2.0 GB"}
    assert {count: size(count) for count in sizes} == sizes


def test_is_authentic_rejects_another_key_and_a_changed_manifest(folder: Path) -> None:
    assert not signature.is_authentic(folder, "a key")  # older backups have no signature
    signature.sign(folder, "a key")
    assert signature.is_authentic(folder, "a key")
    assert not signature.is_authentic(folder, "another key")
    changed = (folder / manifest.MANIFEST).read_bytes().replace(b'"runs": 1', b'"runs": 2')
    (folder / manifest.MANIFEST).write_bytes(changed)
    assert not signature.is_authentic(folder, "a key")


def test_is_authentic_rejects_a_link_or_pipe_in_place_of_the_signature(folder: Path, tmp_path: Path) -> None:
    signature.sign(folder, "a key")
    path = folder / signature.SIGNATURE
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert not signature.is_authentic(folder, "a key")
    path.unlink()
    os.mkfifo(path)
    assert not signature.is_authentic(folder, "a key")


def test_rotate_signs_the_backups_of_this_stack_again_and_no_other(folder: Path, project: Path) -> None:
    backups = project / "backups"
    ours, theirs = (backups / name for name in ("20261124T065000Z", "20261124T065001Z"))
    for path in (ours, theirs):
        shutil.copytree(folder, path)
    before, after = Stack.of(project), Stack(project, None, {"BACKUP_KEY": "fresh" * 8})
    signature.sign(ours, before.backup_key)
    signature.sign(theirs, "somebody else's")
    for _ in range(2):  # an interrupted rotation resumes
        rotate._sign_backups(before, after)
    assert signature.is_authentic(ours, after.backup_key)
    assert not signature.is_authentic(theirs, after.backup_key)
