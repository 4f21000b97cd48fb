"""The ways from this machine into a stack's database and storage, with their owners' credentials."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg2
import urllib3
from minio import Minio
from minio.error import MinioException

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host.compose import attached, compose, containers
from mlstack.host.volumes import give_to_services
from mlstack.settings import Keys, Login

DATA_SERVICES = ("postgres", "minio")
CONNECTIONS = 8


@dataclass(frozen=True)
class Stack:
    """A stack as the backup sees it. `backup_key` signs its backups, `built` are its own images."""

    project: Path
    name: str
    owner: Login
    tracking: Login
    accounts: Login
    keys: Keys
    backup_key: str = field(repr=False)
    images: Mapping[str, str]
    built: Sequence[str]


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


def of_project(project: Path) -> Stack:
    """The stack that a project's `.env` describes. Raises SettingsError naming what is missing there."""
    values = settings.of_project(project)
    found = settings.read("COMPOSE_PROJECT_NAME", "POSTGRES_PORT", "MINIO_PORT", "BACKUP_KEY", values=values)
    name = found["COMPOSE_PROJECT_NAME"]
    own = {service: f"{name}-{service}" for service in ("postgres", "minio", "mlflow", "jupyter")}
    named = {service: values.get(f"{service.upper()}_IMAGE") for service in own}

    def here(login: Login) -> Login:
        return replace(login, host="127.0.0.1", port=int(found["POSTGRES_PORT"]))

    return Stack(
        project=project,
        name=name,
        owner=here(settings.database_owner(values)),
        tracking=here(settings.tracking_login(values)),
        accounts=here(settings.accounts_login(values)),
        keys=replace(settings.storage_owner(values), endpoint=f"127.0.0.1:{found['MINIO_PORT']}"),
        backup_key=found["BACKUP_KEY"],
        images={service: named[service] or image for service, image in own.items()},
        built=[image for service, image in own.items() if not named[service]],
    )


def storage_client(keys: Keys) -> Minio:
    """An S3 client for many transfers at once, which tries again when a connection breaks."""
    pool = urllib3.PoolManager(
        maxsize=CONNECTIONS * 2,
        timeout=urllib3.Timeout(connect=5, read=120),
        retries=urllib3.Retry(total=4, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
    )
    return Minio(keys.endpoint, access_key=keys.access_key, secret_key=keys.secret_key, secure=False, http_client=pool)


def are_well(project: Path, *services: str) -> bool:
    """Whether all these services run and are healthy."""
    well = {container.service for container in containers(project) if container.state == "running" and container.is_well}
    return well.issuperset(services)


def require_running(project: Path) -> None:
    """Raises MlstackError unless the database and the storage can be read."""
    if not are_well(project, *DATA_SERVICES):
        raise MlstackError("the stack is not running, or not healthy.", "A backup reads its database and its storage.", "make up")


def try_data_services(project: Path) -> bool:
    """Whether database and storage became healthy."""
    give_to_services(project)
    return attached(project, "up", "--detach", "--wait", "--no-build", "--no-deps", *DATA_SERVICES) == 0


def start_data_services(project: Path) -> None:
    """Database and storage run; MLflow stays as it is. Raises MlstackError when they do not become healthy."""
    if not are_well(project, *DATA_SERVICES) and not try_data_services(project):
        raise MlstackError(
            "Postgres or MinIO did not become healthy (docker compose says why, above).",
            "Nothing was changed.",
            "docker compose logs postgres minio",
        )


def stop_clients(project: Path) -> None:
    """Nothing writes any more: MLflow and its one-shots are stopped, notebooks keep their kernels."""
    compose(project, "stop", "mlflow", "migration", "bootstrap")


def run_bootstrap(project: Path) -> None:
    """Roles, database, bucket, policy and user are as `.env` wants them."""
    compose(project, "run", "--rm", "--no-deps", "--no-TTY", "bootstrap")
