"""The scoring service's roles and schemas, which are in the stack's database: one dump and one restore contain everything."""

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack.jobs.bootstrap import Outcome
from mlstack.postgres import SERVING_SCHEMAS

# Connections and session settings of the role that owns the schemas and of the service's, which models share: 13 for each of four
# replicas (SCORING_REPLICAS), and some for the doctor. With those of the other roles they stay below max_connections
# (jobs/bootstrap/postgres.py).
LIMITS = (
    (10, {"search_path": "pg_catalog", "idle_in_transaction_session_timeout": "10min"}),
    (60, {"search_path": "pg_catalog", "statement_timeout": "1min", "idle_in_transaction_session_timeout": "1min"}),
)
# Their key space is not that of the lock with one key, which the migrations take.
_LOCK = "pg_catalog.pg_advisory_xact_lock(integer, integer)"


def ensure_schemas(connection: Connection, owner: str) -> Outcome:
    """The schemas belong to this role, and no other may look into them without a grant."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT nspname, pg_get_userbyid(nspowner) = %s FROM pg_namespace WHERE nspname = ANY(%s)",
            (owner, list(SERVING_SCHEMAS)),
        )
        is_owned = dict(cursor.fetchall())
        for schema in SERVING_SCHEMAS:
            if not is_owned.get(schema):
                statement = "ALTER SCHEMA {} OWNER TO {}" if schema in is_owned else "CREATE SCHEMA {} AUTHORIZATION {}"
                cursor.execute(sql.SQL(statement).format(sql.Identifier(schema), sql.Identifier(owner)))
    if all(is_owned.get(schema) for schema in SERVING_SCHEMAS):
        return Outcome.ALREADY_THERE
    return Outcome.CHANGED if is_owned else Outcome.CREATED


def ensure_locks(connection: Connection, owner: str) -> Outcome:
    """This role takes advisory locks with two keys; the bootstrap lets nobody but MLflow's role take any."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT has_function_privilege(%s, %s, 'EXECUTE')", (owner, _LOCK))
        if cursor.fetchone() == (True,):
            return Outcome.ALREADY_THERE
        cursor.execute(sql.SQL("GRANT EXECUTE ON FUNCTION " + _LOCK + " TO {}").format(sql.Identifier(owner)))
    return Outcome.CREATED
