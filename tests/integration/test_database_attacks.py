"""What a holder of one of the database's logins tries, on the shipped Postgres with MLflow's tables in it."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import psycopg2
import pytest

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.jobs.bootstrap.__main__ import services
from mlstack.jobs.bootstrap.postgres import ACCOUNTS_CONNECTIONS, READER_CONNECTIONS, TRACKING_CONNECTIONS
from mlstack.postgres import connected, turn
from mlstack.settings import Keys, Login, Roles

pytestmark = pytest.mark.usefixtures("migrated")
Bootstrap = tuple[Login, Roles, Keys, Keys, Keys]


@pytest.fixture
def inside(owner: Login, roles: Roles) -> Login:
    """The owner's login to MLflow's database, with its sessions' settings."""
    options = settings.database_owner(
        {"POSTGRES_USER": owner.user, "POSTGRES_PASSWORD": owner.password, "POSTGRES_DB": owner.database}
    ).options
    return replace(owner, database=roles.tracking.database, options=options)


@pytest.fixture
def bootstrap(inside: Login, roles: Roles, owner_keys: Keys, user_keys: Keys, console_keys: Keys) -> Iterator[Bootstrap]:
    """The arguments of `services`; afterwards the bootstrap restores everything."""
    arguments = (inside, roles, owner_keys, user_keys, console_keys)
    yield arguments
    services(*arguments)


