"""Files and folders of the host: how they are created, chowned, read and protected; and untrusted text."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest

from mlstack import settings
from mlstack.errors import MlstackError, quoted, quoted_lines
from mlstack.host import folders, preflight
from mlstack.host.backup import manifest
from mlstack.host.commands import backup as backing_up
from mlstack.host.lock import held
from mlstack.host.stack import Stack
from mlstack.logger import create, get_logger
from tests.support.projects import ROOT, set_values
from tests.unit.test_backup import folder as folder_of_a_backup

folder = folder_of_a_backup  # pytest finds the fixture by this name

OTHER_UID = 12345
NOW = datetime(2030, 1, 1).astimezone()
NAME = "%Y%m%d_%H%M%S.log"


# ---- logs ------------------------------------------------------------------------------------------


@pytest.mark.refusal
@pytest.mark.parametrize("planted", ["link", "dangling link", "file", "pipe", "folder"])
def test_create_uses_no_existing_file_or_link(tmp_path: Path, planted: str) -> None:
    victim, place = tmp_path / "victim", tmp_path / "logs" / "20300101_000000.log"
    place.parent.mkdir()
    match planted:
        case "link":
            victim.write_text("kept")
            place.symlink_to(victim)
        case "dangling link":
            place.symlink_to(victim)
        case "file":
            place.write_text("kept")
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
    with create(place.parent, NAME, NOW) as file:
        file.write("ours")
    assert (tmp_path / "logs" / "20300101_000001.log").read_text() == "ours"
    assert not victim.exists() or victim.read_text() == "kept"
    assert planted != "file" or place.read_text() == "kept"


def test_create_makes_folder_and_file_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create(tmp_path / "logs", NAME, NOW).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "logs").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "logs" / "20300101_000000.log").stat().st_mode) == 0o600


def test_logger_without_a_record_creates_no_file(tmp_path: Path) -> None:
    get_logger("silent", tmp_path / "logs", "INFO").debug("below the level")
    assert not (tmp_path / "logs").exists()


# ---- untrusted text ----------------------------------------------------------------------------------


def test_quoted_escapes_control_characters(subtests: pytest.Subtests) -> None:
    for text in ("\x1b[2J", "a\nb", "a\rb", "\x00", "\x9b31m", "\u202eabc", "\u2028", "\ud800", "\x7f"):
        with subtests.test(text=text):
            assert quoted(text).isprintable()
            error = MlstackError(f"wrong {text}", f"why {text}", f"fix {text}")
            assert len(str(error).splitlines()) == 3
            assert "".join(str(error).split("\n")).isprintable()


def test_quoted_leaves_ordinary_text_unchanged() -> None:
    text = "Größe 5 µs … ‘x’ 数 \\ [bold]"
    assert quoted(text) == text


def test_quoted_lines_cannot_pass_for_lines_of_mlstack() -> None:
    assert quoted_lines(["2030-01-01 | ERROR | forged", "\x1b[1A"]) == "  | 2030-01-01 | ERROR | forged\n  | \\x1b[1A"


# ---- folders that containers write in ----------------------------------------------------------------


@pytest.fixture
def owner() -> tuple[int, int]:
    """The uid and gid to give files to: another user's if the tests run as root, otherwise their own."""
    return (OTHER_UID, OTHER_UID) if settings.is_root() else (os.getuid(), os.getgid())


@pytest.fixture
def prepared(project: Path, owner: tuple[int, int]) -> Path:
    """A project whose containers run as `owner`."""
    set_values(project, HOST_UID=str(owner[0]), HOST_GID=str(owner[1]))
    return project


def owners(*paths: Path) -> set[int]:
    return {path.lstat().st_uid for path in paths}


def test_prepare_chowns_the_folders_of_containers_and_keeps_the_hosts_logs(prepared: Path, owner: tuple[int, int]) -> None:
    (prepared / "notebooks/deep").mkdir(parents=True)
    (prepared / "notebooks/deep/mine.ipynb").touch()
    (prepared / "logs").mkdir(mode=0o755)
    (prepared / "logs/20200101_000000.log").touch()  # of an older version
    folders.prepare(Stack.of(prepared))
    folders.prepare(Stack.of(prepared))
    logs = (prepared / "logs" / name for name in ("bootstrap", "migration", "jupyter"))
    assert owners(prepared / "notebooks", *(prepared / "notebooks").rglob("*"), *logs) == {owner[0]}
    assert owners(prepared / "logs", prepared / "logs/20200101_000000.log") == {os.getuid()}
    assert stat.S_IMODE((prepared / "logs").stat().st_mode) == 0o700
    folders.tidy(prepared)
    assert [path.name for path in (prepared / "notebooks").iterdir()] == ["deep"]


