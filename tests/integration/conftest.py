from collections.abc import Iterator

import pytest
from testcontainers.core.network import Network

from mlstack import settings
from mlstack.host.commands import start
from mlstack.host.stack import Stack
from mlstack.jobs.bootstrap.__main__ import services
from mlstack.settings import Keys, Login, Roles
from tests.support.clone import Clone
from tests.support.service import Service


@pytest.fixture(scope="package")
def built(clone: Clone) -> Clone:
    """The clone, with its images built from its own files."""
    start.build(Stack.of(clone.folder))
    return clone


@pytest.fixture(scope="package")
def network(built: Clone) -> Iterator[Network]:
    with Network(docker_network_kw={"labels": {"mlstack": built.name}}) as network:
        yield network


@pytest.fixture(scope="package")
def postgres(built: Clone, network: Network) -> Iterator[Service]:
    with Service(built, "postgres", network, 5432) as service:
        yield service


@pytest.fixture(scope="package")
def minio(built: Clone, network: Network) -> Iterator[Service]:
    with Service(built, "minio", network, 9000) as service:
        yield service


@pytest.fixture(scope="package")
def owner(built: Clone, postgres: Service) -> Login:
    """The login of the database's owner, from the host."""
    return login(built, postgres, "POSTGRES_USER", "POSTGRES_PASSWORD")


@pytest.fixture(scope="package")
def roles(built: Clone, postgres: Service) -> Roles:
    """All other database logins."""
    return roles_of(built, postgres)


@pytest.fixture(scope="package")
def role(roles: Roles) -> Login:
    """MLflow's database login."""
    return roles.tracking


@pytest.fixture(scope="package")
def owner_keys(built: Clone, minio: Service) -> Keys:
    """The keys of MinIO's owner, from the host."""
    return keys(built, minio, "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD")


@pytest.fixture(scope="package")
def user_keys(built: Clone, minio: Service) -> Keys:
    """MLflow's keys."""
    return keys(built, minio, "MLFLOW_S3_ACCESS_KEY_ID", "MLFLOW_S3_SECRET_ACCESS_KEY")


@pytest.fixture(scope="package")
def console_keys(built: Clone, minio: Service) -> Keys:
    """The console user's keys."""
    return keys(built, minio, "MINIO_CONSOLE_USER", "MINIO_CONSOLE_PASSWORD")


@pytest.fixture(scope="package")
def bootstrapped(owner: Login, roles: Roles, owner_keys: Keys, user_keys: Keys, console_keys: Keys) -> None:
    """Both services after the bootstrap."""
    services(owner, roles, owner_keys, user_keys, console_keys)


@pytest.fixture(scope="package")
def migrated(built: Clone, network: Network, bootstrapped: None) -> None:
    """MLflow's tables and accounts, created by the shipped one-shot."""
    with Service(built, "migration", network) as migration:
        assert migration.finish() == 0, migration.log()


@pytest.fixture(scope="package")
def mlflow(built: Clone, network: Network, migrated: None) -> Iterator[Service]:
    with Service(built, "mlflow", network, 5000) as service:
        yield service


@pytest.fixture(scope="package")
def jupyter(built: Clone, network: Network, mlflow: Service) -> Iterator[Service]:
    with Service(built, "jupyter", network, 8888) as service:
        yield service


def login(clone: Clone, postgres: Service, user: str, password: str) -> Login:
    host, _, port = postgres.address(5432).partition(":")
    return Login(clone.values[user], clone.values[password], clone.values["POSTGRES_DB"], host, int(port))


def roles_of(clone: Clone, postgres: Service) -> Roles:
    return Roles(
        login(clone, postgres, "MLFLOW_DB_USER", "MLFLOW_DB_PASSWORD"),
        login(clone, postgres, "ACCOUNTS_DB_USER", "ACCOUNTS_DB_PASSWORD"),
        login(clone, postgres, "READER_DB_USER", "READER_DB_PASSWORD"),
    )


def keys(clone: Clone, minio: Service, access_key: str, secret_key: str) -> Keys:
    buckets = (clone.values[name] for name in settings.BUCKETS)
    return Keys(clone.values[access_key], clone.values[secret_key], *buckets, minio.address(9000))
