"""Postgres: MLflow's roles and database, and nothing open to the public."""

from collections.abc import Mapping
from dataclasses import replace

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack.jobs.bootstrap import Outcome, report
from mlstack.postgres import ACCOUNTS_SCHEMA, accepts, connected
from mlstack.settings import Login, Roles

# A role that can log in and nothing more.
_ATTRIBUTES = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
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
# The settings that a role starts its sessions with. A forgotten transaction holds rows and locks that others need.
TRACKING_SESSION = {"idle_in_transaction_session_timeout": "10min"}
ACCOUNTS_SESSION = {"search_path": ACCOUNTS_SCHEMA, "idle_in_transaction_session_timeout": "10min"}
READER_SESSION = {
    "default_transaction_read_only": "on",
    "statement_timeout": "10min",
    "idle_in_transaction_session_timeout": "1min",
}
# Together less than max_connections in docker-compose.yml, so that no role keeps another out. MLflow's pools can take
# 2 workers × (tracking, registry) × 30 and 2 × 30 for accounts; one-shots, backups and the doctor need a few more.
TRACKING_CONNECTIONS, ACCOUNTS_CONNECTIONS, READER_CONNECTIONS = 130, 65, 40
# Functions that Postgres lets every role call: large objects fill the disk, and whoever holds the migration's advisory
# lock stops it.
_LARGE_OBJECTS, _ADVISORY_LOCKS = "^(lo_.+|loread|lowrite)$", "^pg_(try_)?advisory_(xact_)?lock"


def bootstrap(connection: Connection, owner: Login, roles: Roles) -> None:
    """Brings the server to the wanted state, through its owner's connection to any database."""
    tracking, accounts, reader = roles.tracking, roles.accounts, roles.reader
    report(f"database role {tracking.user}", ensure_role(connection, tracking, TRACKING_CONNECTIONS, TRACKING_SESSION))
    report(f"database role {accounts.user}", ensure_role(connection, accounts, ACCOUNTS_CONNECTIONS, ACCOUNTS_SESSION))
    report(f"database role {reader.user}", ensure_role(connection, reader, READER_CONNECTIONS, READER_SESSION))
    report(f"database {tracking.database}", ensure_database(connection, tracking.database, owner.user))
    report("database privileges", ensure_closed_to_the_public(connection))
    names = (tracking.user, accounts.user, reader.user)
    report("entry of the other roles", ensure_entry(connection, tracking.database, *names))
    with connected(replace(owner, database=tracking.database)) as inside:
        report("schema privileges", ensure_schema_is_closed(inside, tracking.user, reader.user))
        report(f"schema {ACCOUNTS_SCHEMA}", ensure_accounts_schema(inside, accounts.user))
        report("large objects and advisory locks", ensure_functions_are_closed(inside, tracking.user))


def ensure_role(connection: Connection, role: Login, connections: int, session: Mapping[str, str]) -> Outcome:
    """A role that can log in with this password, this many times at once, starts with these settings, and has no other right.

    A role may change its own password and settings, and nothing in Postgres forbids it: what it changed is undone here.
    """
    wanted = {f"{name}={value}" for name, value in session.items()}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT rolcanlogin AND NOT (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls)"
            " AND rolconnlimit = %s, rolconfig,"
            " ARRAY(SELECT datname FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase WHERE setrole = r.oid),"
            " ARRAY(SELECT pg_get_userbyid(roleid) FROM pg_auth_members WHERE member = r.oid)"
            " FROM pg_roles r WHERE rolname = %s",
            (connections, role.user),
        )
        found = cursor.fetchone()
        is_plain, settings, databases, groups = found or (False, None, [], [])
        is_wanted = is_plain and set(settings or ()) == wanted and not databases and not groups
        if is_wanted and accepts(_at(connection, role)):
            return Outcome.ALREADY_THERE
        name = sql.Identifier(role.user)
        cursor.execute(
            sql.SQL(f"{'ALTER' if found else 'CREATE'} ROLE {{}} {_ATTRIBUTES} CONNECTION LIMIT {{}} PASSWORD {{}}").format(
                name, sql.Literal(connections), sql.Literal(role.password)
            )
        )
        for group in groups:
            cursor.execute(sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(group), name))
        for database in databases:
            cursor.execute(sql.SQL("ALTER ROLE {} IN DATABASE {} RESET ALL").format(name, sql.Identifier(database)))
        cursor.execute(sql.SQL("ALTER ROLE {} RESET ALL").format(name))
        for setting, value in session.items():
            cursor.execute(sql.SQL("ALTER ROLE {} SET {} = {}").format(name, sql.Identifier(setting), sql.Literal(value)))
    return Outcome.CHANGED if found else Outcome.CREATED


