"""The bootstrap against the real services: once, twice, interrupted, concurrently, and with users' mistakes."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import psycopg2
import pytest
from testcontainers.core.network import Network

from mlstack.errors import MlstackError
from mlstack.jobs import bootstrap
from mlstack.jobs.bootstrap import Outcome
from mlstack.jobs.bootstrap import minio as minio_steps
from mlstack.jobs.bootstrap import postgres as postgres_steps
from mlstack.jobs.bootstrap.__main__ import services
from mlstack.postgres import connected
from mlstack.settings import Keys, Login, Roles
from tests.integration.conftest import keys, login, roles_of
from tests.support.clone import Clone
from tests.support.service import Service

STEPS = 23  # of database and storage together


@pytest.fixture(scope="module")
def network(built: Clone) -> Iterator[Network]:
    """Not the session's: a second MinIO there would share the console's name with the first, and could not listen on it."""
    with Network(docker_network_kw={"labels": {"mlstack": built.name}}) as network:
        yield network


@pytest.fixture(scope="module")
def postgres(built: Clone, network: Network) -> Iterator[Service]:
    """A server that no other test has used."""
    with Service(built, "postgres", network, 5432) as service:
        yield service


@pytest.fixture(scope="module")
def minio(built: Clone, network: Network) -> Iterator[Service]:
    with Service(built, "minio", network, 9000) as service:
        yield service


@pytest.fixture(scope="module")
def owner(built: Clone, postgres: Service) -> Login:
    return login(built, postgres, "POSTGRES_USER", "POSTGRES_PASSWORD")


@pytest.fixture(scope="module")
def roles(built: Clone, postgres: Service) -> Roles:
    return roles_of(built, postgres)


@pytest.fixture(scope="module")
def role(roles: Roles) -> Login:
    return roles.tracking


@pytest.fixture(scope="module")
def owner_keys(built: Clone, minio: Service) -> Keys:
    return keys(built, minio, "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD")


@pytest.fixture(scope="module")
def user_keys(built: Clone, minio: Service) -> Keys:
    return keys(built, minio, "MLFLOW_S3_ACCESS_KEY_ID", "MLFLOW_S3_SECRET_ACCESS_KEY")


@pytest.fixture(scope="module")
def console_keys(built: Clone, minio: Service) -> Keys:
    return keys(built, minio, "MINIO_CONSOLE_USER", "MINIO_CONSOLE_PASSWORD")


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    """What the steps report, in order."""
    seen: list[Outcome] = []

    def report(subject: str, outcome: Outcome) -> Outcome:
        seen.append(outcome)
        return bootstrap.report(subject, outcome)

    for module in (postgres_steps, minio_steps):
        monkeypatch.setattr(module, "report", report)
    return seen


@pytest.mark.parametrize("steps", range(STEPS))
def test_bootstrap_resumes_after_an_interruption_at_any_step(
    steps: int, owner: Login, roles: Roles, owner_keys: Keys, user_keys: Keys, console_keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs first, on empty services, and is interrupted one step later each time."""
    done: list[Outcome] = []

    def report(subject: str, outcome: Outcome) -> Outcome:
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(outcome)
        return outcome

    for module in (postgres_steps, minio_steps):
        monkeypatch.setattr(module, "report", report)
    with pytest.raises(KeyboardInterrupt):
        services(owner, roles, owner_keys, user_keys, console_keys)
    # The step whose report was interrupted last time had been done.
    assert done == [Outcome.ALREADY_THERE] * steps


def test_bootstrap_changes_nothing_the_second_time(
    owner: Login, roles: Roles, owner_keys: Keys, user_keys: Keys, console_keys: Keys, outcomes: list[Outcome]
) -> None:
    services(owner, roles, owner_keys, user_keys, console_keys)
    assert outcomes == [Outcome.ALREADY_THERE] * STEPS


