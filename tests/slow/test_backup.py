"""Backup, restore and verify as a user meets them: while clients write, onto fresh secrets, damaged, interrupted, full."""

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from mlstack import __version__, settings
from mlstack.host.backup import bucket, data_services, manifest, postgres
from mlstack.host.backup.manifest import Artifact, Backup
from mlstack.host.commands import backup as backing_up
from mlstack.host.compose import docker
from mlstack.host.lock import held
from mlstack.host.stack import Stack
from mlstack.postgres import connected
from tests.support.clone import Clone
from tests.support.readme import at_a_terminal
from tests.support.service import wait_until
from tests.support.work import admin, everything, fill, finished, started

COLLEAGUE = {"username": "colleague", "password": secrets.token_urlsafe()}
SECRETS = [name for name, variable in settings.VARIABLES.items() if variable.secret and not variable.optional]
# Objects of a data set: a file, and its manifest.
DATA = (f"trips/{'0' * 32}/data.csv", f".manifests/trips/{'0' * 32}.json")


@pytest.fixture(scope="module")
def full(clone: Clone) -> Iterator[Clone]:
    """A stack with work in it, a user's account, and objects with every awkward kind of name."""
    with clone.started():
        fill(clone)
        uri, account = admin(clone)
        created = requests.post(f"{uri}/api/2.0/mlflow/users/create", json=COLLEAGUE, auth=account, timeout=60)
        assert created.ok, created.text
        client, name = storage(clone)
        for key in ("odd/UPPER", "odd/upper", "odd/a\\b", "odd/tab\there", 'odd/:*?"<>|', "odd/" + "long" * 60, "odd/trailing."):
            client.put_object(name, key, *content(key), metadata={"note": "kept"})
        for key in DATA:
            client.put_object(datasets(clone), key, *content(key), metadata={"files": "1"})
        yield clone


@pytest.fixture(scope="module")
def first(full: Clone) -> Backup:
    """The first backup of that stack."""
    return taken(full)


def content(text: str) -> tuple[Any, int]:
    return io.BytesIO(text.encode()), len(text.encode())


def storage(clone: Clone) -> tuple[Any, str]:
    """The bucket with its owner's keys."""
    keys = Stack.of(clone.folder).keys
    return data_services.storage_client(keys), keys.bucket


def datasets(clone: Clone) -> str:
    """The bucket for data sets."""
    return Stack.of(clone.folder).keys.datasets


def taken(clone: Clone, **options: str) -> Backup:
    """Takes a backup as a user does."""
    done = clone.make("backup", **options)
    assert done.returncode == 0, done.stderr
    assert not [name for name in SECRETS if clone.values[name] in done.stdout + done.stderr]
    return manifest.read(newest(clone))


def newest(clone: Clone) -> Path:
    return manifest.folders(clone.folder / "backups")[0]


def state(clone: Clone) -> tuple[object, dict[str, tuple[str, int]]]:
    """Everything that a restore could change: every table, and every object with its ETag and size."""
    target = Stack.of(clone.folder)
    with postgres.connected(target) as connection:
        tables = postgres.tables(target, connection)
    client, _ = storage(clone)
    objects = {(name, key): row for name in target.keys.buckets for key, row in bucket.current(client, name).items()}
    return tables, {f"{name}/{key}": (row.etag, row.size) for (name, key), row in objects.items()}


def leftovers(clone: Clone) -> list[str]:
    """Databases that exist only while a command runs, and those that accept no connections."""
    target = Stack.of(clone.folder)
    with postgres.server(target) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database WHERE datname ~ '_(restoring|replaced)$' OR NOT datallowconn")
        return [name for (name,) in cursor.fetchall() if name != "template0"]


# ---- backup ------------------------------------------------------------------------------------


def test_backup_is_private_and_contains_no_secret(full: Clone, first: Backup) -> None:
    assert not [path for path in (first.folder, *first.folder.rglob("*")) if path.stat().st_mode & 0o077]
    written = b"".join(path.read_bytes() for path in first.folder.rglob("*") if path.is_file())
    assert not [name for name in SECRETS if full.values[name].encode() in written]