def ensure_database(connection: Connection, name: str, owner: str) -> Outcome:
    """A database of this name that belongs to the server's owner.

    It used to be MLflow's, which could give it settings for the next session of every role: they are reset.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", (name,))
        found = cursor.fetchone()
        if found == (owner,):
            return Outcome.ALREADY_THERE
        statement = "ALTER DATABASE {0} OWNER TO {1}; ALTER DATABASE {0} RESET ALL" if found else "CREATE DATABASE {0} OWNER {1}"
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
    """These roles may connect to the database and create nothing in it: no schema, no extension, no temporary table."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT rolname FROM pg_roles WHERE rolname = ANY(%(roles)s)"
            " AND NOT (has_database_privilege(oid, %(database)s, 'CONNECT')"
            " AND NOT has_database_privilege(oid, %(database)s, 'CREATE, TEMPORARY'))",
            {"roles": list(roles), "database": database},
        )
        wrong = [row[0] for row in cursor.fetchall()]
        for role in wrong:
            cursor.execute(
                sql.SQL("REVOKE ALL ON DATABASE {0} FROM {1}; GRANT CONNECT ON DATABASE {0} TO {1}").format(
                    sql.Identifier(database), sql.Identifier(role)
                )
            )
    return Outcome.CREATED if wrong else Outcome.ALREADY_THERE


def ensure_schema_is_closed(connection: Connection, tracking: str, reader: str) -> Outcome:
    """The schema of the tracking tables is the database owner's: MLflow makes tables in it, the reader only looks."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_get_userbyid(nspowner) = 'pg_database_owner'"
            " AND NOT EXISTS (SELECT FROM aclexplode(nspacl) WHERE grantee = 0)"
            " AND has_schema_privilege(%(tracking)s, oid, 'USAGE') AND has_schema_privilege(%(tracking)s, oid, 'CREATE')"
            " AND has_schema_privilege(%(reader)s, oid, 'USAGE') AND NOT has_schema_privilege(%(reader)s, oid, 'CREATE')"
            " FROM pg_namespace WHERE nspname = 'public'",
            {"tracking": tracking, "reader": reader},
        )
        if cursor.fetchone() == (True,):
            return Outcome.ALREADY_THERE
        cursor.execute(
            sql.SQL(
                "ALTER SCHEMA public OWNER TO pg_database_owner; REVOKE ALL ON SCHEMA public FROM PUBLIC, {reader};"
                " GRANT USAGE, CREATE ON SCHEMA public TO {tracking}; GRANT USAGE ON SCHEMA public TO {reader}"
            ).format(tracking=sql.Identifier(tracking), reader=sql.Identifier(reader))
        )
    return Outcome.CHANGED


def ensure_accounts_schema(connection: Connection, owner: str) -> Outcome:
    """MLflow's accounts are in a schema of their own, which its other role cannot read; older stacks' are moved there.

    Only once: a table of such a name that MLflow's role makes later stays where it is.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = %s", (ACCOUNTS_SCHEMA,))
        found = cursor.fetchone()
        cursor.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename = ANY(%s)"
            " AND NOT EXISTS (SELECT FROM pg_tables WHERE schemaname = %s AND tablename = 'alembic_version_auth')",
            (list(ACCOUNTS_TABLES), ACCOUNTS_SCHEMA),
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


def ensure_functions_are_closed(connection: Connection, tracking: str) -> Outcome:
    """Nobody makes large objects; advisory locks are for MLflow's role, whose migration takes one."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT oid::regprocedure::text, proname ~ %(locks)s,"
            " proacl IS NULL OR EXISTS (SELECT FROM aclexplode(proacl) WHERE grantee = 0),"
            " proname ~ %(locks)s AND NOT has_function_privilege(%(tracking)s, oid, 'EXECUTE')"
            " FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ ANY(ARRAY[%(objects)s, %(locks)s])",
            {"locks": _ADVISORY_LOCKS, "objects": _LARGE_OBJECTS, "tracking": tracking},
        )
        steps: list[sql.Composable] = []
        for function, is_lock, is_open, is_missing in cursor.fetchall():
            if is_open:
                steps.append(sql.SQL("REVOKE EXECUTE ON FUNCTION " + function + " FROM PUBLIC"))
            if is_missing or (is_open and is_lock):
                steps.append(sql.SQL("GRANT EXECUTE ON FUNCTION " + function + " TO {}").format(sql.Identifier(tracking)))
        if steps:
            cursor.execute(sql.SQL(";").join(steps))
    return Outcome.CHANGED if steps else Outcome.ALREADY_THERE


def _at(connection: Connection, role: Login) -> Login:
    """The same role at the server of this connection."""
    return replace(role, host=connection.info.host, port=connection.info.port)
