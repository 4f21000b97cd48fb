"""MLflow's tables and accounts, before its server starts.

MLflow takes two seconds to import, so it is imported only when there is something to do.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812
from werkzeug.security import check_password_hash

from mlstack.jobs.bootstrap import Outcome, report
from mlstack.settings import Account

if TYPE_CHECKING:
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

# libpq reads host, user, database and password from PG* variables: no secret is in a URI.
# psycopg2 is named: SQLAlchemy 2.1 takes plain postgresql:// for psycopg 3.
URI = "postgresql+psycopg2://"
# The login of the accounts: user and password are in a service file (docker/python/with-logins), the rest in PG*.
ACCOUNTS_URI = "postgresql+psycopg2:///?service=accounts"
DEFAULT_EXPERIMENT = "0"
# Tables that the reader may read: not those with encrypted secrets of webhooks and endpoints.
READABLE = (
    "alembic_version",
    "assessments",
    "datasets",
    "evaluation_dataset_records",
    "evaluation_dataset_tags",
    "evaluation_datasets",
    "experiment_tags",
    "experiments",
    "input_tags",
    "inputs",
    "latest_metrics",
    "logged_model_metrics",
    "logged_model_params",
    "logged_model_tags",
    "logged_models",
    "metrics",
    "model_version_tags",
    "model_versions",
    "params",
    "registered_model_aliases",
    "registered_model_tags",
    "registered_models",
    "runs",
    "span_metrics",
    "spans",
    "tags",
    "trace_info",
    "trace_metrics",
    "trace_request_metadata",
    "trace_tags",
)


# Indexes that MLflow's schema lacks: without this one, opening an experiment reads and sorts every run of all of them
# (docs/performance.md has the plans). Its cost: one more entry for each run.
INDEXES = {"mlstack_runs_of_experiment": "runs (experiment_id, lifecycle_stage, start_time DESC, run_uuid)"}


def bootstrap(rows: Connection, accounts: Connection, admin: Account, notebook: Account, reader: str) -> None:
    """Sets up MLflow's database. `rows` and `accounts` are the connections of the two roles that own it."""
    report("MLflow's tables", ensure_schema(rows, accounts))
    report("indexes", ensure_indexes(rows))
    report(f"read permissions of {reader}", ensure_readable(rows, reader))
    for account in (admin, notebook):
        report(f"MLflow account {account.username}", ensure_account(accounts, account))
    report(f"{notebook.username} manages the default experiment", ensure_manages_default_experiment(accounts, notebook))


def ensure_schema(rows: Connection, accounts: Connection) -> Outcome:
    """MLflow's tables and those of its accounts are those of the installed MLflow."""
    marker = f"migrated by MLflow {version('mlflow')}"
    with rows.cursor() as cursor, accounts.cursor() as accounts_cursor:
        accounts_cursor.execute("SELECT to_regclass('alembic_version_auth') IS NOT NULL")
        cursor.execute("SELECT to_regclass('alembic_version'), obj_description(to_regclass('alembic_version'), 'pg_class')")
        tracking, comment = cursor.fetchone() or (None, None)
        if tracking and comment == marker and accounts_cursor.fetchone() == (True,):
            return Outcome.ALREADY_THERE
        from mlflow.db import upgrade

        # What `mlflow db upgrade` runs: fills an empty database, migrates an old one.
        upgrade.main([URI], standalone_mode=False)
        _accounts_store()
        # Marked last: an interrupted migration is resumed.
        cursor.execute(sql.SQL("COMMENT ON TABLE alembic_version IS {}").format(sql.Literal(marker)))
    return Outcome.CHANGED if tracking else Outcome.CREATED


def ensure_indexes(rows: Connection) -> Outcome:
    """The indexes of INDEXES exist; they are created without blocking writes."""
    with rows.cursor() as cursor:
        cursor.execute("SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE indisvalid")
        missing = INDEXES.keys() - {row[0] for row in cursor.fetchall()}
        for name in sorted(missing):
            # An interrupted creation leaves an invalid index of that name.
            cursor.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(sql.Identifier(name)))
            cursor.execute(sql.SQL("CREATE INDEX CONCURRENTLY {} ON " + INDEXES[name]).format(sql.Identifier(name)))
    return Outcome.CREATED if missing else Outcome.ALREADY_THERE


def ensure_readable(rows: Connection, reader: str) -> Outcome:
    """The reader may read the tables of READABLE, and no other."""
    with rows.cursor() as cursor:
        cursor.execute(
            "SELECT relname, relname = ANY(%s) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
            " AND has_table_privilege(%s, oid, 'SELECT') <> (relname = ANY(%s))",
            (list(READABLE), reader, list(READABLE)),
        )
        wrong = cursor.fetchall()
        for table, readable in wrong:
            statement = "GRANT SELECT ON {} TO {}" if readable else "REVOKE ALL ON {} FROM {}"
            cursor.execute(sql.SQL(statement).format(sql.Identifier(table), sql.Identifier(reader)))
    return Outcome.CHANGED if wrong else Outcome.ALREADY_THERE


def ensure_account(connection: Connection, account: Account) -> Outcome:
    """An account with this password, which is an admin or not."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT password_hash, is_admin FROM users WHERE username = %s", (account.username,))
        row = cursor.fetchone()
    if row and check_password_hash(row[0], account.password) and row[1] == account.is_admin:
        return Outcome.ALREADY_THERE
    store = _accounts_store()
    if row:
        store.update_user(account.username, account.password, account.is_admin)
        return Outcome.CHANGED
    store.create_user(account.username, account.password, account.is_admin)
    return Outcome.CREATED


def ensure_manages_default_experiment(connection: Connection, account: Account) -> Outcome:
    """The default experiment has no owner, so only the admin could delete a run in it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT permission FROM role_permissions JOIN user_role_assignments USING (role_id) JOIN users ON users.id = user_id"
            " WHERE username = %s AND resource_type = 'experiment' AND resource_pattern = %s",
            (account.username, DEFAULT_EXPERIMENT),
        )
        is_granted = cursor.fetchone() is not None
    if is_granted:
        return Outcome.ALREADY_THERE
    _accounts_store().create_experiment_permission(DEFAULT_EXPERIMENT, account.username, "MANAGE")
    return Outcome.CREATED


def _accounts_store() -> "SqlAlchemyStore":
    """MLflow's own store of accounts, which also migrates their tables."""
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore()
    store.init_db(ACCOUNTS_URI)
    return store