def test_manifest_describes_the_backup(full: Clone, first: Backup) -> None:
    contents = json.loads((first.folder / "manifest.json").read_text())
    assert first.folder.name == f"{first.manifest.time:%Y%m%dT%H%M%SZ}"
    assert contents["counts"]["runs"] == 12
    assert contents["counts"]["accounts"] == 3
    assert contents["counts"]["artifacts"] == len(first.artifacts) > 30
    assert contents["counts"]["files of data sets"] == len(first.datasets or ()) == len(DATA)
    assert contents["versions"]["mlstack"] == __version__
    assert contents["versions"]["mlflow"] == "3.17.2"
    assert contents["versions"]["postgres"].startswith("17.")
    assert contents["versions"]["minio"].startswith("RELEASE.")
    data = [*(first.folder / name for name in first.manifest.dumps), *(first.folder / "objects").rglob("?" * 64)]
    assert contents["bytes"] == sum(path.stat().st_size for path in data)
    checked = subprocess.run(["sha256sum", "--check", "manifest.json.sha256"], cwd=first.folder, capture_output=True, check=False)
    assert checked.returncode == 0
    shown = full.make("restore")
    assert shown.returncode == 0
    assert first.folder.name in shown.stdout
    assert __version__ in shown.stdout


def test_second_backup_copies_only_new_data_and_both_are_complete(full: Clone, first: Backup) -> None:
    client, name = storage(full)
    client.put_object(name, "new/one", *content("new" * 1000))
    second = taken(full)
    dump = sum((second.folder / name).stat().st_size for name in second.manifest.dumps)
    assert second.manifest.new_bytes == dump + 3000
    by_key = {artifact.key: artifact for artifact in first.artifacts}
    shared = [artifact for artifact in second.artifacts if artifact.key in by_key]
    assert len(shared) == len(first.artifacts)
    for artifact in shared:
        assert (second.folder / artifact.path).samefile(first.folder / artifact.path)
    client.remove_object(name, "new/one")


def test_backup_does_not_copy_damage_from_the_previous_one(full: Clone, first: Backup) -> None:
    previous = manifest.read(newest(full))
    victim = next(artifact for artifact in previous.artifacts if artifact.size > 1000)
    original = (previous.folder / victim.path).read_bytes()
    flip(previous.folder / victim.path)
    try:
        following = taken(full)
        assert (following.folder / victim.path).read_bytes() == original
    finally:
        rewrite(first.folder / victim.path, original)


def test_backup_is_point_in_time_consistent_while_clients_write(full: Clone) -> None:
    """A row for each object is written after it, as MLflow does; the backup never has a row without its object."""
    target, (client, name) = Stack.of(full.folder), storage(full)
    keys = [f"moving/{number}" for number in range(40)]
    for key in keys:
        client.put_object(name, key, *content(f"{key} before" * 2000))
    stop, written = threading.Event(), 0

    def write() -> None:
        nonlocal written
        with connected(target.tracking) as connection, connection.cursor() as cursor:
            while not stop.is_set():
                client.put_object(name, f"pair/{written}", *content(f"pair {written}"))
                cursor.execute("INSERT INTO pairs VALUES (%s)", (written,))
                key = keys[written % len(keys)]
                if written % 3:
                    client.put_object(name, key, *content(f"after {written}"))
                else:
                    client.remove_object(name, key)
                written += 1

    with connected(target.tracking) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE pairs (number int)")
        writer = threading.Thread(target=write)
        writer.start()
        process = started(*admin(full), "fill", "--runs=4", "--points=400", "--megabytes=2", "--seed=3")
        try:
            backup = taken(full)
            during = written
        finally:
            stop.set()
            writer.join()
            finished(process)
            cursor.execute("DROP TABLE pairs")
    manifest.check(backup, lambda _: None)
    rows = backup.manifest.tables["public.pairs"].rows
    assert 0 < rows < during
    pairs = {artifact.key for artifact in backup.artifacts if artifact.key.startswith("pair/")}
    # One more object may exist: its row was about to be written.
    assert {f"pair/{number}" for number in range(rows)} <= pairs <= {f"pair/{number}" for number in range(rows + 1)}
    held = {artifact.key: (backup.folder / artifact.path).read_text() for artifact in backup.artifacts if artifact.key in keys}
    moving = {key: f"{key} before" * 2000 for key in keys}
    for number in range(rows - 1):
        key = keys[number % len(keys)]
        moving.pop(key, None)
        if number % 3:
            moving[key] = f"after {number}"
    undecided = keys[(rows - 1) % len(keys)]  # its change came after the last row: before or after the backup's point in time
    assert {key: text for key, text in held.items() if key != undecided} == {
        key: text for key, text in moving.items() if key != undecided
    }


