"""`make restore`: a backup into an empty stack, or replacing a stack's content."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minio import Minio

from mlstack import __version__
from mlstack.errors import MlstackError
from mlstack.host.backup import bucket, data_services, log, manifest, postgres, signature, swap
from mlstack.host.backup.journal import Journal
from mlstack.host.backup.manifest import Artifact, Backup, Table
from mlstack.host.commands import start
from mlstack.host.commands.backup import dump_of
from mlstack.host.compose import docker
from mlstack.host.render.progress import bar
from mlstack.host.stack import Stack
from mlstack.settings import Login

_SHOWN = 5
_WANTED = ("runs", "registered models", "artifacts", "files of data sets")


@dataclass(frozen=True)
class Content:
    """A stack's content, in counts that users know."""

    counts: dict[str, int]

    @property
    def is_empty(self) -> bool:
        """Whether it has only what a first start creates."""
        return self.counts.get("experiments", 0) <= 1 and not any(self.counts.get(what) for what in _WANTED)


@data_services.explained()
def checked(folder: Path) -> Backup:
    """Reads and checks every file of a backup. Changes nothing. Raises MlstackError naming what is damaged."""
    backup = manifest.read(folder)
    sizes = {artifact.path: artifact.size for artifact in backup.objects}
    for name in backup.manifest.dumps:
        sizes[name] = (folder / name).stat().st_size if (folder / name).exists() else 0  # a missing one is named below
    log.info("reading the backup %s, made by %s: %d objects", folder.name, backup.manifest.made_by, len(backup.objects))
    with bar("checksums", sum(sizes.values())) as advance:
        manifest.check(backup, advance)
    return backup


def is_authentic(stack: Stack, backup: Backup) -> bool:
    """Whether a stack with this one's BACKUP_KEY (or the shell's) signed the backup."""
    return signature.is_authentic(backup.folder, stack.backup_key)


def require_fits(stack: Stack, backup: Backup) -> None:
    """Raises MlstackError when the backup comes from newer versions than those in this stack's images."""
    versions, maker = backup.manifest.versions, backup.manifest.made_by
    _require_not_newer("MLflow", maker, versions["mlflow"], _version_in(stack.image("mlflow"), _MLFLOW))
    _require_not_newer("Postgres", maker, _major(versions["postgres"]), _postgres_of(stack))


@data_services.explained()
def require_bucket(target: Stack, backup: Backup) -> None:
    """Raises MlstackError when rows of the backup name its bucket, and this stack's bucket has another name."""
    name, dump = backup.manifest.bucket, backup.folder / manifest.DUMP
    if name != target.keys.bucket and postgres.names_bucket(target.image("postgres"), dump, name):
        raise MlstackError(
            f"runs or models in the backup are stored under s3://{name}/, and the bucket here is {target.keys.bucket}.",
            "Nothing was changed: their artifacts would be in the bucket, and MLflow would look for them in another.",
            f"set MINIO_BUCKET={name} in .env, then the same command",
        )


@data_services.explained()
def content(target: Stack) -> Content:
    """What would be lost. Starts Postgres and MinIO, if they have ever run."""
    if not target.engine.volumes(target.name) and not target.owner.is_external:
        return Content({})
    data_services.start_data_services(target)
    if not postgres.is_set_up(target):
        return Content({})
    swap.settle(target)
    with postgres.server(target) as server:
        if not postgres.exists(server, target.database):
            return Content({})
    if not postgres.knows_passwords(target):
        data_services.run_bootstrap(target)
    with postgres.connected(target) as connection:
        postgres.ensure_serving_login(target, connection, postgres.schemas(connection))
        counts = postgres.counts(postgres.tables(target, connection))
    client = data_services.storage_client(target.keys)
    for what, name in zip(("artifacts", "files of data sets"), target.keys.buckets, strict=True):
        if client.bucket_exists(name):
            counts[what] = len(bucket.current(client, name))
    return Content(counts)


def restore(target: Stack, backup: Backup) -> None:
    """Replaces the stack's content by a checked backup and starts it. On failure or Ctrl-C the content stays as it was."""
    load(target, backup)
    with swap.on_trial(target):
        start.start(target)


