"""The two services that hold a stack's data, Postgres and MinIO: started, waited for, and what they refuse in plain words."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import urllib3
from minio import Minio
from minio.error import MinioException

from mlstack.errors import MlstackError
from mlstack.host.stack import Stack
from mlstack.host.volumes import give_to_services
from mlstack.settings import Keys

DATA_SERVICES = ("postgres", "minio")
CONNECTIONS = 8


@contextmanager
def explained() -> Iterator[None]:
    """What Postgres, MinIO or the disk refuses in the middle of a command, as an error for people."""
    again = "The command did not end. What it had begun is taken up, or undone, when it is given again."
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
    """An S3 client for many transfers at once, which tries again when a connection breaks."""
    pool = urllib3.PoolManager(
        maxsize=CONNECTIONS * 2,
        timeout=urllib3.Timeout(connect=5, read=120),
        retries=urllib3.Retry(total=4, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
    )
    return Minio(keys.endpoint, access_key=keys.access_key, secret_key=keys.secret_key, secure=False, http_client=pool)


def are_well(stack: Stack, *services: str) -> bool:
    """Whether all these services run and are healthy."""
    well = {name for name, container in stack.containers.items() if container.is_running and container.is_well}
    return well.issuperset(services)


def require_running(stack: Stack) -> None:
    """Raises MlstackError unless the database and the storage can be read."""
    if not are_well(stack, *DATA_SERVICES):
        raise MlstackError("the stack is not running, or not healthy.", "A backup reads its database and its storage.", "make up")


def try_data_services(stack: Stack) -> bool:
    """Whether database and storage became healthy."""
    give_to_services(stack)
    return stack.compose.attached("up", "--detach", "--wait", "--no-build", "--no-deps", *DATA_SERVICES) == 0


def start_data_services(stack: Stack) -> None:
    """Database and storage run; MLflow stays as it is. Raises MlstackError when they do not become healthy."""
    if not are_well(stack, *DATA_SERVICES) and not try_data_services(stack):
        raise MlstackError(
            "Postgres or MinIO did not become healthy (docker compose says why, above).",
            "Nothing was changed.",
            "docker compose logs postgres minio",
        )


def stop_clients(stack: Stack) -> None:
    """Nothing writes any more: MLflow and its one-shots are stopped, notebooks keep their kernels."""
    stack.compose.output("stop", "mlflow", "migration", "bootstrap")


def run_bootstrap(stack: Stack) -> None:
    """Roles, database, bucket, policy and user are as `.env` wants them."""
    stack.compose.output("run", "--rm", "--no-deps", "--no-TTY", "bootstrap")
