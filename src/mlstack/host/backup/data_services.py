"""Postgres and MinIO, which hold a stack's data: starting them, waiting for them, and explaining their errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import urllib3
from minio import Minio
from minio.error import MinioException

from mlstack.errors import MlstackError
from mlstack.host.compose import CommandFailed
from mlstack.host.stack import Stack
from mlstack.host.volumes import give_to_services
from mlstack.s3 import client_with
from mlstack.settings import Keys

CONNECTIONS = 8


@contextmanager
def explained() -> Iterator[None]:
    """Turns errors of Postgres, MinIO or the disk in the middle of a command into MlstackError."""
    again = "The command did not end. The same command again resumes it, or undoes what it had begun."
    try:
        yield
    except psycopg2.Error as error:
        raise MlstackError(
            f"Postgres: {str(error).strip().partition(chr(10))[0]}", again, "docker compose logs postgres"
        ) from error
    except (MinioException, urllib3.exceptions.HTTPError) as error:
        raise MlstackError(f"MinIO: {error}", again, "docker compose logs minio") from error
    except OSError as error:
        raise MlstackError(
            f"a file cannot be read or written: {error}.", again, "make room or give access, as it says"
        ) from error


def storage_client(keys: Keys) -> Minio:
    """An S3 client for many transfers at once, which retries when a connection breaks."""
    return client_with(
        keys,
        maxsize=CONNECTIONS * 2,
        timeout=urllib3.Timeout(connect=5, read=120),
        retries=urllib3.Retry(total=4, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
    )


def data_services(stack: Stack) -> list[str]:
    """Those of Postgres and MinIO that are the stack's own."""
    return [name for name in ("postgres", "minio") if not stack.services.by_name[name].is_external]


def are_healthy(stack: Stack, *services: str) -> bool:
    """Whether all these services run and are healthy."""
    healthy = {name for name, container in stack.containers.items() if container.is_running and container.is_healthy}
    return healthy.issuperset(services)


def require_running(stack: Stack) -> None:
    """Raises MlstackError unless Postgres and MinIO are running."""
    if not are_healthy(stack, *data_services(stack)):
        raise MlstackError("the stack is not running, or not healthy.", "A backup reads Postgres and MinIO.", "make up")


def try_data_services(stack: Stack) -> bool:
    """Starts Postgres and MinIO; returns whether they became healthy."""
    if not data_services(stack):
        return True  # both are external
    give_to_services(stack)
    return stack.compose.attached("up", "--detach", "--wait", "--no-build", "--no-deps", *data_services(stack)) == 0


def start_data_services(stack: Stack) -> None:
    """Starts Postgres and MinIO, without MLflow. Raises MlstackError when they do not become healthy."""
    if not (are_healthy(stack, *data_services(stack)) and _has_its_store(stack)) and not try_data_services(stack):
        raise MlstackError(
            "Postgres or MinIO did not become healthy (docker compose says why, above).",
            "Nothing was changed.",
            "docker compose logs postgres minio",
        )


def _has_its_store(stack: Stack) -> bool:
    """Whether the running store is the one of STORAGE, which may have changed in `.env` since it started."""
    if stack.services.by_name["minio"].is_external:
        return True
    return f"{stack.name}_{stack.storage}" in {mount.volume for mount in stack.containers["minio"].mounts}


def stop_clients(stack: Stack) -> None:
    """Stops all writers: MLflow, its one-shots and those of parts; notebooks keep their kernels."""
    stack.compose.output("stop", *(service.name for service in stack.services.writers))


def run_bootstrap(stack: Stack) -> None:
    """Sets up roles, database, bucket, policy and user as in `.env`. Raises MlstackError with the bootstrap's own message."""
    try:
        stack.compose.output("run", "--rm", "--no-deps", "--no-TTY", "bootstrap")
    except CommandFailed as error:
        message = error.wrong.rpartition(" | ")[2]
        raise MlstackError(
            f"the bootstrap failed: {message}", "Nothing was changed.", "what it says, then the same command"
        ) from error