def test_two_concurrent_bootstraps_succeed(owner: Login, owner_keys: Keys, user_keys: Keys, console_keys: Keys) -> None:
    newcomer = replace(owner, user="newcomer", password="a-password", database="newcomer_db")
    newcomers = Roles(newcomer, replace(newcomer, user="newcomers_accounts"), replace(newcomer, user="newcomers_reader"))
    newcomers_keys = replace(user_keys, access_key="newcomer", bucket="newcomer")
    newcomers_console = replace(console_keys, access_key="newcomers-console", bucket="newcomer")
    errors: list[BaseException] = []

    def bootstrap_all() -> None:
        try:
            services(owner, newcomers, replace(owner_keys, bucket="newcomer"), newcomers_keys, newcomers_console)
        except BaseException as error:  # noqa: BLE001 (a thread's error is the test's result)
            errors.append(error)

    threads = [threading.Thread(target=bootstrap_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_bootstrap_replaces_old_secrets_with_those_of_the_environment(
    owner: Login, roles: Roles, owner_keys: Keys, user_keys: Keys, console_keys: Keys, outcomes: list[Outcome]
) -> None:
    new_roles = Roles(*(replace(role, password="another-password") for role in (roles.tracking, roles.accounts, roles.reader)))
    services(owner, new_roles, owner_keys, replace(user_keys, secret_key="another-secret"), console_keys)
    assert outcomes.count(Outcome.CHANGED) == 4
    with connected(new_roles.tracking, 5):
        pass
    with pytest.raises(MlstackError, match="rejects the password"):
        connected(roles.tracking, 5).__enter__()
    services(owner, roles, owner_keys, user_keys, console_keys)


def test_bootstrap_revokes_added_rights_of_roles_and_policies(
    owner: Login, roles: Roles, owner_keys: Keys, user_keys: Keys, console_keys: Keys, outcomes: list[Outcome]
) -> None:
    with connected(owner) as connection, connection.cursor() as cursor:
        cursor.execute(f'ALTER ROLE "{roles.tracking.user}" SUPERUSER')
        cursor.execute(f'ALTER ROLE "{roles.reader.user}" SET default_transaction_read_only = off')
        cursor.execute("GRANT CONNECT ON DATABASE postgres TO PUBLIC")
    with connected(replace(owner, database=roles.tracking.database)) as connection, connection.cursor() as cursor:
        cursor.execute("GRANT ALL ON SCHEMA public TO PUBLIC")
        cursor.execute("ALTER SCHEMA accounts OWNER TO CURRENT_USER")
    minio_steps._admin_for(owner_keys).attach_policy(["readwrite"], user=user_keys.access_key)
    services(owner, roles, owner_keys, user_keys, console_keys)
    assert outcomes.count(Outcome.CHANGED) == 6
    with connected(owner) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = %s", (roles.tracking.user,))
        assert cursor.fetchone() == (False,)


@pytest.mark.refusal
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE DATABASE mine",
        "CREATE ROLE mine",
        "CREATE EXTENSION file_fdw",
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "SELECT pg_read_file('/etc/passwd')",
    ],
)
def test_mlflows_role_cannot_create_databases_roles_or_extensions_or_read_files(statement: str, role: Login) -> None:
    with (
        connected(role, 5) as connection,
        connection.cursor() as cursor,
        pytest.raises(psycopg2.errors.InsufficientPrivilege),
    ):
        cursor.execute(statement)


def test_mlflows_role_creates_tables_in_its_schema(role: Login) -> None:
    with connected(role, 5) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE mine (x int)")
        cursor.execute("DROP TABLE mine")


def test_bootstrap_explains_a_password_that_the_volume_rejects(
    owner: Login, roles: Roles, owner_keys: Keys, user_keys: Keys, console_keys: Keys
) -> None:
    with pytest.raises(MlstackError) as refused:
        services(replace(owner, password="another-secret"), roles, owner_keys, user_keys, console_keys)
    text = str(refused.value)
    assert "the volume keeps the old one" in text
    assert "Nothing was changed or lost" in text
    assert "put the old" in text  # one fix
    assert "\\password" in text  # another
    assert "make reset" in text
    assert "another-secret" not in text


def test_bootstrap_explains_keys_that_minio_rejects(owner_keys: Keys, user_keys: Keys, console_keys: Keys) -> None:
    with pytest.raises(MlstackError, match="rejects MINIO_ROOT_USER"):
        minio_steps.bootstrap(replace(owner_keys, secret_key="another-secret"), user_keys, console_keys)


def test_bootstrap_names_a_service_that_does_not_answer_and_its_last_error(
    owner: Login, roles: Roles, owner_keys: Keys, user_keys: Keys, console_keys: Keys
) -> None:
    with pytest.raises(MlstackError, match=r"Postgres at 127.0.0.1:1 did not answer within 1 s.*refused"):
        services(replace(owner, host="127.0.0.1", port=1), roles, owner_keys, user_keys, console_keys, deadline=1)
    with pytest.raises(MlstackError, match=r"MinIO at 127.0.0.1:1 did not answer within 1 s.*refused"):
        minio_steps.bootstrap(replace(owner_keys, endpoint="127.0.0.1:1"), user_keys, console_keys, deadline=1)
