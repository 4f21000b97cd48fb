"""An external Postgres: the same roles, database and schemas, as far as the rights of the given login go (docs/adr/0037)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack.errors import MlstackError
from mlstack.jobs.bootstrap import Outcome, log, postgres, report
from mlstack.postgres import ACCOUNTS_SCHEMA, connected, ensure_member, require_supported
from mlstack.settings import Login, Roles, commands_database

# No password is printed, also not those of .env.
_PASSWORD = re.compile(r"PASSWORD '(?:[^']|'')*'")
_PRIVILEGES = {
    "USAGE, CREATE on the schema public": "has_schema_privilege('public', 'USAGE') AND has_schema_privilege('public', 'CREATE')",
    "CREATE on the schema accounts": "to_regnamespace('accounts') IS NOT NULL AND has_schema_privilege('accounts', 'CREATE')",
    "USAGE on the schema public": "has_schema_privilege('public', 'USAGE')",
}


def bootstrap(connection: Connection, administrator: Login, roles: Roles) -> None:
    """Sets up the stack's roles and database, and touches no other role or database of the server.

    Raises MlstackError with the SQL for an administrator where a right is missing.
    """
    tracking, accounts, reader, database = roles.tracking, roles.accounts, roles.reader, roles.tracking.database
    require_supported(connection)
    with right_explained(administrator, "postgres"):
        for role, (connections, session) in zip((tracking, accounts, reader), postgres.LIMITS, strict=True):
            report(f"database role {role.user}", postgres.ensure_role(connection, role, connections, session))
            ensure_member(connection, role.user)
        # The second is for commands of the host, which replace the first.
        for name in (database, commands_database(database)):
            report(f"database {name}", postgres.ensure_database(connection, name, administrator.user))
            report(f"privileges of database {name}", postgres.ensure_public_cannot_connect(connection, name))
        names = (tracking.user, accounts.user, reader.user)
        report("connect privileges of the roles", postgres.ensure_can_connect(connection, database, *names))
    with right_explained(administrator, database), connected(replace(administrator, database=database)) as inside:
        report("schema privileges", postgres.ensure_schema_privileges(inside, tracking.user, reader.user))
        report(f"schema {ACCOUNTS_SCHEMA}", postgres.ensure_accounts_schema(inside, accounts.user))
    log.info("large objects and advisory locks: as the server has them, because its functions belong to all of its users")


def check(roles: Roles) -> None:
    """Without an administrator's login: raises MlstackError with the SQL for one unless the roles have what they need."""
    logins = (roles.tracking, roles.accounts, roles.reader)
    for login, (privilege, condition) in zip(logins, _PRIVILEGES.items(), strict=True):
        try:
            with connected(login) as connection, connection.cursor() as cursor:
                require_supported(connection)
                cursor.execute("SELECT " + condition)
                has_privilege = cursor.fetchone() == (True,)
        except MlstackError as error:
            raise MlstackError(error.wrong, error.why, f"{error.fix}. {_for_administrator(roles)}") from error
        if not has_privilege:
            raise MlstackError(
                f"external Postgres: {login.user} lacks {privilege} in the database {login.database}.",
                "MLflow could not keep its tables there.",
                _for_administrator(roles),
            )
        report(f"database role {login.user}", Outcome.ALREADY_THERE)


@contextmanager
def right_explained(administrator: Login, database: str) -> Iterator[None]:
    """Turns a missing right into MlstackError with the statement that an administrator has to run in this database."""
    try:
        yield
    except psycopg2.errors.InsufficientPrivilege as error:
        cursor = error.cursor
        statement = _PASSWORD.sub("PASSWORD '…'", cursor.query.decode()) if cursor and cursor.query else "what it denied"
        raise MlstackError(
            f"external Postgres: {administrator.user} lacks a right: {str(error).splitlines()[0]}.",
            "A role, a database or a privilege of the stack is missing, and nothing else was changed.",
            f"as an administrator of the server, in the database {database}: {statement}; then make up",
        ) from error


def _for_administrator(roles: Roles) -> str:
    """The SQL that sets everything up, without passwords."""
    tracking, accounts, reader = logins = roles.tracking.user, roles.accounts.user, roles.reader.user
    database = roles.tracking.database
    statements = []
    for role, variable, (connections, session) in zip(logins, ("MLFLOW", "ACCOUNTS", "READER"), postgres.LIMITS, strict=True):
        statements.append(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT {connections} PASSWORD '<{variable}_DB_PASSWORD of .env>'")
        statements += [f"ALTER ROLE {role} SET {name} = '{value}'" for name, value in session.items()]
    statements += [
        f"CREATE DATABASE {database}",
        f"REVOKE ALL ON DATABASE {database} FROM PUBLIC",
        f"GRANT CONNECT ON DATABASE {database} TO {tracking}, {accounts}, {reader}",
        "and in that database: REVOKE ALL ON SCHEMA public FROM PUBLIC",
        f"GRANT USAGE, CREATE ON SCHEMA public TO {tracking}",
        f"GRANT USAGE ON SCHEMA public TO {reader}",
        f"CREATE SCHEMA {ACCOUNTS_SCHEMA} AUTHORIZATION {accounts}",
    ]
    return f"An administrator of the server runs what is missing of this: {'; '.join(statements)}"