def run(who: Login, statement: str) -> list[tuple[object, ...]]:
    with connected(who, 5) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def denied(who: Login, statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run(who, statement)


@pytest.mark.refusal
@pytest.mark.parametrize(
    "statement",
    [
        "ALTER DATABASE {database} SET search_path = public, pg_catalog",
        "ALTER DATABASE {database} OWNER TO {user}",
        "ALTER SCHEMA public OWNER TO {user}",
        "CREATE SCHEMA mine",
        "CREATE EXTENSION pg_trgm",
        "CREATE PUBLICATION mine",
        "CREATE TEMPORARY TABLE mine (x int)",
        "CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION pg_catalog.lower()",
        "SELECT lo_from_bytea(0, 'x')",
    ],
)
def test_mlflows_login_creates_nothing_but_its_tables(roles: Roles, statement: str) -> None:
    denied(roles.tracking, statement.format(database=roles.tracking.database, user=roles.tracking.user))


@pytest.mark.refusal
@pytest.mark.parametrize(
    "statement",
    ["SELECT lo_creat(-1)", "SELECT lo_create(0)", "SELECT lo_from_bytea(0, 'x')", "SELECT lo_import('/etc/passwd')",
     "CREATE TEMPORARY TABLE mine (x int)", "CREATE TABLE public.mine (x int)", "DELETE FROM runs",
     "INSERT INTO experiments (name) VALUES ('mine')"],
)  # fmt: skip
def test_reader_stores_nothing(roles: Roles, statement: str) -> None:
    denied(replace(roles.reader, options="-cdefault_transaction_read_only=off"), statement)


@pytest.mark.refusal
@pytest.mark.parametrize("statement", ["SELECT pg_advisory_lock(0x6D6C7374)", "SELECT pg_try_advisory_lock_shared(1, 2)"])
def test_reader_and_accounts_login_cannot_take_the_migration_lock(roles: Roles, statement: str) -> None:
    for who in (roles.reader, roles.accounts):
        denied(who, statement)


def test_migration_that_waits_too_long_names_the_holder_of_the_lock(roles: Roles) -> None:
    with turn(roles.tracking), pytest.raises(MlstackError, match=f"role {roles.tracking.user}, process \\d+, since"):
        turn(roles.tracking, patience=0.5).__enter__()


@pytest.mark.refusal
def test_login_cannot_use_up_the_connections_of_another(roles: Roles, inside: Login) -> None:
    limits = {roles.reader: READER_CONNECTIONS, roles.accounts: ACCOUNTS_CONNECTIONS, roles.tracking: TRACKING_CONNECTIONS}
    with ExitStack() as held:
        for who, limit in limits.items():
            opened = 0
            with pytest.raises(psycopg2.OperationalError, match="too many connections for role"):
                while opened <= limit:
                    held.callback(psycopg2.connect(**parameters(who)).close)
                    opened += 1
            assert opened  # it was the limit, of which MLflow's own server may hold a part
        assert run(inside, "SELECT 1") == [(1,)]


def parameters(who: Login) -> dict[str, object]:
    return {"host": who.host, "port": who.port, "user": who.user, "password": who.password, "dbname": who.database}


@pytest.mark.refusal
def test_bootstrap_undoes_settings_that_a_login_gave_itself(bootstrap: Bootstrap, inside: Login, roles: Roles) -> None:
    reader = roles.reader
    before = run(inside, "SELECT setrole, setdatabase, setconfig FROM pg_db_role_setting ORDER BY 1, 2")
    run(
        replace(reader, options="-cdefault_transaction_read_only=off"),
        f"ALTER ROLE {reader.user} SET statement_timeout = 1;"
        f" ALTER ROLE {reader.user} IN DATABASE {reader.database} SET search_path = pg_catalog;"
        f" ALTER ROLE {reader.user} PASSWORD 'another-password'",
    )
    services(*bootstrap)
    assert run(inside, "SELECT setrole, setdatabase, setconfig FROM pg_db_role_setting ORDER BY 1, 2") == before
    assert run(reader, "SHOW default_transaction_read_only") == [("on",)]


@pytest.mark.refusal
def test_sessions_of_the_owner_run_nothing_that_mlflows_login_planted(bootstrap: Bootstrap, inside: Login, roles: Roles) -> None:
    """An older stack: MLflow owns the database, its schema and its settings, and has planted functions, tables and a role."""
    mlflow = roles.tracking
    run(inside, f"ALTER DATABASE {mlflow.database} OWNER TO {mlflow.user}; GRANT pg_read_all_data TO {mlflow.user}")
    run(
        mlflow,
        f"""ALTER SCHEMA public OWNER TO {mlflow.user};
        CREATE FUNCTION public.quote_ident(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
          ALTER ROLE {mlflow.user} SUPERUSER; RETURN pg_catalog.quote_ident($1);
        EXCEPTION WHEN insufficient_privilege THEN RETURN pg_catalog.quote_ident($1); END $$;
        CREATE FUNCTION public.aclexplode(aclitem[]) RETURNS SETOF record LANGUAGE plpgsql AS $$ BEGIN
          ALTER ROLE {mlflow.user} SUPERUSER; RETURN; EXCEPTION WHEN insufficient_privilege THEN RETURN; END $$;
        CREATE TABLE public.users (username text);
        ALTER DATABASE {mlflow.database} SET search_path = public, pg_catalog;""",
    )
    try:
        services(*bootstrap)
        assert run(inside, "SELECT rolname FROM pg_roles WHERE rolsuper") == [(inside.user,)]
        members = f"SELECT count(*) FROM pg_auth_members WHERE pg_get_userbyid(member) = '{mlflow.user}'"  # noqa: S608
        assert run(inside, members) == [(0,)]
        assert run(
            inside,
            "SELECT pg_get_userbyid(datdba), pg_get_userbyid(nspowner),"
            " (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = d.oid)"
            " FROM pg_database d, pg_namespace WHERE datname = current_database() AND nspname = 'public'",
        ) == [(inside.user, "pg_database_owner", 0)]
        assert run(mlflow, "SELECT tableowner FROM pg_tables WHERE schemaname = 'public' AND tablename = 'users'") == [
            (mlflow.user,)
        ]
        run(mlflow, "SELECT count(*) FROM runs")  # it still reads its own tables
    finally:
        run(
            mlflow,
            "DROP FUNCTION public.quote_ident(text); DROP FUNCTION public.aclexplode(aclitem[]); DROP TABLE public.users",
        )


def test_mlflows_login_migrates_its_tables_without_owning_the_database(roles: Roles) -> None:
    assert run(roles.tracking, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'") == [
        (roles.tracking.user,)
    ]
    run(roles.tracking, "CREATE TABLE mine (x int); CREATE INDEX ON mine (x); DROP TABLE mine")
