"""`make restore`: a backup into an empty stack, or in the place of what a stack holds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minio import Minio

from mlstack import __version__
from mlstack.errors import MlstackError
from mlstack.host.backup import bucket, log, manifest, postgres, signature, stack, swap
from mlstack.host.backup.journal import Journal
from mlstack.host.backup.manifest import Backup, Table
from mlstack.host.backup.stack import Stack
from mlstack.host.commands import start
from mlstack.host.compose import docker, volumes
from mlstack.host.render.progress import bar

_SHOWN = 5
_WANTED = ("runs", "registered models", "artifacts")


@dataclass(frozen=True)
class Content:
    """What a stack holds, in numbers that a person knows."""

    counts: dict[str, int]

    @property
    def is_empty(self) -> bool:
        """Nothing but what a first start makes."""
        return self.counts.get("experiments", 0) <= 1 and not any(self.counts.get(what) for what in _WANTED)


@stack.explained()
def checked(folder: Path) -> Backup:
    """A backup whose every file is as it was written. Changes nothing. Raises MlstackError naming what is damaged."""
    backup = manifest.read(folder)
    sizes = {artifact.path: artifact.size for artifact in backup.artifacts}
    for name in backup.manifest.dumps:
        sizes[name] = (folder / name).stat().st_size if (folder / name).exists() else 0  # a missing one is named below
    log.info("reading the backup %s, made by %s: %d artifacts", folder.name, backup.manifest.made_by, len(backup.artifacts))
    with bar("checksums", sum(sizes.values())) as advance:
        manifest.check(backup, advance)
    return backup


def is_authentic(project: Path, backup: Backup) -> bool:
    """Whether a stack with the BACKUP_KEY of this project (or of the shell) made the backup."""
    return signature.is_authentic(backup.folder, stack.of_project(project).backup_key)


def require_fits(project: Path, backup: Backup) -> None:
    """Raises MlstackError when the backup comes from newer versions than this project's images hold."""
    versions, images = backup.manifest.versions, stack.of_project(project).images
    maker = backup.manifest.made_by
    _require_not_newer("MLflow", maker, versions["mlflow"], _version_in(images["mlflow"], _MLFLOW))
    _require_not_newer("Postgres", maker, _major(versions["postgres"]), _version_in(images["postgres"], _POSTGRES))


@stack.explained()
def require_bucket(project: Path, backup: Backup) -> None:
    """Raises MlstackError when rows of the backup lead to its bucket by name, and the bucket has another name here."""
    target, name = stack.of_project(project), backup.manifest.bucket
    dump = backup.folder / manifest.DUMP
    if name != target.keys.bucket and postgres.names_bucket(target.images["postgres"], dump, name):
        raise MlstackError(
            f"runs or models in the backup are stored under s3://{name}/, and the bucket here is {target.keys.bucket}.",
            "Nothing was changed: their artifacts would be in the bucket, and MLflow would look for them in another.",
            f"set MINIO_BUCKET={name} in .env, then the same command",
        )


@stack.explained()
def content(project: Path) -> Content:
    """What would be lost. Starts Postgres and MinIO, if they have ever run."""
    target = stack.of_project(project)
    if not volumes(target.name):
        return Content({})
    stack.start_data_services(project)
    swap.settle(target)
    with postgres.connected(target, swap.SERVER) as server:
        if not postgres.exists(server, target.owner.database):
            return Content({})
    with postgres.connected(target) as connection:
        counts = postgres.counts(postgres.tables(target, connection))
    client = stack.storage_client(target.keys)
    if client.bucket_exists(target.keys.bucket):
        counts["artifacts"] = len(bucket.current(client, target.keys.bucket))
    return Content(counts)


def restore(project: Path, backup: Backup) -> None:
    """Replaces what the stack holds by a checked backup and starts it. On failure or Ctrl-C the stack holds what it held."""
    target = load(project, backup)
    with swap.kept_if_well(target):
        start.start(project)


@stack.explained()
def load(project: Path, backup: Backup) -> Stack:
    """Fills database and bucket of a stack whose other services are stopped, and compares both with the manifest."""
    target = stack.of_project(project)
    stack.stop_clients(project)
    stack.start_data_services(project)
    swap.settle(target)
    stack.run_bootstrap(project)
    client = stack.storage_client(target.keys)
    with postgres.connected(target) as connection:  # a version dated in the future would hide what is uploaded now
        bucket.redate(client, target.keys.bucket, lambda: postgres.now(connection))
    with swap.exchange(target) as journal:
        _load_database(target, backup)
        _load_bucket(client, target, backup, journal)
    log.info("every table and every artifact equals the manifest")
    return target


