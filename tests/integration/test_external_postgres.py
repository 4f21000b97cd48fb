"""The bootstrap at a Postgres that is not the stack's own: over TLS, with an administrator who is no superuser, or none."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.jobs.bootstrap import Outcome, external
from mlstack.postgres import connected, require_supported
from mlstack.settings import Login, Roles
from tests.support.certificates import Authority
from tests.support.clone import Clone
from tests.support.external_postgres import ADMINISTRATOR, ExternalPostgres, external_postgres

AUTHORITY = Authority("a provider's own authority")


@pytest.fixture(scope="module")
def server(built: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExternalPostgres]:
    with external_postgres(built.image("postgres"), tmp_path_factory.mktemp("authority"), AUTHORITY) as server:
        yield server


@pytest.fixture(scope="module")
def administrator(server: ExternalPostgres) -> Login:
    return replace(server.administrator, options="-csearch_path=pg_catalog")


@pytest.fixture
def roles(server: ExternalPostgres, built: Clone, request: pytest.FixtureRequest) -> Roles:
    """Logins of a database of this test's own."""
    name = re.sub(r"\W", "_", request.node.name)[-30:]

    def login(role: Login) -> Login:
        return replace(server.administrator, user=f"{role.user}_{name}", password=role.password, database=name)

    values = settings.database_roles(built.values)
    return Roles(login(values.tracking), login(values.accounts), login(values.reader))


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    seen: list[Outcome] = []
    monkeypatch.setattr(external, "report", lambda subject, outcome: seen.append(outcome))
    return seen


def bootstrap(administrator: Login, roles: Roles) -> None:
    with connected(administrator, 10) as connection:
        external.bootstrap(connection, administrator, roles)


def test_bootstrap_needs_no_superuser_and_changes_nothing_the_second_time(
    administrator: Login, roles: Roles, outcomes: list[Outcome]
) -> None:
    bootstrap(administrator, roles)
    assert Outcome.CREATED in outcomes
    outcomes.clear()
    bootstrap(administrator, roles)
    assert set(outcomes) == {Outcome.ALREADY_THERE}
    external.check(roles)


def test_bootstrap_with_new_passwords_sets_them(administrator: Login, roles: Roles) -> None:
    bootstrap(administrator, roles)
    tracking = replace(roles.tracking, password="another password")
    bootstrap(administrator, replace(roles, tracking=tracking))
    with connected(tracking, 5):
        pass
    with pytest.raises(MlstackError, match="rejects the password"), connected(roles.tracking, 5):
        pass


def test_bootstrap_leaves_other_databases_of_the_server_alone(
    server: ExternalPostgres, administrator: Login, roles: Roles
) -> None:
    server.execute("CREATE DATABASE of_others")
    bootstrap(administrator, roles)
    with connected(replace(roles.reader, database="of_others"), 5) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT datacl IS NULL FROM pg_database WHERE datname = 'of_others'")
        assert cursor.fetchone() == (True,)


def test_role_that_an_administrator_made_with_more_connections_is_limited(administrator: Login, roles: Roles) -> None:
    """Naming NOSUPERUSER in ALTER ROLE is denied to an administrator who is no superuser."""
    with connected(administrator, 10) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {roles.tracking.user} LOGIN PASSWORD 'x'")
    bootstrap(administrator, roles)
    external.check(roles)


@pytest.mark.refusal
def test_missing_right_is_reported_with_the_statement_for_an_administrator_and_no_password(
    server: ExternalPostgres, administrator: Login, roles: Roles
) -> None:
    server.execute(f"CREATE ROLE {roles.reader.user} LOGIN PASSWORD 'x'")  # the provider's: no right of the administrator
    with pytest.raises(MlstackError) as denied:
        bootstrap(administrator, roles)
    assert f"{ADMINISTRATOR} lacks a right" in denied.value.wrong
    assert (
        f'in the database postgres: ALTER ROLE "{roles.reader.user}"' in denied.value.fix and "PASSWORD '…'" in denied.value.fix
    )
    assert roles.reader.password not in str(denied.value)


def test_schema_of_another_owner_is_reported_with_its_database(
    server: ExternalPostgres, administrator: Login, roles: Roles
) -> None:
    database = roles.tracking.database
    bootstrap(administrator, roles)
    server.execute(f"ALTER SCHEMA accounts OWNER TO {server.superuser.user}", database)
    with pytest.raises(MlstackError) as denied:
        bootstrap(administrator, roles)
    assert f'in the database {database}: ALTER SCHEMA "accounts" OWNER TO' in denied.value.fix


def test_without_an_administrators_login_the_sql_for_one_is_complete(server: ExternalPostgres, roles: Roles) -> None:
    with pytest.raises(MlstackError, match="rejects the password") as missing:
        external.check(roles)
    assert not [login.password for login in vars(roles).values() if login.password in str(missing.value)]
    _, _, text = missing.value.fix.partition("of this: ")
    at_server, inside = text.split("; and in that database: ")
    for login, variable in ((roles.tracking, "MLFLOW"), (roles.accounts, "ACCOUNTS"), (roles.reader, "READER")):
        at_server = at_server.replace(f"<{variable}_DB_PASSWORD of .env>", login.password)
    for statement in at_server.split("; "):
        server.execute(statement)
    with pytest.raises(MlstackError, match="lacks USAGE, CREATE on the schema public"):
        external.check(roles)
    for statement in inside.split("; "):
        server.execute(statement, roles.tracking.database)
    external.check(roles)


@pytest.mark.refusal
def test_server_is_rejected_whose_certificate_or_name_cannot_be_verified(
    server: ExternalPostgres, administrator: Login, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    (tmp_path / "other.pem").write_text(Authority("another authority").certificate)
    for login, expected in (
        (replace(administrator, sslrootcert=str(tmp_path / "other.pem")), "EXTERNAL_POSTGRES_CA"),
        (replace(administrator, sslrootcert=str(tmp_path / "missing.pem")), "cannot be read"),
        (replace(administrator, host="no-such-host.invalid"), "no host has the name no-such-host.invalid"),
        (replace(administrator, password="a wrong one"), f"rejects the password of {ADMINISTRATOR}"),
        (replace(administrator, port=1), "1 does not answer"),
    ):
        with subtests.test(expected=expected), pytest.raises(MlstackError, match=expected) as refused, connected(login, 1):
            pass
        assert login.password not in str(refused.value)
    server.install(AUTHORITY.issue("another.example.com"))
    try:
        with (
            subtests.test("a certificate for another name"),
            pytest.raises(MlstackError, match="is for another name"),
            connected(administrator, 1),
        ):
            pass
        with connected(replace(administrator, sslmode="verify-ca"), 5):
            pass
    finally:
        server.install(AUTHORITY.issue(administrator.host))
    with connected(administrator, 5) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert cursor.fetchone() == (True,)


def test_server_of_another_version_is_rejected(administrator: Login) -> None:
    with connected(administrator, 5) as connection, pytest.raises(MlstackError, match="versions 90 to 99 are supported"):
        require_supported(connection, 90, 99)