@data_services.explained()
def load(target: Stack, backup: Backup) -> None:
    """Fills database and buckets of a stack whose other services are stopped, and compares both with the manifest."""
    data_services.stop_clients(target)
    data_services.start_data_services(target)
    swap.settle(target)
    data_services.run_bootstrap(target)
    client = data_services.storage_client(target.keys)
    with postgres.connected(target) as connection:  # a version dated in the future would hide new uploads
        for name in () if target.keys.is_external else target.keys.buckets:
            bucket.redate(client, name, lambda: postgres.now(connection))
    with swap.exchange(target) as journal:
        _load_database(target, backup)
        _load_bucket(client, target.keys.bucket, backup.folder, backup.artifacts, journal)
        if backup.datasets is not None:  # a backup from before there were data sets says nothing about them
            _load_bucket(client, target.keys.datasets, backup.folder, backup.datasets, journal)
    log.info("every table and every object equals the manifest")


def _load_database(target: Stack, backup: Backup) -> None:
    """Loads each schema with its own login only: SQL in a dump can do no more than that login."""
    name, schemas = swap.new_name(target), backup.manifest.owners
    postgres.prepare(target, name, schemas)
    by_login = postgres.schemas_by_login(target, schemas)
    files = {login: _file(target, backup, login) for login in by_login}
    log.info("loading the database")
    with bar("database", sum(file.stat().st_size for file in files.values())) as advance:
        for login, own in by_login.items():
            postgres.load(target, login, own, path=files[login], name=name, advance=advance)
    with postgres.connected(target, name) as connection:
        _refuse(_differences(backup.manifest.tables, postgres.tables(target, connection)))


def _file(target: Stack, backup: Backup, login: Login) -> Path:
    """The dump with the schemas of a login; in format 1 the accounts are in the first."""
    name = dump_of(target, login)
    return backup.folder / (name if name in backup.manifest.files else manifest.DUMP)


def _load_bucket(client: Minio, name: str, folder: Path, artifacts: tuple[Artifact, ...], journal: Journal) -> None:
    present, before = bucket.current(client, name), bucket.ids(client, name)
    # The same etag is almost certainly the same content; everything is compared at the end anyway.
    missing = [
        artifact
        for artifact in artifacts
        if artifact.key not in present
        or (present[artifact.key].etag, present[artifact.key].size) != (artifact.etag, artifact.size)
    ]
    kept = len(artifacts) - len(missing)
    log.info("filling the bucket %s: %d objects, %d are there already", name, len(artifacts), kept)
    with bar("objects", sum(artifact.size for artifact in missing)) as advance:
        bucket.upload(client, name, folder, missing, journal=journal, before=before, advance=advance)
    hidden = sorted(present.keys() - {artifact.key for artifact in artifacts})
    journal.intend(name, hidden, before, deletes=True)
    bucket.hide(client, name, hidden)
    with bar("comparing", sum(artifact.size for artifact in artifacts)) as advance:
        _refuse(bucket.differences(client, name, artifacts, advance))


def _differences(expected: Mapping[str, Table], restored: Mapping[str, Table]) -> list[str]:
    """How tables differ from a manifest's; empty when they do not."""
    complaints = [f"the table {name} is missing" for name in sorted(expected.keys() - restored.keys())]
    complaints += [f"the table {name} is not in the backup" for name in sorted(restored.keys() - expected.keys())]
    for name in sorted(expected.keys() & restored.keys()):
        if restored[name].rows != expected[name].rows:
            complaints.append(f"the table {name} has {restored[name].rows} rows instead of {expected[name].rows}")
        elif restored[name] != expected[name]:
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


def _postgres_of(stack: Stack) -> str:
    """The version of the server that gets the backup."""
    if not stack.catalog.is_external:
        return _version_in(stack.image("postgres"), _POSTGRES)
    with postgres.connected(stack, "postgres" if stack.has_administrator else None) as connection:
        return postgres.server_version(connection)


def _version_in(image: str, command: tuple[str, ...]) -> str:
    """The version of a program in an image."""
    entrypoint, *arguments = command
    output = docker("run", "--rm", "--network", "none", "--entrypoint", entrypoint, image, *arguments)
    number = re.search(r"\d+(\.\d+)*", output)
    return number[0] if number else output.strip()


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
