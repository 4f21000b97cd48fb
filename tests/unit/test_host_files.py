"""Files and folders of the host: how they are made, given away, read and protected, and text from elsewhere."""

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

folder = folder_of_a_backup  # a complete backup

STRANGER = 12345
NOW = datetime(2030, 1, 1).astimezone()
NAME = "%Y%m%d_%H%M%S.log"


# ---- logs ------------------------------------------------------------------------------------------


@pytest.mark.refusal
@pytest.mark.parametrize("planted", ["link", "dangling link", "file", "pipe", "folder"])
def test_create_uses_nothing_that_is_there_already(tmp_path: Path, planted: str) -> None:
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


def test_create_makes_folder_and_file_for_their_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create(tmp_path / "logs", NAME, NOW).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "logs").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "logs" / "20300101_000000.log").stat().st_mode) == 0o600


def test_a_logger_that_logs_nothing_makes_no_file(tmp_path: Path) -> None:
    get_logger("silent", tmp_path / "logs", "INFO").debug("below the level")
    assert not (tmp_path / "logs").exists()


# ---- text from elsewhere -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "a\rb", "\x00", "\x9b31m", "\u202eabc", "\u2028", "\ud800", "\x7f"])
def test_quoted_text_has_no_character_that_a_terminal_obeys(text: str) -> None:
    assert quoted(text).isprintable()
    error = MlstackError(f"wrong {text}", f"why {text}", f"fix {text}")
    assert len(str(error).splitlines()) == 3
    assert "".join(str(error).split("\n")).isprintable()


def test_ordinary_text_is_not_changed_by_quoting() -> None:
    text = "Größe 5 µs … ‘x’ 数 \\ [bold]"
    assert quoted(text) == text


def test_quoted_lines_cannot_be_taken_for_lines_of_ours() -> None:
    assert quoted_lines(["2030-01-01 | ERROR | forged", "\x1b[1A"]) == "  | 2030-01-01 | ERROR | forged\n  | \\x1b[1A"


# ---- folders that containers write in ----------------------------------------------------------------


@pytest.fixture
def owner() -> tuple[int, int]:
    """Somebody to give files to; where the tests are not root, nobody else can be had."""
    return (STRANGER, STRANGER) if settings.is_root() else (os.getuid(), os.getgid())


@pytest.fixture
def prepared(project: Path, owner: tuple[int, int]) -> Path:
    """A project whose containers run as `owner`."""
    set_values(project, HOST_UID=str(owner[0]), HOST_GID=str(owner[1]))
    return project


def owners(*paths: Path) -> set[int]:
    return {path.lstat().st_uid for path in paths}


def test_prepare_gives_containers_their_folders_and_keeps_the_logs_of_the_host(prepared: Path, owner: tuple[int, int]) -> None:
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
def test_prepare_refuses_by_name_what_is_in_the_place_of_a_folder(
    prepared: Path, tmp_path: Path, place: str, planted: str
) -> None:
    (prepared / place).parent.mkdir()
    if planted == "link":
        (prepared / place).symlink_to(tmp_path)
    else:
        (prepared / place).write_text("gitdir: elsewhere")
    with pytest.raises(MlstackError, match="is not a folder") as refused:
        folders.prepare(Stack.of(prepared))
    assert str(prepared / place) in refused.value.wrong
    assert str(prepared / place) in refused.value.fix


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
def test_a_folder_of_the_host_inside_one_of_a_container_is_refused(project: Path, name: str, folder: str) -> None:
    (project / "notebooks").mkdir()
    (project / "link").symlink_to(project / "notebooks")
    assert preflight.check_env(Stack.of(project)) == []
    set_values(project, **{name: folder})
    (problem,) = preflight.check_env(Stack.of(project))
    assert problem.wrong.startswith(f"{name}={folder} is inside {project}/")
    assert f"set {name}" in problem.fix


def test_prepare_copes_with_a_tree_without_end(prepared: Path) -> None:
    """As a notebook can make it to use up the descriptors of a command."""
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
def test_give_gives_nothing_away_while_folders_are_exchanged_for_links(tmp_path: Path, owner: tuple[int, int]) -> None:
    """A notebook that exchanges a folder for a link between the moments in which it is looked at and given away."""
    ours, mine = tmp_path / "ours", tmp_path / "notebooks"
    ours.mkdir()
    mine.mkdir()
    for number in range(20):
        (ours / f"file{number}").touch()
    (mine / "link").symlink_to(ours)
    shutil.copytree(ours, mine / "folder")
    ended = threading.Event()

    def exchange() -> None:
        while not ended.is_set():
            for one, other in (("folder", "aside"), ("link", "folder"), ("folder", "link"), ("aside", "folder")):
                (mine / one).rename(mine / other)

    attacker = threading.Thread(target=exchange)
    attacker.start()
    try:
        for _ in range(ROUNDS):
            descriptor = os.open(mine, os.O_RDONLY)
            folders.give(descriptor, *owner)
            os.close(descriptor)
            assert owners(ours, *ours.iterdir()) == {os.getuid()}
            if settings.is_root():  # once more from the start
                for path in mine.iterdir():
                    with suppress(OSError):
                        os.chown(path, os.getuid(), os.getgid(), follow_symlinks=False)
    finally:
        ended.set()
        attacker.join()


