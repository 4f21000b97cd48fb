"""`make storage`: every version of every object into the other store, which then takes the place of the present one."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from minio import Minio
from minio.commonconfig import ENABLED
from minio.versioningconfig import VersioningConfig
from urllib3.exceptions import HTTPError

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import env_file, preflight
from mlstack.host.backup import data_services, histories, log, swap
from mlstack.host.commands import start
from mlstack.host.compose import docker
from mlstack.host.render.progress import bar
from mlstack.host.stack import Stack
from mlstack.retries import retrying
from mlstack.s3 import client_for
from mlstack.settings import Keys

DEADLINE = 120  # seconds
# Without MinIO's console: only a service has the name at which that listens.
_COMMANDS = {settings.MINIO: ("server", "/data", "--address", ":9000"), settings.VERSITYGW: ()}
_KEYS = ("MLFLOW_S3_ACCESS_KEY_ID", "MLFLOW_S3_SECRET_ACCESS_KEY")


def require_possible(stack: Stack, storage: str) -> None:
    """Raises MlstackError when the objects cannot move to this store."""
    nothing = "Nothing was changed."
    if storage not in settings.STORES:
        raise MlstackError(f"{storage!r} is no store.", nothing, f"name one of: {', '.join(settings.STORES)} (TO=…)")
    if stack.keys.is_external:
        raise MlstackError(
            "the objects are in the external store of EXTERNAL_S3.", nothing, "docs/external.md says how they move to another"
        )
    if stack.storage == storage:
        raise MlstackError(f"the objects are in {storage} already.", nothing, f"TO={_other(storage)} moves them")
    if settings.of_shell("STORAGE"):
        raise MlstackError("STORAGE comes from your shell.", "It would win over the new line in .env.", "unset STORAGE")
    if storage == settings.VERSITYGW and stack.values.get("MINIO_BUCKET_QUOTA"):
        raise MlstackError(
            "MINIO_BUCKET_QUOTA is set, and VersityGW has no quota.",
            "Nothing would limit what the buckets hold.",
            "MINIO_BUCKET_QUOTA= in .env, then the same command",
        )


def has_volume(stack: Stack, storage: str) -> bool:
    """Whether a store has a volume, which a move to it replaces."""
    return f"{stack.name}_{storage}" in stack.engine.volumes(stack.name)


@data_services.explained()
def move(stack: Stack, storage: str) -> Stack:
    """Copies and compares everything, then switches. Until then the present store stays in use; its volume is kept.

    Raises MlstackError; the same command then begins again, and `make up` continues with the present store.
    """
    stack = start.prepare(stack)
    start.build(_with(stack, storage))
    data_services.start_data_services(stack)
    swap.settle(stack)
    try:
        _copy_all(stack, storage)
        return _switched(stack, storage)
    except BaseException:
        log.warning("%s stays in use, and MLflow is stopped: make up starts it", stack.storage)
        raise


def _copy_all(stack: Stack, storage: str) -> None:
    data_services.stop_clients(stack)
    _close(stack)
    source = data_services.storage_client(stack.keys)
    listed = {bucket: histories.histories(source, bucket) for bucket in stack.keys.buckets}
    size = sum(map(histories.size_of, listed.values()))
    if problem := preflight.check_disk(stack, size / preflight.GIB + preflight.MIN_DISK_GIB):
        raise problem
    with _beside(stack, storage) as target:
        for bucket, history in listed.items():
            _copy(source, target, bucket, history)
    log.info("every version and delete marker is in %s, and equal by checksum", storage)


def _copy(source: Minio, target: Minio, bucket: str, listed: histories.Histories) -> None:
    log.info("copying the bucket %s: %d objects", bucket, len(listed))
    target.make_bucket(bucket)
    target.set_bucket_versioning(bucket, VersioningConfig(ENABLED))
    with bar("objects", histories.size_of(listed)) as advance:
        digests = histories.copy(source, target, bucket, listed, advance)
    with bar("comparing", histories.size_of(listed)) as advance:
        histories.require_equal(target, bucket, digests, advance)


def _switched(stack: Stack, storage: str) -> Stack:
    env_file.change(stack.folder, STORAGE=storage)
    moved = stack.reread()
    try:
        start.start(moved)
    except BaseException:
        env_file.change(stack.folder, STORAGE=stack.storage)
        raise
    return moved


def _close(stack: Stack) -> None:
    """Gives MLflow's user of the present store keys that nobody has: earlier presigned URLs open nothing until `make up`."""
    stack.compose.output(
        *("run", "--rm", "--no-deps", "--no-TTY", "bootstrap"), environment={name: secrets.token_hex(10) for name in _KEYS}
    )


@contextmanager
def _beside(stack: Stack, storage: str) -> Iterator[Minio]:
    """The other store, with an empty volume, in a container that no service uses. What it holds is kept only at the end."""
    container, port, environment = f"{stack.name}-storage", preflight.free_ports(1)[0], {"STORAGE": storage}
    _remove(stack, container, storage)  # what an interrupted or earlier move left
    options = ("--detach", "--no-deps", "--name", container, "--publish", f"127.0.0.1:{port}:9000")
    stack.compose.output("run", *options, "minio", *_COMMANDS[storage], environment=environment)
    keys = replace(stack.keys, endpoint=f"127.0.0.1:{port}")
    try:
        _wait(keys)
        yield data_services.storage_client(keys)
    except BaseException:
        _remove(stack, container, storage)
        raise
    docker("stop", container)
    docker("rm", container)


def _wait(keys: Keys) -> None:
    try:
        retrying(DEADLINE, lambda error: isinstance(error, HTTPError))(client_for(keys).list_buckets)
    except HTTPError as error:
        raise MlstackError(
            f"the other store did not answer within {DEADLINE} s: {error}",
            "Nothing was copied.",
            "docker info (is there memory for both stores?), then the same command",
        ) from error


def _remove(stack: Stack, container: str, storage: str) -> None:
    if docker("ps", "--all", "--quiet", "--filter", f"name=^{container}$").strip():
        docker("rm", "--force", container)
    if has_volume(stack, storage):
        docker("volume", "rm", f"{stack.name}_{storage}")


def _with(stack: Stack, storage: str) -> Stack:
    return replace(stack, values={**stack.values, "STORAGE": storage})


def _other(storage: str) -> str:
    return next(other for other in settings.STORES if other != storage)
