"""Attacks through what `make backup`, `make restore` and `make gc` read: planted SQL, crafted backups, chosen dates."""

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import urllib3
from minio import Minio

from mlstack.host.backup import bucket, data_services, manifest, postgres, swap
from mlstack.host.backup.journal import Journal
from mlstack.host.backup.manifest import Artifact
from mlstack.host.commands import gc
from mlstack.host.doctor import Subject
from mlstack.host.doctor import postgres as database_checks
from mlstack.host.stack import Stack
from mlstack.settings import Keys, Login
from tests.stack.conftest import rows
from tests.support.clone import Clone
from tests.support.doctor import results_of

ROOM = 1200  # characters of SQL that fit into a crafted dump
MARKER = "/tmp/planted"  # noqa: S108 (in Postgres' container)
# Each step is separate: the next is tried even if one is denied.
TRIES = (
    "ALTER ROLE {user} SUPERUSER",
    f"COPY (SELECT 1) TO PROGRAM ''touch {MARKER}''",
    "CREATE ROLE planted SUPERUSER",
    "CREATE EVENT TRIGGER planted ON ddl_command_end EXECUTE FUNCTION public.planted_event()",
    "UPDATE accounts.users SET is_admin = true",
)


class Dated(urllib3.PoolManager):
    """Sends writes with the header that chooses a version's date."""

    date = ""

    def urlopen(self, method: str, url: str, **options: Any) -> Any:  # type: ignore[override]
        if self.date and method in ("PUT", "DELETE"):
            options["headers"] = {**options["headers"], "X-Minio-Source-MTime": self.date}
        return super().urlopen(method, url, **options)


def of_project(clone: Clone) -> Stack:
    return Stack.of(clone.folder)


def put(keys: Keys, name: str, content: bytes, dated: datetime | None = None) -> str:
    """Writes an object with a date that its writer chooses. Returns the version's id."""
    pool = Dated()
    pool.date = f"{dated:%Y-%m-%dT%H:%M:%SZ}" if dated else ""
    client = Minio(keys.endpoint, keys.access_key, keys.secret_key, secure=False, http_client=pool)
    return client.put_object(keys.bucket, name, BytesIO(content), len(content)).version_id or ""


def shown(keys: Keys, name: str) -> bytes:
    client = Minio(keys.endpoint, keys.access_key, keys.secret_key, secure=False)
    response = client.get_object(keys.bucket, name)
    try:
        return response.read()
    finally:
        response.release_conn()


def versions(keys: Keys, name: str) -> set[str]:
    client = Minio(keys.endpoint, keys.access_key, keys.secret_key, secure=False)
    return {str(item.version_id) for item in client.list_objects(keys.bucket, name, include_version=True)}


def planted(stack: Clone) -> list[str]:
    """What only the owner's login can create: superusers, event triggers, files of a program."""
    target = of_project(stack)
    with postgres.connected(target) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT rolname FROM pg_roles WHERE rolsuper AND rolname <> current_user UNION SELECT evtname FROM pg_event_trigger"
        )
        names = [name for (name,) in cursor.fetchall()]
    marker = stack.in_container("postgres", "sh", "-c", f"test -e {MARKER} && echo {MARKER} || true")
    return names + marker.split()


def newest(stack: Clone) -> Path:
    return manifest.folders(stack.folder / "backups")[0]


@pytest.mark.refusal
def test_backup_runs_nothing_that_mlflows_login_planted(stack: Clone, role: Login) -> None:
    steps = "".join(
        f" BEGIN EXECUTE '{step.format(user=role.user)}'; EXCEPTION WHEN OTHERS THEN NULL; END;" for step in TRIES[:3]
    )
    rows(
        role,
        f"""CREATE FUNCTION public.md5(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN {steps}
          RETURN pg_catalog.md5($1); END $$;
        CREATE TABLE public.planted (x int); INSERT INTO public.planted VALUES (1);
        CREATE FUNCTION public.as_text(public.planted) RETURNS text LANGUAGE plpgsql AS $$ BEGIN {steps}
          RETURN 'planted'; END $$;
        CREATE CAST (public.planted AS text) WITH FUNCTION public.as_text(public.planted) AS IMPLICIT;
        CREATE FUNCTION public.left(text, int) RETURNS text LANGUAGE sql RETURN public.md5($1);
        SELECT 1""",  # noqa: S608
    )
    try:
        done = stack.make("backup")
        assert done.returncode == 0, done.stderr
        assert planted(stack) == []
    finally:
        rows(role, "DROP TABLE public.planted CASCADE; DROP FUNCTION public.md5(text) CASCADE; SELECT 1")


@pytest.fixture
def crafted(stack: Clone, role: Login, tmp_path: Path) -> Iterator[Path]:
    """A backup whose dump contains an attacker's SQL, with correct checksums."""
    comment = "COMMENT ON TABLE public.tags IS '{}';"
    rows(role, comment.format("x" * ROOM) + "SELECT 1")
    try:
        done = stack.make("backup")
        assert done.returncode == 0, done.stderr
    finally:
        rows(role, "COMMENT ON TABLE public.tags IS NULL; SELECT 1")
    folder = tmp_path / newest(stack).name
    shutil.copytree(newest(stack), folder)
    steps = "".join(f" BEGIN EXECUTE '{step.format(user=role.user)}'; EXCEPTION WHEN OTHERS THEN NULL; END;" for step in TRIES)
    evil = (
        "RESET ROLE; RESET SESSION AUTHORIZATION; CREATE FUNCTION public.planted_event() RETURNS event_trigger"
        f" LANGUAGE plpgsql AS 'BEGIN END'; DO $$ BEGIN {steps} END $$;"
    )
    old = comment.format("x" * ROOM).encode()
    dump = (folder / manifest.DUMP).read_bytes()
    assert dump.count(old) == 1 and len(evil) < len(old)
    rewrite(folder / manifest.DUMP, dump.replace(old, evil.ljust(len(old)).encode()))
    contents = manifest.read_manifest(folder)
    files = {**contents.files, manifest.DUMP: hashlib.sha256((folder / manifest.DUMP).read_bytes()).hexdigest()}
    rewrite(folder / manifest.MANIFEST, b"")
    rewrite(folder / manifest.CHECKSUM, b"")
    manifest.write(folder, replace(contents, files=files))
    yield folder


def rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.refusal
def test_changed_backup_needs_confirmation_and_its_sql_has_only_mlflows_rights(stack: Clone, crafted: Path) -> None:
    done = stack.make("restore", BACKUP=str(crafted))
    assert done.returncode != 0
    assert "is not signed by this stack" in done.stderr
    done = stack.make("restore", BACKUP=str(crafted), YES="1")
    assert planted(stack) == []
    assert done.returncode == 0, done.stderr  # what it tried was denied; the rest MLflow's login may do
    sessions = results_of(Subject(of_project(stack)), *database_checks.LOGINS.values())  # the owner's among them
    assert all(result.ok for result in sessions.values())
    assert planted(stack) == []
    target = of_project(stack)
    with postgres.connected(target) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_userbyid(proowner) FROM pg_proc WHERE proname = 'planted_event'")
        assert cursor.fetchall() == [(target.tracking.user,)]  # it ran, as that login


@pytest.mark.refusal
def test_version_dated_in_the_future_hides_no_upload_from_a_backup(stack: Clone, owner_keys: Keys) -> None:
    alone, later = f"chosen/{uuid.uuid4().hex}", f"chosen/{uuid.uuid4().hex}"
    future = datetime.now(UTC) + timedelta(days=3650)
    put(owner_keys, alone, b"from the future", future)
    put(owner_keys, later, b"before")
    put(owner_keys, later, b"from the future", future)
    done = stack.make("backup")
    assert done.returncode == 0, done.stderr
    assert "2 versions are dated in the future and get the date of now" in done.stderr and alone in done.stderr
    held = {artifact.key for artifact in manifest.read(newest(stack)).artifacts}
    assert {alone, later} <= held
    put(owner_keys, later, b"a later upload")
    assert shown(owner_keys, later) == b"a later upload"
    assert shown(owner_keys, alone) == b"from the future"


@pytest.mark.refusal
def test_version_dated_in_the_past_does_not_age_the_original(stack: Clone, owner_keys: Keys) -> None:
    name, now = f"chosen/{uuid.uuid4().hex}", datetime.now(UTC)
    original = put(owner_keys, name, b"original", now - timedelta(hours=3))
    put(owner_keys, name, b"in its place", now - timedelta(hours=2))
    hour = timedelta(hours=1)
    assert gc.plan(Stack.of(stack.folder), hour).expired == 0
    gc.carry_out(Stack.of(stack.folder), gc.Plan(age=hour, expired=1))
    assert original in versions(owner_keys, name)
    gc.carry_out(Stack.of(stack.folder), gc.Plan(age=timedelta(0), expired=1))  # of any age: now it is deleted
    assert original not in versions(owner_keys, name)


@pytest.mark.refusal
def test_undo_of_a_restore_removes_its_own_versions_and_no_upload(stack: Clone, owner_keys: Keys, tmp_path: Path) -> None:
    """Independent of the dates of versions: a client's and older versions are dated in the future."""
    target = of_project(stack)
    client = data_services.storage_client(target.keys)
    name, hidden, during = (f"chosen/{uuid.uuid4().hex}" for _ in range(3))
    kept = put(owner_keys, name, b"before", datetime.now(UTC) + timedelta(hours=5))
    put(owner_keys, hidden, b"before")
    before = bucket.ids(client, owner_keys.bucket)
    artifact = stored(tmp_path, name, b"of the backup")
    with pytest.raises(RuntimeError, match="on purpose"), swap.exchange(target) as journal:
        bucket.upload(client, owner_keys.bucket, tmp_path, [artifact], journal=journal, before=before, advance=lambda _: None)
        journal.intend(owner_keys.bucket, [hidden], before, deletes=True)
        bucket.hide(client, owner_keys.bucket, [hidden])
        uploads = {during: put(owner_keys, during, b"of a client"), name: put(owner_keys, name, b"of a client")}
        raise RuntimeError("on purpose")
    assert versions(owner_keys, name) == {kept, uploads[name]}
    assert versions(owner_keys, during) == {uploads[during]}
    assert shown(owner_keys, hidden) == b"before"
    assert stack.make("up").returncode == 0


def test_undo_of_a_killed_restore_recognises_unrecorded_versions(stack: Clone, owner_keys: Keys) -> None:
    target = of_project(stack)
    client = data_services.storage_client(target.keys)
    name = f"chosen/{uuid.uuid4().hex}"
    put(owner_keys, name, b"before")
    before = bucket.ids(client, owner_keys.bucket)
    with postgres.server(target) as server:
        journal = Journal(server, "of_a_test")
        journal.start()
        journal.intend(owner_keys.bucket, [name, f"{name}-not-begun"], before)
        written = put(owner_keys, name, b"of the backup")
        assert journal.written(client, owner_keys.bucket) == [(name, written)]
        journal.end()
        assert not journal.exists()


def stored(folder: Path, key: str, content: bytes) -> Artifact:
    digest = hashlib.sha256(content).hexdigest()
    artifact = Artifact(key, "", "", len(content), digest)
    (folder / artifact.path).parent.mkdir(parents=True)
    (folder / artifact.path).write_bytes(content)
    return artifact