# ---- the lock ----------------------------------------------------------------------------------------


@pytest.mark.refusal
def test_no_other_user_can_open_the_lock(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch(mode=0o644)
    with held(tmp_path, "make up"):
        assert stat.S_IMODE((tmp_path / ".lock").stat().st_mode) == 0o600


@pytest.mark.refusal
@pytest.mark.parametrize("planted", ["link", "pipe"])
def test_a_lock_that_is_no_file_is_refused(tmp_path: Path, planted: str) -> None:
    if planted == "link":
        (tmp_path / "victim").write_text("kept")
        (tmp_path / ".lock").symlink_to(tmp_path / "victim")
    else:
        os.mkfifo(tmp_path / ".lock")
    with pytest.raises(MlstackError, match="the lock cannot be taken") as refused, held(tmp_path, "make up"):
        pass
    assert "delete" in refused.value.fix
    assert planted != "link" or (tmp_path / "victim").read_text() == "kept"


# ---- make --------------------------------------------------------------------------------------------

# In the place of mlstack, pytest and the scripts: says which arguments it was given.
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
    """The Makefile, where every program that it starts is one that only shows its arguments."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / "scripts").mkdir()
    names = ["scripts/" + path.name for path in (ROOT / "scripts").glob("*.sh")]
    for name in (*names, *(f".venv/bin/{name}" for name in ("mlstack", "pytest", "python"))):
        (tmp_path / name).write_text(RECORDER)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def made(makefile: Path, *arguments: str, **environment: str) -> str:
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTEST_ADDOPTS", "YES")  # of the make that runs these tests
    inherited = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(
        ["make", *arguments], cwd=makefile, env=inherited | environment, capture_output=True, text=True, check=False
    )
    return done.stdout


@pytest.mark.refusal
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "code",
    [
        "a'; touch pwned; '", 'a"; touch pwned; "', "a; touch pwned", "a & touch pwned", "a\ntouch pwned", "`touch pwned`",
        "$(touch pwned)", "$(shell touch pwned)",
    ],
)  # fmt: skip
def test_no_variable_of_make_is_read_as_code(makefile: Path, command: str, code: str) -> None:
    names = (*VARIABLES, "YES", "JSON", "QUICK", "REPORT")
    said = made(makefile, command, *(f"{name}={code}" for name in names)), made(makefile, command, **dict.fromkeys(names, code))
    assert not (makefile / "pwned").exists()
    assert all(said)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
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
    ],
)
def test_a_variable_of_make_is_one_argument(makefile: Path, arguments: tuple[str, ...], shown: str) -> None:
    assert made(makefile, *arguments).endswith(shown)


@pytest.mark.refusal
@pytest.mark.parametrize("command", ["reset", "restore", "rotate", "gc", "user-remove"])
def test_only_yes_on_makes_command_line_is_an_answer(makefile: Path, command: str) -> None:
    for answer in ("1", "y", "yes"):
        assert "<--yes>" in made(makefile, command, f"YES={answer}")
        assert "<--yes>" not in made(makefile, command, YES=answer)
        assert "<--yes>" not in made(makefile, "-e", command, YES=answer)
    for answer in ("0", "n", "no", "", "11", "1 0", "false"):
        assert "<--yes>" not in made(makefile, command, f"YES={answer}")


# ---- backups that somebody made to do harm -------------------------------------------------------------

pytestmark = pytest.mark.timeout(60)


def checked(folder: Path) -> manifest.Backup:
    found = manifest.read(folder)
    manifest.check(found, lambda _: None)
    return found


def refuse(folder: Path) -> str:
    """What is said of a backup that is denied. A pipe that is waited for shows as a timeout of the test."""
    with pytest.raises(MlstackError) as refused:
        checked(folder)
    assert "Nothing was changed" in refused.value.why
    return refused.value.wrong


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Another manifest, with a checksum that fits it."""
    content = json.loads((folder / manifest.MANIFEST).read_text())
    change(content)
    text = json.dumps(content)
    (folder / manifest.MANIFEST).write_text(text)
    (folder / manifest.CHECKSUM).write_text(hashlib.sha256(text.encode()).hexdigest())


def with_line(folder: Path, **changes: Any) -> None:
    """Another first line of objects.jsonl, and checksums that fit it."""
    first, *rest = (folder / manifest.OBJECTS_LIST).read_text().splitlines(keepends=True)
    (folder / manifest.OBJECTS_LIST).write_text(json.dumps(json.loads(first) | changes) + "\n" + "".join(rest))
    found = manifest.read_manifest(folder)
    files = {**found.files, manifest.OBJECTS_LIST: manifest.sha256_of(folder, manifest.OBJECTS_LIST)}
    manifest.write(folder, replace(found, files=files))


OBJECT = manifest.path_of(hashlib.sha256(b"a model").hexdigest())
FILES = (manifest.MANIFEST, manifest.CHECKSUM, manifest.DUMP, manifest.OBJECTS_LIST, OBJECT)


@pytest.mark.refusal
@pytest.mark.parametrize("name", FILES, ids=["manifest", "checksum", "dump", "list", "object"])
@pytest.mark.parametrize("kind", ["pipe", "link", "link to a folder's file", "folder", "device"])
def test_a_backup_with_anything_but_files_is_refused_by_name(folder: Path, tmp_path: Path, name: str, kind: str) -> None:
    path, kept = folder / name, tmp_path / "kept"
    path.rename(kept)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to(kept)  # the same content, so that its checksum fits
        case "link to a folder's file":
            parent = path.parent if path.parent != folder else path
            shutil.rmtree(parent, ignore_errors=True)
            parent.symlink_to(tmp_path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
    assert name in refuse(folder)


@pytest.mark.refusal
@pytest.mark.parametrize(
    "key",
    ["../escaped", "a/../../escaped", "/etc/passwd", "a//b", "./a", "a/./b", "..", ".", "", "/", "a\0b", "x" * 1025, "\ud800"],
)
def test_a_backup_with_a_key_that_no_bucket_holds_is_refused(folder: Path, key: str) -> None:
    with_line(folder, key=key)
    assert manifest.OBJECTS_LIST in refuse(folder)


@pytest.mark.refusal
@pytest.mark.parametrize(
    "changes",
    [
        {"size": -1}, {"size": "7"}, {"size": 7.0}, {"size": True}, {"size": None}, {"size": 8}, {"key": 1}, {"key": None},
        {"etag": []}, {"version": {}}, {"sha256": "x"}, {"sha256": 5}, {"headers": []}, {"headers": {"content-type": 1}},
        {"headers": {"content-type": "a\r\nx-evil: 1"}}, {"headers": {"x-amz-acl": "public-read"}}, {"more": 1},
        {"key": "run/copy.pkl"},
    ],
    ids=str,
)  # fmt: skip
def test_a_backup_with_a_line_of_other_types_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    with_line(folder, **changes)
    said = refuse(folder)
    assert manifest.OBJECTS_LIST in said or OBJECT in said


@pytest.mark.refusal
@pytest.mark.parametrize(
    "changes",
    [
        {"format": "1"}, {"format": 1.0}, {"format": True}, {"format": None}, {"created": 5}, {"created": "yesterday"},
        {"created": "2026-11-24T06:50:00"}, {"bytes": -1}, {"bytes": float("nan")}, {"bytes": "13"}, {"versions": []},
        {"versions": {}}, {"versions": {"mlflow": 3, "postgres": "17"}}, {"bucket": None}, {"bucket": "\x1b[2J"}, {"owners": "x"},
        {"counts": {"runs": "1"}}, {"counts": {"\x1b[2J": 1}}, {"tables": {"public.runs": 1}}, {"files": {}}, {"more": 1},
        {"tables": {"public.runs": {"rows": "1", "checksum": "0"}}}, {"files": {"database.dump": 1, "objects.jsonl": 2}},
        {"format": 2, "versions": "new"},
    ],
    ids=str,
)  # fmt: skip
def test_a_backup_with_a_manifest_of_other_types_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    rewritten(folder, lambda content: content.update(changes))
    said = refuse(folder)
    assert manifest.MANIFEST in said
    assert "\x1b" not in said


@pytest.mark.refusal
@pytest.mark.parametrize("name", [manifest.MANIFEST, manifest.OBJECTS_LIST])
@pytest.mark.parametrize("what", ["deep", "deep fields", "large", "no object", "a long number", "no text"])
def test_a_backup_with_a_manifest_that_no_parser_can_take_is_refused(folder: Path, name: str, what: str) -> None:
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
    assert name in refuse(folder)


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user beside the backups, which must keep its file."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("kept")
    yield victim
    assert (victim / "file").read_text() == "kept"


@pytest.mark.refusal
@pytest.mark.parametrize("place", ["", "objects", "objects/ab", "database.dump", "journal.jsonl", "manifest.json"])
def test_an_interrupted_backup_that_came_from_elsewhere_leads_nowhere(tmp_path: Path, victim: Path, place: str) -> None:
    """As part of a folder of backups that somebody handed over."""
    work = tmp_path / "backups" / backing_up.INCOMPLETE
    path = work / place
    path.parent.mkdir(parents=True)
    path.symlink_to(victim if "." not in place else victim / "file")
    assert backing_up._prepared(tmp_path / "backups") == work
    assert [found for found in (tmp_path / "backups").rglob("*") if found.is_symlink()] == []
    backing_up._drop_unused(work, [])


def test_an_interrupted_backup_keeps_its_journal_and_objects(tmp_path: Path) -> None:
    work = tmp_path / "backups" / backing_up.INCOMPLETE
    (work / "objects/ab").mkdir(parents=True)
    for name in ("journal.jsonl", "objects/ab/abcd", "database.dump"):
        (work / name).write_text("x")
    backing_up._prepared(tmp_path / "backups")
    left = {str(path.relative_to(work)) for path in work.rglob("*") if path.is_file()}
    assert left == {"journal.jsonl", "objects/ab/abcd"}