def test_interrupted_backup_resumes_and_is_never_listed(full: Clone) -> None:
    shutil.rmtree(full.folder / "backups")  # everything has to be copied again
    client, name = storage(full)
    for number in range(30):
        client.put_object(name, f"large/{number}", *content(f"{number:04}" * 250_000))
    work = full.folder / "backups/.incomplete"
    process = subprocess.Popen(
        [".venv/bin/mlstack", "backup"], cwd=full.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    journal = work / backing_up.JOURNAL
    wait_until(lambda: journal.exists() and journal.read_text().count("\n") >= 10, interval=0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    copied = len(journal.read_text().splitlines())
    assert manifest.folders(full.folder / "backups") == []
    done = full.make("backup")
    assert done.returncode == 0, done.stderr
    assert "going on with a backup that was interrupted" in done.stderr
    backup = manifest.read(newest(full))
    whole = sum({artifact.sha256: artifact.size for artifact in backup.artifacts}.values())
    dumps = sum((backup.folder / name).stat().st_size for name in backup.manifest.dumps)
    assert copied >= 10 and backup.manifest.new_bytes - dumps < whole
    manifest.check(backup, lambda _: None)
    assert not work.exists()
    for number in range(30):
        client.remove_object(name, f"large/{number}")


def test_ctrl_c_stops_a_backup_and_reports_no_damage(full: Clone) -> None:
    process = subprocess.Popen(
        [".venv/bin/mlstack", "backup"], cwd=full.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Stopped. Nothing is broken" in output
    assert "Traceback" not in output


def test_backup_with_keep_removes_the_oldest(full: Clone) -> None:
    taken(full)
    before = manifest.folders(full.folder / "backups")
    assert len(before) >= 2
    taken(full, KEEP="2")
    after = manifest.folders(full.folder / "backups")
    assert len(after) == 2
    assert after[1:] == before[:1]
    manifest.check(manifest.read(after[1]), lambda _: None)


@pytest.mark.parametrize("command", ["backup", "restore", "verify", "upgrade"])
def test_second_command_is_rejected_and_names_the_running_one(full: Clone, command: str) -> None:
    with held(full.folder, "make backup"):
        refused = full.make(command, BACKUP="latest", YES="1")
    assert refused.returncode != 0
    assert f"make backup, process {os.getpid()}" in refused.stderr


# ---- restore: refused ---------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    rewrite(path, bytes(data))


def rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def flip_an_object(folder: Path) -> str:
    path = folder / largest(folder).path
    flip(path)
    return path.name


def lose_an_object(folder: Path) -> str:
    path = folder / largest(folder).path
    path.unlink()
    return f"{path.name} (artifact {largest(folder).key}) is missing"


def flip_the_dump(folder: Path) -> str:
    flip(folder / "database.dump")
    return "database.dump"


def cut_the_dump(folder: Path) -> str:
    rewrite(folder / "database.dump", (folder / "database.dump").read_bytes()[:-1])
    return "database.dump"


def lose_the_dump(folder: Path) -> str:
    (folder / "database.dump").unlink()
    return "database.dump is missing"


def flip_the_manifest(folder: Path) -> str:
    rewrite(folder / "manifest.json", (folder / "manifest.json").read_bytes().replace(b'"runs": ', b'"runs":  '))
    return "manifest.json"


def lose_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "manifest.json is missing"


def flip_the_list(folder: Path) -> str:
    flip(folder / "objects.jsonl")
    return "objects.jsonl"


def newer_format(folder: Path) -> str:
    resign(folder, f'"format": {manifest.FORMAT}'.encode(), f'"format": {manifest.FORMAT + 1}'.encode())
    return f"manifest.json is in format {manifest.FORMAT + 1}"


def newer_mlflow(folder: Path) -> str:
    resign(folder, b'"mlflow": "3.17.2"', b'"mlflow": "3.99.0"')
    return f"the backup comes from MLflow 3.99.0, here is MLflow 3.17.2; mlstack {__version__} made it"


def newer_postgres(folder: Path) -> str:
    resign(folder, b'"postgres": "17.', b'"postgres": "99.')
    return "the backup comes from Postgres 99, here is Postgres 17"


def resign(folder: Path, old: bytes, new: bytes) -> None:
    text = (folder / "manifest.json").read_bytes()
    assert old in text
    rewrite(folder / "manifest.json", text.replace(old, new))
    digest = hashlib.sha256(text.replace(old, new)).hexdigest()
    rewrite(folder / "manifest.json.sha256", f"{digest}  manifest.json\n".encode())


def largest(folder: Path) -> Artifact:
    return max(manifest.read(folder).artifacts, key=lambda artifact: artifact.size)


DAMAGES: list[Callable[[Path], str]] = [
    flip_an_object, lose_an_object, flip_the_dump, cut_the_dump, lose_the_dump, flip_the_manifest, lose_the_manifest,
    flip_the_list, newer_format, newer_mlflow, newer_postgres,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_backup_is_rejected_by_name_before_anything_changes(
    full: Clone, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    before, containers = state(full), full.compose("ps", "--quiet")
    folder = tmp_path / newest(full).name
    shutil.copytree(newest(full), folder)
    named = damage(folder)
    done = full.make("restore", BACKUP=str(folder), YES="1")
    assert done.returncode != 0
    assert named in done.stderr
    assert "Nothing was changed" in done.stderr
    assert "Traceback" not in done.stderr
    assert state(full) == before
    assert full.compose("ps", "--quiet") == containers


def test_missing_backup_is_named(full: Clone) -> None:
    done = full.make("restore", BACKUP="20200101T000000Z", YES="1")
    assert done.returncode != 0
    assert "there is no backup 20200101T000000Z" in done.stderr


def test_restore_over_data_without_a_terminal_is_rejected(full: Clone) -> None:
    before = state(full)
    done = full.make("restore", BACKUP="latest")
    assert done.returncode != 0
    assert "there is no terminal to ask at" in done.stderr
    assert "make restore BACKUP=latest YES=1" in done.stderr
    assert "will be lost" in done.stdout
    assert state(full) == before


# ---- restore ------------------------------------------------------------------------------------


def test_restore_undoes_deletions_changes_and_additions(full: Clone) -> None:
    seen, kept = everything(full), taken(full)
    client, name = storage(full)
    runs = [artifact.key for artifact in kept.artifacts if "/artifacts/" in artifact.key]
    client.remove_object(name, runs[0])
    client.put_object(name, runs[1], *content("overwritten"))
    client.put_object(name, "added", *content("later"))
    client.remove_object(datasets(full), DATA[0])
    client.put_object(datasets(full), DATA[1], *content("overwritten"))
    client.put_object(datasets(full), "added", *content("later"))
    finished(started(*admin(full), "fill", "--runs=2", "--points=20", "--megabytes=0", "--models=1", "--seed=9"))
    assert everything(full) != seen
    done = full.make("restore", BACKUP=kept.folder.name, YES="1")
    assert done.returncode == 0, done.stderr
    assert "every table and every artifact equals its manifest" in done.stdout
    assert everything(full) == seen
    assert set(bucket.current(client, name)) == {artifact.key for artifact in kept.artifacts}
    assert set(bucket.current(client, datasets(full))) == {artifact.key for artifact in kept.datasets or ()} == set(DATA)
    assert client.get_object(datasets(full), DATA[1]).data == DATA[1].encode()
    assert leftovers(full) == []
    # Objects from before the restore remain recoverable in MinIO.
    assert [
        version for version in client.list_objects(name, prefix="added", include_version=True) if not version.is_delete_marker
    ]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_interrupted_restore_changes_nothing(full: Clone, how: signal.Signals) -> None:
    kept = newest(full)
    client, name = storage(full)
    for artifact in manifest.read(kept).artifacts:
        client.put_object(name, artifact.key, *content("newer than the backup"))
    for key in DATA:
        client.put_object(datasets(full), key, *content("newer than the backup"))
    before, seen = state(full), everything(full)
    process = subprocess.Popen(
        [".venv/bin/mlstack", "restore", str(kept), "--yes"],
        cwd=full.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr
    for line in process.stderr:
        if "filling the bucket" in line:
            break
    etags = {key: etag for key, (etag, _) in before[1].items()}
    wait_until(
        lambda: any(row.etag != etags[f"{name}/{key}"] for key, row in bucket.current(client, name).items()), interval=0.02
    )
    process.send_signal(how)
    _, output = process.communicate(timeout=300)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "undone" in output
        assert state(full) == before
        assert leftovers(full) == []
    else:
        assert process.returncode == -signal.SIGKILL
        with pytest.raises(AssertionError, match="not currently accepting connections"):
            refuse_to_start(full)  # half a restore never looks complete, also to plain docker compose
    done = full.make("up")
    assert done.returncode == 0, done.stderr
    assert ("an interrupted restore was undone" in done.stderr) == (how == signal.SIGKILL)
    assert state(full) == before
    assert everything(full) == seen
    assert leftovers(full) == []


def refuse_to_start(clone: Clone) -> None:
    done = subprocess.run(
        ["docker", "compose", "exec", "--no-TTY", "postgres", "psql", "-U", clone.values["POSTGRES_USER"], "-d",
         clone.values["POSTGRES_DB"], "-c", "SELECT 1"],
        cwd=clone.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_backup_restores_on_another_host_with_other_secrets_and_names(full: Clone, tmp_path: Path) -> None:
    uri, _ = admin(full)
    restored = full.make("restore", BACKUP="latest", YES="1")
    assert restored.returncode == 0, restored.stderr
    seen = everything(full)
    kept = taken(full)
    shutil.copytree(kept.folder, tmp_path / "carried")
    done = full.make("reset", YES="1")
    assert done.returncode == 0, done.stderr
    old = full.values
    (full.folder / ".env").unlink()
    same = {name: old[name] for name in old if name.endswith("_PORT") or name == "COMPOSE_PROJECT_NAME"}
    other = {
        "POSTGRES_USER": "boss",
        "MLFLOW_DB_USER": "tracker",
        "ACCOUNTS_DB_USER": "keeper",
        "READER_DB_USER": "looker",
        "POSTGRES_DB": "elsewhere",
        "MINIO_BUCKET": "elsewhere",
    }
    done = full.make("env", **same, **other)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(full.folder / "backups")
    done = full.make("restore", BACKUP=str(tmp_path / "carried"))
    assert done.returncode != 0
    assert "is not signed by this stack" in done.stderr
    assert f"make restore BACKUP={tmp_path / 'carried'} YES=1, if you mean it" in done.stderr
    # With the key of the stack that created the backup there is nothing to confirm: this stack is empty.
    done = full.make("restore", BACKUP=str(tmp_path / "carried"), BACKUP_KEY=old["BACKUP_KEY"])
    assert done.returncode == 0, done.stderr
    assert "not signed" not in done.stderr
    assert everything(full) == seen
    client, name = storage(full)
    assert client.stat_object(name, "odd/UPPER").metadata["x-amz-meta-note"] == "kept"
    query = f"{uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert requests.get(query, auth=tuple(COLLEAGUE.values()), timeout=60).ok
    notebook = (full.values["MLFLOW_TRACKING_USERNAME"], full.values["MLFLOW_TRACKING_PASSWORD"])
    assert requests.get(query, auth=notebook, timeout=60).ok
    assert requests.get(query, auth=(notebook[0], old["MLFLOW_TRACKING_PASSWORD"]), timeout=60).status_code == 401
    assert full.make("up").returncode == 0
    fill(full, runs=2, points=20, megabytes=0, models=1, seed=5)


def test_verify_restores_into_a_temporary_stack_and_removes_it(full: Clone) -> None:
    kept = taken(full)
    before, containers = state(full), full.compose("ps", "--quiet")
    done = full.make("verify", BACKUP=kept.folder.name)
    assert done.returncode == 0, done.stderr
    assert f"The backup {kept.folder.name} is good" in done.stdout
    assert state(full) == before
    assert full.compose("ps", "--quiet") == containers
    for kind in (("ps", "--all", "--format", "{{.Names}}"), ("volume", "ls", "--format", "{{.Name}}")):
        assert f"{full.name}-verify" not in docker(*kind)


def test_restore_rejects_rows_that_name_a_bucket_of_another_name(full: Clone) -> None:
    """Rows of a server that did not proxy artifacts; `make verify` gives its bucket the original name."""
    place = f"s3://{full.values['MINIO_BUCKET']}/77"
    with connected(Stack.of(full.folder).tracking) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace)"
            " VALUES (77, 'of old', %s, 'active', 'default')", (place,),
        )  # fmt: skip
        kept = taken(full)
        cursor.execute("DELETE FROM experiments WHERE experiment_id = 77")
    before, containers = state(full), full.compose("ps", "--quiet")
    done = full.make("restore", BACKUP=kept.folder.name, YES="1", MINIO_BUCKET="another")
    assert done.returncode != 0
    assert f"stored under s3://{kept.manifest.bucket}/, and the bucket here is another" in done.stderr
    assert f"set MINIO_BUCKET={kept.manifest.bucket} in .env" in done.stderr
    assert state(full) == before
    assert full.compose("ps", "--quiet") == containers
    done = full.make("verify", BACKUP=kept.folder.name)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(kept.folder)


def test_verify_rejects_a_dump_that_differs_from_its_manifest(full: Clone, tmp_path: Path) -> None:
    """Every file matches its checksum here: only comparing the loaded tables reveals the difference."""
    folder = tmp_path / "backup"
    shutil.copytree(newest(full), folder)
    contents = manifest.read_manifest(folder)
    tables = {**contents.tables, "public.params": replace(contents.tables["public.params"], checksum="0" * 32)}
    for name in (manifest.MANIFEST, manifest.CHECKSUM):
        (folder / name).chmod(0o600)
    manifest.write(folder, replace(contents, tables=tables))
    done = full.make("verify", BACKUP=str(folder))
    assert done.returncode != 0
    assert "the table public.params has other values" in done.stderr
    assert f"{full.name}-verify" not in docker("volume", "ls", "--format", "{{.Name}}")


def test_every_command_of_the_operations_page_works_as_written(full: Clone) -> None:
    """In the page's order, at a terminal that answers yes: the first reset is restored, the last one removes the images too."""
    seen = everything(full)
    blocks = re.findall(r"^```sh\n(.*?)^```", (full.folder / "docs/operations.md").read_text(), re.MULTILINE | re.DOTALL)
    commands = "".join(blocks).splitlines()
    assert commands[-5:-2] == ["make backup", "make reset", "make restore BACKUP=latest"]
    *commands, reset, remove_images = commands
    for command in commands:
        at_a_terminal(full, command)
    assert everything(full) == seen
    for command in (reset, remove_images):
        at_a_terminal(full, command)
    kept = docker("image", "ls", "--format", "{{.Repository}}", "--filter", f"reference={full.name}-*").split()
    assert kept == docker("volume", "ls", "--quiet", "--filter", f"name={full.name}_").split() == []
