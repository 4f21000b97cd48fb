"""Postgres: MLflow's roles and database, and nothing open to the public."""

from collections.abc import Mapping
from dataclasses import replace

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack.jobs.bootstrap import Outcome, report
from mlstack.postgres import accepts, connected
from mlstack.settings import Login, Roles

# A role that can log in and nothing more.
_ATTRIBUTES = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
ACCOUNTS_SCHEMA = "accounts"
# What MLflow's server for accounts makes; up to MLflow 3.5 and mlstack 0.1 they lay between the tracking tables.
ACCOUNTS_TABLES = (
    "alembic_version_auth",
    "experiment_permissions",
    "gateway_endpoint_permissions",
    "gateway_model_definition_permissions",
    "gateway_secret_permissions",
    "registered_model_permissions",
    "role_permissions",
    "roles",
    "scorer_permissions",
    "user_role_assignments",
    "users",
    "workspace_permissions",
)
# The settings that a role starts its sessions with.
ACCOUNTS_SESSION = {"search_path": ACCOUNTS_SCHEMA}
READER_SESSION = {"default_transaction_read_only": "on", "statement_timeout": "10min"}


def bootstrap(connection: Connection, owner: Login, roles: Roles) -> None:
    """Brings the server to the wanted state, through its owner's connection to any database."""
    tracking, accounts, reader = roles.tracking, roles.accounts, roles.reader
    report(f"database role {tracking.user}", ensure_role(connection, tracking))
    report(f"database role {accounts.user}", ensure_role(connection, accounts, ACCOUNTS_SESSION))
    report(f"database role {reader.user}", ensure_role(connection, reader, READER_SESSION))
    report(f"database {tracking.database}", ensure_database(connection, tracking.database, tracking.user))
    report("database privileges", ensure_closed_to_the_public(connection))
    report("entry of the other roles", ensure_entry(connection, tracking.database, accounts.user, reader.user))
    with connected(replace(owner, database=tracking.database)) as inside:
        report("schema privileges", ensure_schema_is_closed(inside, reader.user))
        report(f"schema {ACCOUNTS_SCHEMA}", ensure_accounts_schema(inside, accounts.user))


def ensure_role(connection: Connection, role: Login, session: Mapping[str, str] | None = None) -> Outcome:
    """A role that can log in with this password, starts with these settings, and has no other right."""
    wanted = {f"{name}={value}" for name, value in (session or {}).items()}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT rolcanlogin AND NOT (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls), rolconfig"
            " FROM pg_roles WHERE rolname = %s",
            (role.user,),
        )
        found = cursor.fetchone()
        if found and found[0] and set(found[1] or ()) == wanted and accepts(_at(connection, role)):
            return Outcome.ALREADY_THERE
        name = sql.Identifier(role.user)
        cursor.execute(
            sql.SQL(f"{'ALTER' if found else 'CREATE'} ROLE {{}} {_ATTRIBUTES} PASSWORD {{}}").format(
                name, sql.Literal(role.password)
            )
        )
        cursor.execute(sql.SQL("ALTER ROLE {} RESET ALL").format(name))
        for setting, value in (session or {}).items():
            cursor.execute(sql.SQL("ALTER ROLE {} SET {} = {}").format(name, sql.Identifier(setting), sql.Literal(value)))
    return Outcome.CHANGED if found else Outcome.CREATED


def ensure_database(connection: Connection, name: str, owner: str) -> Outcome:
    """A database of this name that belongs to `owner`."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", (name,))
        found = cursor.fetchone()
        if found and found[0] == owner:
            return Outcome.ALREADY_THERE
        statement = "ALTER DATABASE {} OWNER TO {}" if found else "CREATE DATABASE {} OWNER {}"
        cursor.execute(sql.SQL(statement).format(sql.Identifier(name), sql.Identifier(owner)))
    return Outcome.CHANGED if found else Outcome.CREATED


def ensure_closed_to_the_public(connection: Connection) -> Outcome:
    """No database lets in a role that was not granted it: Postgres lets everybody connect to each by default."""
    with connection.cursor() as cursor:
        # No ACL at all stands for the default, which is open.
        cursor.execute(
            "SELECT datname FROM pg_database WHERE datallowconn AND"
            " (datacl IS NULL OR EXISTS (SELECT FROM aclexplode(datacl) WHERE grantee = 0)) ORDER BY datname"
        )
        names = [row[0] for row in cursor.fetchall()]
        for name in names:
            cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
    return Outcome.CHANGED if names else Outcome.ALREADY_THERE


def ensure_entry(connection: Connection, database: str, *roles: str) -> Outcome:
    """These roles may connect to the database."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s) AND NOT has_database_privilege(oid, %s, 'CONNECT')",
            (list(roles), database),
        )
        missing = [row[0] for row in cursor.fetchall()]
        for role in missing:
            cursor.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(database), sql.Identifier(role)))
    return Outcome.CREATED if missing else Outcome.ALREADY_THERE


def ensure_schema_is_closed(connection: Connection, reader: str) -> Outcome:
    """Nobody but its owner and the reader can look into the schema of the tracking tables."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_namespace, aclexplode(nspacl) WHERE nspname = 'public' AND grantee = 0)"
            " OR NOT has_schema_privilege(%s, 'public', 'USAGE')",
            (reader,),
        )
        if cursor.fetchone() == (False,):
            return Outcome.ALREADY_THERE
        cursor.execute(
            sql.SQL("REVOKE ALL ON SCHEMA public FROM PUBLIC; GRANT USAGE ON SCHEMA public TO {}").format(sql.Identifier(reader))
        )
    return Outcome.CHANGED


def ensure_accounts_schema(connection: Connection, owner: str) -> Outcome:
    """MLflow's accounts are in a schema of their own, which its other role cannot read; older stacks' are moved there."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = %s", (ACCOUNTS_SCHEMA,))
        found = cursor.fetchone()
        cursor.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename = ANY(%s)", (list(ACCOUNTS_TABLES),)
        )
        astray = [row[0] for row in cursor.fetchall()]
        if found == (owner,) and not astray:
            return Outcome.ALREADY_THERE
        schema, role = sql.Identifier(ACCOUNTS_SCHEMA), sql.Identifier(owner)
        create = "ALTER SCHEMA {} OWNER TO {}" if found else "CREATE SCHEMA {} AUTHORIZATION {}"
        steps = [sql.SQL(create).format(schema, role)]
        for table in map(sql.Identifier, astray):
            steps.append(sql.SQL("ALTER TABLE public.{} SET SCHEMA {}").format(table, schema))
            steps.append(sql.SQL("ALTER TABLE {}.{} OWNER TO {}").format(schema, table, role))
        cursor.execute(sql.SQL(";").join(steps))  # one message is one transaction
    return Outcome.CHANGED if found or astray else Outcome.CREATED


def _at(connection: Connection, role: Login) -> Login:
    """The same role at the server of this connection."""
    return replace(role, host=connection.info.host, port=connection.info.port)