@pytest.mark.refusal
def test_prepare_follows_no_link_out_of_a_folder(prepared: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (prepared / "notebooks").mkdir()
    (prepared / "notebooks/folder").symlink_to(outside)
    (prepared / "notebooks/file").symlink_to(outside / "file")
    os.mkfifo(prepared / "notebooks/pipe")
    folders.prepare(Stack.of(prepared))
    assert owners(outside, outside / "file") == {os.getuid()}


@pytest.mark.refusal
@pytest.mark.parametrize("place", ["logs/jupyter", "notebooks/.git", "notebooks/HEAD"])
@pytest.mark.parametrize("planted", ["link", "file"])
def test_prepare_rejects_a_link_or_file_in_place_of_a_folder(prepared: Path, tmp_path: Path, place: str, planted: str) -> None:
    (prepared / place).parent.mkdir()
    if planted == "link":
        (prepared / place).symlink_to(tmp_path)
    else:
        (prepared / place).write_text("gitdir: elsewhere")
    with pytest.raises(MlstackError, match="is not a folder") as error:
        folders.prepare(Stack.of(prepared))
    assert str(prepared / place) in error.value.wrong
    assert str(prepared / place) in error.value.fix


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("LOG_DIR", "notebooks"),
        ("LOG_DIR", "./notebooks/logs"),
        ("LOG_DIR", "link"),
        ("BACKUP_DIR", "notebooks/backups"),
        ("BACKUP_DIR", "logs/jupyter"),
    ],
)
def test_check_env_rejects_a_host_folder_inside_one_of_a_container(project: Path, name: str, folder: str) -> None:
    (project / "notebooks").mkdir()
    (project / "link").symlink_to(project / "notebooks")
    assert preflight.check_env(Stack.of(project)) == []
    set_values(project, **{name: folder})
    (problem,) = preflight.check_env(Stack.of(project))
    assert problem.wrong.startswith(f"{name}={folder} is inside {project}/")
    assert f"set {name}" in problem.fix