def _load_database(target: Stack, backup: Backup) -> None:
    """Each schema with the rights of its own login alone: SQL of a dump can do no more than that login."""
    name, schemas = swap.new_name(target), backup.manifest.owners
    postgres.prepare(target, name, schemas)
    files = {login: _file(backup, login is target.accounts) for login in (target.tracking, target.accounts)}
    log.info("loading the database")
    with bar("database", sum(file.stat().st_size for file in files.values())) as advance:
        for login, file in files.items():
            if own := [schema for schema in schemas if postgres.login_of(target, schema) is login]:
                postgres.load(target, login, own, path=file, name=name, advance=advance)
    with postgres.connected(target, name) as connection:
        _refuse(_differences(backup.manifest.tables, postgres.tables(target, connection)))


def _file(backup: Backup, of_accounts: bool) -> Path:
    return backup.folder / backup.manifest.dumps[-1 if of_accounts else 0]


def _load_bucket(client: Minio, target: Stack, backup: Backup, journal: Journal) -> None:
    name = target.keys.bucket
    there, before = bucket.current(client, name), bucket.ids(client, name)
    # The same etag is the same content, or two parts of it: what is left as it is gets compared all the same.
    missing = [
        artifact
        for artifact in backup.artifacts
        if artifact.key not in there or (there[artifact.key].etag, there[artifact.key].size) != (artifact.etag, artifact.size)
    ]
    kept = len(backup.artifacts) - len(missing)
    log.info("filling the bucket: %d artifacts, %d are there already", len(backup.artifacts), kept)
    with bar("artifacts", sum(artifact.size for artifact in missing)) as advance:
        bucket.upload(client, name, backup.folder, missing, journal=journal, before=before, advance=advance)
    hidden = sorted(there.keys() - {artifact.key for artifact in backup.artifacts})
    journal.intend(hidden, before, deletes=True)
    bucket.hide(client, name, hidden)
    with bar("comparing", sum(artifact.size for artifact in backup.artifacts)) as advance:
        _refuse(bucket.differences(client, name, backup.artifacts, advance))


def _differences(wanted: Mapping[str, Table], found: Mapping[str, Table]) -> list[str]:
    """How tables differ from a manifest's; empty when they do not."""
    complaints = [f"the table {name} is missing" for name in sorted(wanted.keys() - found.keys())]
    complaints += [f"the table {name} is not in the backup" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        if found[name].rows != wanted[name].rows:
            complaints.append(f"the table {name} has {found[name].rows} rows instead of {wanted[name].rows}")
        elif found[name] != wanted[name]:
            complaints.append(f"the table {name} has other values")
    return complaints


def _refuse(complaints: list[str]) -> None:
    if complaints:
        more = f"; and {len(complaints) - _SHOWN} more" if len(complaints) > _SHOWN else ""
        raise MlstackError(
            f"what was restored does not equal the manifest: {'; '.join(complaints[:_SHOWN])}{more}.",
            "A part of the work would be missing or wrong.",
            "the same command again; if it says the same, another backup",
        )


_MLFLOW = ("python3", "-c", "from importlib.metadata import version; print(version('mlflow'))")
_POSTGRES = ("postgres", "--version")


def _version_in(image: str, command: tuple[str, ...]) -> str:
    """The version of a program in an image."""
    entrypoint, *arguments = command
    said = docker("run", "--rm", "--network", "none", "--entrypoint", entrypoint, image, *arguments)
    found = re.search(r"\d+(\.\d+)*", said)
    return found[0] if found else said.strip()


def _major(version: str | None) -> str | None:
    return version and version.partition(".")[0]


def _require_not_newer(product: str, maker: str, of_backup: str | None, here: str) -> None:
    def parts(version: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", version)]

    if of_backup and parts(of_backup) > parts(here):
        raise MlstackError(
            f"the backup comes from {product} {of_backup}, here is {product} {here}; {maker} made it, this is mlstack"
            f" {__version__}.",
            "Nothing was changed: an older version cannot read what a newer one wrote.",
            "update mlstack (git pull), make up, then the same command",
        )
