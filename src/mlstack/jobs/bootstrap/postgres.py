"""Postgres: roles and the database, with no privileges for PUBLIC."""

from collections.abc import Mapping
from dataclasses import replace

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack.jobs.bootstrap import Outcome, report
from mlstack.postgres import ACCOUNTS_SCHEMA, accepts, connected
from mlstack.settings import Login, Roles

# A role that can only log in.
_ATTRIBUTES = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
# The tables of MLflow's accounts; up to MLflow 3.5 and mlstack 0.1 they were in the schema of the tracking tables.
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
# Session settings of each role. A forgotten transaction holds rows and locks that others need.
TRACKING_SESSION = {"idle_in_transaction_session_timeout": "10min"}
ACCOUNTS_SESSION = {"search_path": ACCOUNTS_SCHEMA, "idle_in_transaction_session_timeout": "10min"}
READER_SESSION = {
    "default_transaction_read_only": "on",
    "statement_timeout": "10min",
    "idle_in_transaction_session_timeout": "1min",
}
# Together less than max_connections in docker-compose.yml, so that no role can use up the connections of another. MLflow's pools
# can take 2 workers × (tracking, registry) × 30 and 2 × 30 for accounts; one-shots, backups and the doctor need a few more.
TRACKING_CONNECTIONS, ACCOUNTS_CONNECTIONS, READER_CONNECTIONS = 130, 65, 40
# The limit and the session settings of each of these roles.
LIMITS = (
    (TRACKING_CONNECTIONS, TRACKING_SESSION),
    (ACCOUNTS_CONNECTIONS, ACCOUNTS_SESSION),
    (READER_CONNECTIONS, READER_SESSION),
)
# Functions that Postgres lets every role call: large objects fill the disk, and a session that holds the migration's advisory
# lock blocks it.
_LARGE_OBJECTS, _ADVISORY_LOCKS = "^(lo_.+|loread|lowrite)$", "^pg_(try_)?advisory_(xact_)?lock"


def bootstrap(connection: Connection, owner: Login, roles: Roles) -> None:
    """Sets up the stack's own server, through its owner's connection to any database."""
    tracking, accounts, reader = roles.tracking, roles.accounts, roles.reader
    for role, (connections, session) in zip((tracking, accounts, reader), LIMITS, strict=True):
        report(f"database role {role.user}", ensure_role(connection, role, connections, session))
    report(f"database {tracking.database}", ensure_database(connection, tracking.database, owner.user))
    report("database privileges", ensure_public_cannot_connect(connection))
    names = (tracking.user, accounts.user, reader.user)
    report("connect privileges of the other roles", ensure_can_connect(connection, tracking.database, *names))
    with connected(replace(owner, database=tracking.database)) as inside:
        report("schema privileges", ensure_schema_privileges(inside, tracking.user, reader.user))
        report(f"schema {ACCOUNTS_SCHEMA}", ensure_accounts_schema(inside, accounts.user))
        report("large objects and advisory locks", ensure_function_privileges(inside, tracking.user))