def test_prepare_survives_a_very_deep_folder(prepared: Path) -> None:
    """A notebook can create one to exhaust the file descriptors of a command."""
    (prepared / "notebooks").mkdir()
    descriptor = os.open(prepared / "notebooks", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("x", dir_fd=descriptor)
        inner = os.open("x", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    folders.prepare(Stack.of(prepared))
    subprocess.run(["rm", "-rf", prepared / "notebooks"], check=True)


ROUNDS = 300


@pytest.mark.refusal
def test_give_chowns_nothing_outside_while_folders_are_swapped_for_links(tmp_path: Path, owner: tuple[int, int]) -> None:
    """A notebook swaps a folder for a link between the check and the chown."""
    ours, mine = tmp_path / "ours", tmp_path / "notebooks"
    ours.mkdir()
    mine.mkdir()
    for number in range(20):
        (ours / f"file{number}").touch()
    (mine / "link").symlink_to(ours)
    shutil.copytree(ours, mine / "folder")
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            for source, target in (("folder", "aside"), ("link", "folder"), ("folder", "link"), ("aside", "folder")):
                (mine / source).rename(mine / target)

    attacker = threading.Thread(target=swap)
    attacker.start()
    try:
        for _ in range(ROUNDS):
            descriptor = os.open(mine, os.O_RDONLY)
            folders.give(descriptor, *owner)
            os.close(descriptor)
            assert owners(ours, *ours.iterdir()) == {os.getuid()}
            if settings.is_root():  # undo, for the next round
                for path in mine.iterdir():
                    with suppress(OSError):
                        os.chown(path, os.getuid(), os.getgid(), follow_symlinks=False)
    finally:
        ended.set()
        attacker.join()


# ---- the lock ----------------------------------------------------------------------------------------


@pytest.mark.refusal
def test_lock_file_is_private(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch(mode=0o644)
    with held(tmp_path, "make up"):
        assert stat.S_IMODE((tmp_path / ".lock").stat().st_mode) == 0o600


@pytest.mark.refusal
@pytest.mark.parametrize("planted", ["link", "pipe"])
def test_lock_rejects_a_link_or_pipe(tmp_path: Path, planted: str) -> None:
    if planted == "link":
        (tmp_path / "victim").write_text("kept")
        (tmp_path / ".lock").symlink_to(tmp_path / "victim")
    else:
        os.mkfifo(tmp_path / ".lock")
    with pytest.raises(MlstackError, match="the lock cannot be taken") as error, held(tmp_path, "make up"):
        pass
    assert "delete" in error.value.fix
    assert planted != "link" or (tmp_path / "victim").read_text() == "kept"


# ---- make --------------------------------------------------------------------------------------------

# Replaces mlstack, pytest and the scripts, and prints its arguments.
RECORDER = """#!/bin/sh
for argument in "$(basename "$0")" "$@" ${PYTEST_ADDOPTS:+"$PYTEST_ADDOPTS"}; do printf "<%s>" "$argument"; done
"""
VARIABLES = ("BACKUP", "KEEP", "LINES", "NAME", "OLDER_THAN", "REPETITIONS", "RESULTS", "SEED", "SERVICE", "TESTS")
COMMANDS = (
    "backup",
    "bench",
    "gc",
    "logs",
    "restore",
    "test",
    "test-conformance",
    "test-faults",
    "test-slow",
    "user",
    "user-remove",
    "verify",
)


@pytest.fixture
def makefile(tmp_path: Path) -> Path:
    """The Makefile, with every program that it starts replaced by one that prints its arguments."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / "scripts").mkdir()
    names = ["scripts/" + path.name for path in (ROOT / "scripts").glob("*.sh")]
    for name in (*names, *(f".venv/bin/{name}" for name in ("mlstack", "pytest", "python"))):
        (tmp_path / name).write_text(RECORDER)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def run_make(makefile: Path, *arguments: str, **environment: str) -> str:
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTEST_ADDOPTS", "YES")  # of the make that runs these tests
    inherited = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(
        ["make", *arguments], cwd=makefile, env=inherited | environment, capture_output=True, text=True, check=False
    )
    return done.stdout


@pytest.mark.refusal
@pytest.mark.parametrize("command", COMMANDS)
def test_make_runs_no_code_in_a_variable(makefile: Path, command: str, subtests: pytest.Subtests) -> None:
    names = (*VARIABLES, "YES", "JSON", "QUICK", "REPORT")
    for code in (
        "a'; touch pwned; '", 'a"; touch pwned; "', "a; touch pwned", "a & touch pwned", "a\ntouch pwned", "`touch pwned`",
        "$(touch pwned)", "$(shell touch pwned)",
    ):  # fmt: skip
        with subtests.test(code=code):
            on_command_line = run_make(makefile, command, *(f"{name}={code}" for name in names))
            in_environment = run_make(makefile, command, **dict.fromkeys(names, code))
            assert not (makefile / "pwned").exists()
            assert on_command_line and in_environment


def test_make_passes_a_variable_as_one_argument(makefile: Path, subtests: pytest.Subtests) -> None:
    for arguments, expected in (
        (("user", "NAME=o'neil & co"), "<mlstack><user><--name=o'neil & co>"),
        (("restore", "BACKUP=my disk/latest"), "<up.sh><restore><--><my disk/latest>"),
        (("restore", "BACKUP=--yes"), "<up.sh><restore><--><--yes>"),
        (("restore", "BACKUP=latest", "YES=1"), "<up.sh><restore><--yes><--><latest>"),
        (("gc", "OLDER_THAN=7d", "YES=y"), "<mlstack><gc><--older-than=7d><--yes>"),
        (("backup", "KEEP=3"), "<mlstack><backup><--keep=3>"),
        (("backup",), "<mlstack><backup>"),
        (("status", "JSON=1"), "<mlstack><status><--json>"),
        (("logs", "SERVICE=mlflow"), "<mlstack><logs><--><mlflow>"),
        (("test", "TESTS=tests/unit -k 'a or b'"), "<test.sh>< tests/unit -k 'a or b'>"),
        (("bench", "QUICK=1", "LINES=loop,file"), "<python><-m><benchmarks><--quick><--lines=loop,file>"),
    ):
        with subtests.test(arguments=arguments):
            assert run_make(makefile, *arguments).endswith(expected)


@pytest.mark.refusal
@pytest.mark.parametrize("command", ["reset", "restore", "rotate", "gc", "user-remove"])
def test_only_yes_on_makes_command_line_answers_a_question(makefile: Path, command: str) -> None:
    for answer in ("1", "y", "yes"):
        assert "<--yes>" in run_make(makefile, command, f"YES={answer}")
        assert "<--yes>" not in run_make(makefile, command, YES=answer)
        assert "<--yes>" not in run_make(makefile, "-e", command, YES=answer)
    for answer in ("0", "n", "no", "", "11", "1 0", "false"):
        assert "<--yes>" not in run_make(makefile, command, f"YES={answer}")


# ---- malicious backups -------------------------------------------------------------------------------


def rejection(folder: Path) -> str:
    """Why a backup is rejected. If a pipe is waited for, the test times out."""
    with pytest.raises(MlstackError) as error:
        manifest.check(manifest.read(folder), lambda _: None)
    assert "Nothing was changed" in error.value.why
    return error.value.wrong


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest, and its checksum accordingly."""
    content = json.loads((folder / manifest.MANIFEST).read_text())
    change(content)
    text = json.dumps(content)
    (folder / manifest.MANIFEST).write_text(text)
    (folder / manifest.CHECKSUM).write_text(hashlib.sha256(text.encode()).hexdigest())


def with_line(folder: Path, **changes: Any) -> None:
    """Changes the first line of objects.jsonl, and the checksums accordingly."""
    first, *rest = (folder / manifest.OBJECTS_LIST).read_text().splitlines(keepends=True)
    (folder / manifest.OBJECTS_LIST).write_text(json.dumps(json.loads(first) | changes) + "\n" + "".join(rest))
    content = manifest.read_manifest(folder)
    files = {**content.files, manifest.OBJECTS_LIST: manifest.sha256_of(folder, manifest.OBJECTS_LIST)}
    manifest.write(folder, replace(content, files=files))


OBJECT = manifest.path_of(hashlib.sha256(b"a model").hexdigest())
FILES = (manifest.MANIFEST, manifest.CHECKSUM, manifest.DUMP, manifest.OBJECTS_LIST, OBJECT)


@pytest.fixture
def copies(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """Any number of copies of the backup."""
    return (shutil.copytree(folder, tmp_path / f"copy{number}" / folder.name) for number in count())


@pytest.mark.refusal
def test_backup_with_a_link_pipe_folder_or_device_is_rejected(copies: Iterator[Path], subtests: pytest.Subtests) -> None:
    for name, kind in product(FILES, ("pipe", "link", "link to a folder's file", "folder", "device")):
        with subtests.test(name=name, kind=kind):
            copy = next(copies)
            path, kept = copy / name, copy.parent / "kept"
            path.rename(kept)
            match kind:
                case "pipe":
                    os.mkfifo(path)
                case "link":
                    path.symlink_to(kept)  # the same content, so that its checksum is right
                case "link to a folder's file":
                    parent = path.parent if path.parent != copy else path
                    shutil.rmtree(parent, ignore_errors=True)
                    parent.symlink_to(copy.parent)
                case "folder":
                    path.mkdir()
                case "device":
                    path.symlink_to("/dev/zero")
            assert name in rejection(copy)


@pytest.mark.refusal
def test_backup_with_an_object_key_outside_a_bucket_is_rejected(copies: Iterator[Path], subtests: pytest.Subtests) -> None:
    for key in (
        "../escaped", "a/../../escaped", "/etc/passwd", "a//b", "./a", "a/./b", "..", ".", "", "/", "a\0b", "x" * 1025, "\ud800"
    ):  # fmt: skip
        with subtests.test(key=key):
            copy = next(copies)
            with_line(copy, key=key)
            assert manifest.OBJECTS_LIST in rejection(copy)


@pytest.mark.refusal
def test_backup_with_a_wrong_type_in_its_list_is_rejected(copies: Iterator[Path], subtests: pytest.Subtests) -> None:
    lines: tuple[dict[str, Any], ...] = (
        {"size": -1}, {"size": "7"}, {"size": 7.0}, {"size": True}, {"size": None}, {"size": 8}, {"key": 1}, {"key": None},
        {"etag": []}, {"version": {}}, {"sha256": "x"}, {"sha256": 5}, {"headers": []}, {"headers": {"content-type": 1}},
        {"headers": {"content-type": "a\r\nx-evil: 1"}}, {"headers": {"x-amz-acl": "public-read"}}, {"more": 1},
        {"key": "run/copy.pkl"},
    )  # fmt: skip
    for changes in lines:
        with subtests.test(changes=changes):
            copy = next(copies)
            with_line(copy, **changes)
            reason = rejection(copy)
            assert manifest.OBJECTS_LIST in reason or OBJECT in reason


@pytest.mark.refusal
def test_backup_with_a_wrong_type_in_its_manifest_is_rejected(copies: Iterator[Path], subtests: pytest.Subtests) -> None:
    manifests: tuple[dict[str, Any], ...] = (
        {"format": "1"}, {"format": 1.0}, {"format": True}, {"format": None}, {"created": 5}, {"created": "yesterday"},
        {"created": "2026-11-24T06:50:00"}, {"bytes": -1}, {"bytes": float("nan")}, {"bytes": "13"}, {"versions": []},
        {"versions": {}}, {"versions": {"mlflow": 3, "postgres": "17"}}, {"bucket": None}, {"bucket": "\x1b[2J"}, {"owners": "x"},
        {"counts": {"runs": "1"}}, {"counts": {"\x1b[2J": 1}}, {"tables": {"public.runs": 1}}, {"files": {}}, {"more": 1},
        {"tables": {"public.runs": {"rows": "1", "checksum": "0"}}}, {"files": {"database.dump": 1, "objects.jsonl": 2}},
        {"format": 2, "versions": "new"},
    )  # fmt: skip
    for changes in manifests:
        with subtests.test(changes=changes):
            copy = next(copies)
            rewritten(copy, lambda content, changes=changes: content.update(changes))
            reason = rejection(copy)
            assert manifest.MANIFEST in reason
            assert "\x1b" not in reason


@pytest.mark.refusal
@pytest.mark.parametrize("name", [manifest.MANIFEST, manifest.OBJECTS_LIST])
@pytest.mark.parametrize("what", ["deep", "deep fields", "large", "no object", "a long number", "no text"])
def test_backup_with_a_manifest_that_exhausts_a_parser_is_rejected(folder: Path, name: str, what: str) -> None:
    path = folder / name
    match what:
        case "deep":
            path.write_text("[" * 1_000_000)
        case "deep fields":
            path.write_text('{"a":' * 1_000_000)
        case "large":
            os.truncate(path, 1 << 40)  # a sparse file: it takes no room on the disk, and all of the memory
        case "no object":
            path.write_text("[]\n")
        case "a long number":
            path.write_text('{"format": ' + "9" * 10_000 + "}")
        case "no text":
            path.write_bytes(b"\xff\xfe\x00")
    assert name in rejection(folder)


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the backups, whose file must stay."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("kept")
    yield victim
    assert (victim / "file").read_text() == "kept"


@pytest.mark.refusal
@pytest.mark.parametrize("place", ["", "objects", "objects/ab", "database.dump", "journal.jsonl", "manifest.json"])
def test_links_in_an_interrupted_backup_are_removed_and_not_followed(tmp_path: Path, victim: Path, place: str) -> None:
    """They may be part of a folder of backups from an untrusted source."""
    work = tmp_path / "backups" / backing_up.INCOMPLETE
    path = work / place
    path.parent.mkdir(parents=True)
    path.symlink_to(victim if "." not in place else victim / "file")
    assert backing_up._prepared(tmp_path / "backups") == work
    assert [path for path in (tmp_path / "backups").rglob("*") if path.is_symlink()] == []
    backing_up._drop_unused(work, [])


def test_interrupted_backup_keeps_its_journal_and_objects(tmp_path: Path) -> None:
    work = tmp_path / "backups" / backing_up.INCOMPLETE
    (work / "objects/ab").mkdir(parents=True)
    for name in ("journal.jsonl", "objects/ab/abcd", "database.dump"):
        (work / name).write_text("x")
    backing_up._prepared(tmp_path / "backups")
    left = {str(path.relative_to(work)) for path in work.rglob("*") if path.is_file()}
    assert left == {"journal.jsonl", "objects/ab/abcd"}
