"""`make backup`: database and both buckets, point-in-time consistent, while clients write."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from minio import Minio

from mlstack import __version__, settings
from mlstack.errors import MlstackError
from mlstack.host.backup import bucket, data_services, log, manifest, postgres, signature
from mlstack.host.backup.bucket import Identity, Version
from mlstack.host.backup.manifest import Advance, Artifact, Manifest
from mlstack.host.render import size
from mlstack.host.render.progress import bar
from mlstack.host.stack import Stack
from mlstack.settings import Login

INCOMPLETE, REMOVED = ".incomplete", ".removed-"
JOURNAL = "journal.jsonl"  # what an interrupted backup has copied, for the next one
MIB = 1024 * 1024
RESERVE = 256 * MIB  # stays free on the disk of the backups


@dataclass(frozen=True)
class Taken:
    """A finished backup."""

    folder: Path
    manifest: Manifest
    pruned: tuple[Path, ...] = ()


def find(stack: Stack, backup: str | None) -> Path:
    """The folder of a backup: by path, by its name, or the newest. Raises MlstackError when there is none."""
    backups = stack.backups
    if backup in (None, "latest"):
        complete = manifest.folders(backups)
        if not complete:
            raise MlstackError(f"there is no complete backup in {backups}.", "Nothing was done.", "make backup takes one")
        return complete[0]
    for path in (Path(backup).expanduser(), stack.folder / backup, backups / backup):
        if path.is_dir():
            return path.resolve()
    raise MlstackError(
        f"there is no backup {backup}, neither as a folder nor in {backups}.",
        "Nothing was done.",
        "make restore lists the backups",
    )


@data_services.explained()
def back_up(stack: Stack, keep: int | None = None) -> Taken:
    """Takes a backup, then removes all but the newest `keep`. Raises MlstackError; the next backup reuses what was copied."""
    before = os.umask(0o077)  # a backup contains everything: private
    try:
        return _taken(stack, keep)
    finally:
        os.umask(before)


def _taken(source: Stack, keep: int | None) -> Taken:
    data_services.require_running(source)
    backups = source.backups
    work = _prepared(backups)
    client = data_services.storage_client(source.keys)
    for name in source.keys.buckets:
        _require_versions(client, name)
    known = _known(backups, work, source.backup_key)
    with postgres.connected(source) as connection:  # after the snapshot: later dates mean later writes
        for name in () if source.keys.is_external else source.keys.buckets:
            bucket.redate(client, name, lambda: postgres.now(connection))
        postgres.ensure_serving_login(source, connection, postgres.schemas(connection))
    with postgres.snapshot(source) as snapshot:
        postgres.require_readable(source, snapshot.connection)
        versions = {name: bucket.as_of(client, name, snapshot.time) for name in source.keys.buckets}
        new = {item.etag: item.size for items in versions.values() for item in items if item.identity not in known}
        database_size = postgres.size(snapshot.connection)
        require_room(backups, sum(new.values()) + database_size)
        log.info("the database as of %s, about %s", f"{snapshot.time:%H:%M:%S}", size(database_size))
        described = _described(source, snapshot)
        with bar("database", None) as advance:
            dumps = _dump(source, snapshot, described.owners, work, advance)
    count = sum(map(len, versions.values()))
    log.info("both buckets as of the same moment: %d objects, %d new (%s)", count, len(new), size(sum(new.values())))
    (artifacts, datasets), new_bytes = _copy(client, work, versions, known)
    lists = {manifest.OBJECTS_LIST: artifacts, manifest.DATASETS_LIST: datasets}
    for name, objects in lists.items():
        listing = "".join(item.as_line() for item in sorted(objects, key=lambda item: item.key))
        (work / name).write_text(listing, encoding="ascii")
    _drop_unused(work, artifacts + datasets)
    dump_size = sum((work / name).stat().st_size for name in dumps)
    unique = {artifact.sha256: artifact.size for artifact in artifacts + datasets}
    finished = Manifest(
        created=described.created,
        bytes=sum(unique.values()) + dump_size,
        new_bytes=new_bytes + dump_size,
        versions=described.versions,
        bucket=source.keys.bucket,
        owners=described.owners,
        counts={**postgres.counts(described.tables), "artifacts": len(artifacts), "files of data sets": len(datasets)},
        tables=described.tables,
        files={**dumps, **{name: manifest.sha256_of(work, name) for name in lists}},
    )
    manifest.write(work, finished)
    signature.sign(work, source.backup_key)
    target = _in_place(work, backups, finished.time)
    return Taken(target, finished, tuple(prune(backups, keep)) if keep else ())


def prune(backups: Path, keep: int) -> Iterator[Path]:
    """Removes all but the newest `keep` complete backups. Files that others share with them stay on the disk."""
    for doomed in manifest.folders(backups)[keep:]:
        aside = doomed.rename(backups / f"{REMOVED}{doomed.name}")  # half a backup never looks complete
        _remove(aside)
        log.info("removed the backup %s", doomed.name)
        yield doomed


def require_room(backups: Path, needed: int) -> None:
    """Raises MlstackError unless the disk of the backups takes this many bytes more and keeps a reserve."""
    free = shutil.disk_usage(backups).free
    if free < needed + RESERVE:
        raise MlstackError(
            f"too little room at {backups}: the backup takes up to {size(needed + RESERVE)}, {size(free)} are free.",
            "A full disk would stop the stack too.",
            "make backup KEEP=… removes old ones; or set BACKUP_DIR in .env to a larger disk",
        )


@dataclass(frozen=True)
class _Description:
    created: str
    versions: dict[str, str | None]
    owners: dict[str, str]
    tables: dict[str, manifest.Table]


def _described(source: Stack, snapshot: postgres.Snapshot) -> _Description:
    return _Description(
        created=snapshot.time.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        versions={
            "mlstack": __version__,
            "mlflow": postgres.mlflow_version(snapshot.connection),
            "postgres": postgres.server_version(snapshot.connection),
            source.storage: _storage_version(source),
        },
        owners=postgres.owners(snapshot.connection),
        tables=postgres.tables(source, snapshot.connection, snapshot.name),
    )


def _storage_version(source: Stack) -> str | None:
    """None for an external store, which does not say its version."""
    if source.keys.is_external:
        return None
    if source.storage == settings.VERSITYGW:
        return source.containers["minio"].version
    return source.compose.output("exec", "--no-TTY", "minio", "minio", "--version").split()[2]


def _dump(source: Stack, snapshot: postgres.Snapshot, owners: Mapping[str, str], work: Path, advance: Advance) -> dict[str, str]:
    """The checksum of each dump: one for each login, with its schemas."""
    checksums = {}
    for login, schemas in postgres.schemas_by_login(source, owners).items():
        name = dump_of(source, login)
        (work / name).unlink(missing_ok=True)
        checksums[name] = postgres.dump(source, login, schemas, snapshot_name=snapshot.name, path=work / name, advance=advance)
    return checksums


def dump_of(stack: Stack, login: Login) -> str:
    """The file with the schemas of a login."""
    if login is stack.tracking:
        return manifest.DUMP
    return manifest.ACCOUNTS_DUMP if login is stack.accounts else manifest.SERVING_DUMP


def _prepared(backups: Path) -> Path:
    """The folder of the new backup, with the files of an interrupted one."""
    work = backups / INCOMPLETE
    try:
        backups.mkdir(parents=True, exist_ok=True)
        for leftover in backups.glob(f"{REMOVED}*"):
            _remove(leftover)
        _keep_only_content(work)
        (work / manifest.OBJECTS).mkdir(parents=True, exist_ok=True)
        for part in (work / manifest.OBJECTS).glob(".part-*"):
            part.unlink()
    except OSError as error:
        raise MlstackError(
            f"the folder of the backups cannot be written: {error}.", "Nothing was backed up.", f"check {backups} (BACKUP_DIR)"
        ) from error
    return work


def _keep_only_content(work: Path) -> None:
    """Keeps the journal and the objects of an interrupted backup. A link among them could redirect writes."""
    if work.is_symlink():
        work.unlink()
    for folder, folders, files in os.walk(work, topdown=False):
        for path in (Path(folder, name) for name in (*folders, *files)):
            is_content = path.parent != work or path.name in (JOURNAL, manifest.OBJECTS)
            if path.is_symlink() or not (is_content and (path.is_file() or path.is_dir())):
                _remove(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _known(backups: Path, work: Path, key: str) -> dict[Identity, tuple[Artifact, Path]]:
    """Artifacts that the newest or an interrupted backup has read already, and the folder of each."""
    known: dict[Identity, tuple[Artifact, Path]] = {}
    for previous in manifest.folders(backups)[:1]:
        if not signature.is_authentic(previous, key):
            log.warning("the backup %s is not signed by this stack: everything is copied again", previous.name)
            continue
        try:
            known |= {bucket.identity(artifact): (artifact, previous) for artifact in manifest.read(previous).objects}
        except MlstackError as error:
            log.warning("%s Everything is copied again.", error.wrong)
    journal = work / JOURNAL
    if journal.exists():
        known |= {bucket.identity(artifact): (artifact, work) for artifact in manifest.artifacts_in(_whole_lines(journal))}
        log.info("going on with a backup that was interrupted")
    return known


def _whole_lines(journal: Path) -> Iterable[str]:
    return [line for line in journal.read_text(encoding="ascii").splitlines(keepends=True) if line.endswith("\n")]


def _copy(
    client: Minio, work: Path, versions: Mapping[str, list[Version]], known: dict[Identity, tuple[Artifact, Path]]
) -> tuple[list[list[Artifact]], int]:
    """Copies these versions of each bucket. Returns the objects of each, and the new bytes."""
    total = sum(version.size for listed in versions.values() for version in listed)
    # The journal of this run starts with the reused artifacts: a crash loses none of them.
    with (work / JOURNAL).open("a", encoding="ascii") as journal, bar("objects", total) as advance:

        def done(artifact: Artifact) -> None:
            journal.write(artifact.as_line())
            journal.flush()

        copies = {name: bucket.Copy(client, name, work, advance) for name in versions}
        copied = [copy.run(versions[name], known, done) for name, copy in copies.items()]
        return copied, sum(copy.new_bytes for copy in copies.values())


def _require_versions(client: Minio, name: str) -> None:
    if not bucket.is_versioned(client, name):
        raise MlstackError(
            f"the bucket {name} keeps no versions.",
            "What is overwritten during the backup would be lost to it.",
            "make up switches it on",
        )


def _drop_unused(work: Path, artifacts: list[Artifact]) -> None:
    """Removes what an interrupted backup copied and this one does not contain."""
    used = {artifact.sha256 for artifact in artifacts}
    for path in (work / manifest.OBJECTS).rglob("*"):
        if path.is_file() and path.name not in used:
            path.unlink()


def _in_place(work: Path, backups: Path, time: datetime) -> Path:
    (work / JOURNAL).unlink()
    os.sync()  # everything is on the disk before the folder gets its name
    name = time.astimezone(UTC)
    while (target := backups / f"{name:{manifest.NAME_FORMAT}}").exists():
        name += timedelta(seconds=1)
    return work.rename(target)


def _remove(doomed: Path) -> None:
    shutil.rmtree(doomed)