def ensure_role(connection: Connection, role: Login, connections: int, session: Mapping[str, str]) -> Outcome:
    """A role with this password, connection limit and session settings, and no other right.

    Postgres lets every role change its own password and settings: such changes are undone here.
    """
    configuration = {f"{name}={value}" for name, value in session.items()}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT rolcanlogin AND NOT (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls),"
            " rolconnlimit = %s, rolconfig,"
            " ARRAY(SELECT datname FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase WHERE setrole = r.oid),"
            " ARRAY(SELECT pg_get_userbyid(roleid) FROM pg_auth_members WHERE member = r.oid)"
            " FROM pg_roles r WHERE rolname = %s",
            (connections, role.user),
        )
        row = cursor.fetchone()
        is_plain, is_limited, settings, databases, groups = row or (False, False, None, [], [])
        is_wanted = is_plain and is_limited and set(settings or ()) == configuration and not databases and not groups
        if is_wanted and accepts(_at(connection, role)):
            return Outcome.ALREADY_THERE
        name = sql.Identifier(role.user)
        # A role that has no more than these attributes keeps them: an administrator of a managed server may not even name them.
        attributes = "" if is_plain else _ATTRIBUTES
        cursor.execute(
            sql.SQL(f"{'ALTER' if row else 'CREATE'} ROLE {{}} {attributes} CONNECTION LIMIT {{}} PASSWORD {{}}").format(
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
    return Outcome.CHANGED if row else Outcome.CREATED


def ensure_database(connection: Connection, name: str, owner: str) -> Outcome:
    """A database of this name that belongs to the server's owner.

    Once it was MLflow's, whose role could set defaults for the sessions of every role: they are reset.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", (name,))
        current_owner = cursor.fetchone()
        if current_owner == (owner,):
            return Outcome.ALREADY_THERE
        statement = (
            "ALTER DATABASE {0} OWNER TO {1}; ALTER DATABASE {0} RESET ALL" if current_owner else "CREATE DATABASE {0} OWNER {1}"
        )
        cursor.execute(sql.SQL(statement).format(sql.Identifier(name), sql.Identifier(owner)))
    return Outcome.CHANGED if current_owner else Outcome.CREATED


def ensure_public_cannot_connect(connection: Connection, database: str | None = None) -> Outcome:
    """Only roles with a grant can connect to this database, or to any: by default Postgres lets every role connect to all."""
    with connection.cursor() as cursor:
        # Without an ACL the default applies: every role may connect.
        cursor.execute(
            "SELECT datname FROM pg_database WHERE datallowconn AND"
            " (datacl IS NULL OR EXISTS (SELECT FROM aclexplode(datacl) WHERE grantee = 0))"
            " AND (%(database)s IS NULL OR datname = %(database)s) ORDER BY datname",
            {"database": database},
        )
        names = [row[0] for row in cursor.fetchall()]
        for name in names:
            cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
    return Outcome.CHANGED if names else Outcome.ALREADY_THERE


def ensure_can_connect(connection: Connection, database: str, *roles: str) -> Outcome:
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


def ensure_schema_privileges(connection: Connection, tracking: str, reader: str) -> Outcome:
    """The schema of the tracking tables is the database owner's: MLflow creates tables in it, the reader only reads."""
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
    """MLflow's accounts are in a schema that its tracking role cannot read; those of older stacks are moved there.

    Only once: a table of such a name that MLflow's role creates later is not moved.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = %s", (ACCOUNTS_SCHEMA,))
        current_owner = cursor.fetchone()
        cursor.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename = ANY(%s)"
            " AND NOT EXISTS (SELECT FROM pg_tables WHERE schemaname = %s AND tablename = 'alembic_version_auth')",
            (list(ACCOUNTS_TABLES), ACCOUNTS_SCHEMA),
        )
        misplaced = [row[0] for row in cursor.fetchall()]
        if current_owner == (owner,) and not misplaced:
            return Outcome.ALREADY_THERE
        schema, role = sql.Identifier(ACCOUNTS_SCHEMA), sql.Identifier(owner)
        create = "ALTER SCHEMA {} OWNER TO {}" if current_owner else "CREATE SCHEMA {} AUTHORIZATION {}"
        steps = [sql.SQL(create).format(schema, role)]
        for table in map(sql.Identifier, misplaced):
            steps.append(sql.SQL("ALTER TABLE public.{} SET SCHEMA {}").format(table, schema))
            steps.append(sql.SQL("ALTER TABLE {}.{} OWNER TO {}").format(schema, table, role))
        cursor.execute(sql.SQL(";").join(steps))  # one message is one transaction
    return Outcome.CHANGED if current_owner or misplaced else Outcome.CREATED


def ensure_function_privileges(connection: Connection, tracking: str) -> Outcome:
    """No role creates large objects; only MLflow's role, whose migration needs one, takes advisory locks."""
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
