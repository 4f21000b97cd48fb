"""The one-shot of the scoring service's database, against the real Postgres: rights, migrations, partitions."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack.errors import MlstackError
from mlstack.jobs.bootstrap import Outcome
from mlstack.jobs.serving import migrations
from mlstack.jobs.serving.__main__ import serving
from mlstack.postgres import connected
from mlstack.settings import Login, Roles
from tests.integration.conftest import login
from tests.support.clone import ROOT, Clone
from tests.support.service import Service

SQL = ROOT / "sql"
ROW = (
    "INSERT INTO serving.decisions (time, request, row, model, version, role, client, features, score, latency_ms)"
    " VALUES (%s, gen_random_uuid(), 0, 'm', '1', 'champion', 'tests', '{}', '1', 1)"
)


@dataclass(frozen=True)
class Logins:
    owner: Login
    schemas: Login
    service: Login


@pytest.fixture(scope="module")
def logins(built: Clone, postgres: Service, owner: Login, bootstrapped: None) -> Logins:
    schemas = login(built, postgres, "SERVING_DB_USER", "SERVING_DB_PASSWORD")
    service = login(built, postgres, "SCORING_DB_USER", "SCORING_DB_PASSWORD")
    serving(owner, schemas, service, SQL)
    return Logins(owner, schemas, service)


@pytest.fixture
def as_service(logins: Logins) -> Iterator[Connection]:
    with connected(logins.service) as connection:
        yield connection


@pytest.fixture
def as_owner(logins: Logins) -> Iterator[Connection]:
    with connected(logins.schemas) as connection:
        yield connection


def run(connection: Connection, statement: str, *values: object) -> list[tuple[object, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return list(cursor.fetchall()) if cursor.description else []


def test_second_run_changes_nothing(logins: Logins, as_owner: Connection) -> None:
    before = run(as_owner, "SELECT * FROM serving.migrations ORDER BY name")
    assert before
    serving(logins.owner, logins.schemas, logins.service, SQL)
    assert run(as_owner, "SELECT * FROM serving.migrations ORDER BY name") == before
    assert migrations.apply(as_owner, SQL) is Outcome.ALREADY_THERE


def test_new_file_is_applied_once_and_a_failing_one_not_at_all(as_owner: Connection, tmp_path: Path) -> None:
    folder = tmp_path / "sql"
    shutil.copytree(SQL, folder)
    (folder / "decisions/901_new.sql").write_text("CREATE TABLE serving.new (a integer)")
    assert migrations.apply(as_owner, folder) is Outcome.CHANGED
    assert migrations.apply(as_owner, folder) is Outcome.ALREADY_THERE
    (folder / "decisions/902_failing.sql").write_text("CREATE TABLE serving.half (a integer); SELECT 1/0")
    with pytest.raises(MlstackError, match=r"sql/decisions/902_failing.sql cannot be applied: division by zero"):
        migrations.apply(as_owner, folder)
    assert run(as_owner, "SELECT to_regclass('serving.half')") == [(None,)]
    run(as_owner, "DROP TABLE serving.new")
    run(as_owner, "DELETE FROM serving.migrations WHERE name LIKE '%%901_new.sql'")


def test_applied_file_that_was_changed_is_rejected(as_owner: Connection, tmp_path: Path) -> None:
    folder = tmp_path / "sql"
    shutil.copytree(SQL, folder)
    with (folder / "decisions/001_decisions.sql").open("a") as file:
        file.write("-- changed\n")
    with pytest.raises(MlstackError, match=r"001_decisions.sql was changed after it was applied"):
        migrations.apply(as_owner, folder)


@pytest.mark.refusal
def test_scoring_role_adds_decisions_and_changes_none(as_service: Connection, roles: Roles) -> None:
    run(as_service, ROW, "2020-01-01")
    assert run(as_service, "SELECT count(*) > 0 FROM serving.decisions") == [(True,)]
    for statement in (
        "UPDATE serving.decisions SET client = 'other'",
        "DELETE FROM serving.decisions",
        "TRUNCATE serving.decisions",
        "DROP TABLE serving.decisions",
        "ALTER TABLE serving.decisions ADD COLUMN planted text",
        "CREATE TABLE serving.planted (a integer)",
        "INSERT INTO serving.settings VALUES ('retention_months', '1')",
        "DELETE FROM serving.labels",
        "SELECT * FROM public.runs",
        "SELECT * FROM accounts.users",
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_advisory_xact_lock(1, 1)",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(as_service, statement)
    for other in (roles.tracking, roles.accounts, roles.reader):
        with connected(other) as connection, pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(connection, "SELECT * FROM serving.decisions")


def test_partitions_are_made_filled_from_the_default_and_dropped_after_the_retention(
    as_service: Connection, as_owner: Connection
) -> None:
    ((now,),) = run(as_service, "SELECT now()")
    run(as_service, ROW, now)
    created = run(as_service, "SELECT action, partition FROM serving.maintain() ORDER BY 2")
    assert [action for action, _ in created] == ["created"] * 3
    assert run(as_service, "SELECT * FROM serving.maintain()") == []
    place = "SELECT tableoid::regclass::text FROM serving.decisions WHERE time = %s"
    assert run(as_service, place, now) == [(f"serving.{created[0][1]}",)]
    for months in (1, 2):
        run(as_owner, f"CREATE TABLE serving.decisions_2001_0{months} PARTITION OF serving.decisions"
            f" FOR VALUES FROM ('2001-0{months}-01Z') TO ('2001-0{months + 1}-01Z')")  # fmt: skip
    ((retention,),) = run(as_owner, "SELECT value FROM serving.settings WHERE name = 'retention_months'")
    run(as_owner, "UPDATE serving.settings SET value = '0' WHERE name = 'retention_months'")
    assert run(as_service, "SELECT * FROM serving.maintain()") == []
    run(as_owner, "UPDATE serving.settings SET value = '2' WHERE name = 'retention_months'")
    dropped = run(as_service, "SELECT action, partition FROM serving.maintain() ORDER BY 2")
    assert dropped == [("dropped", "decisions_2001_01"), ("dropped", "decisions_2001_02")]
    assert run(as_service, "SELECT count(*) FROM serving.decisions WHERE time = %s", now) == [(1,)]
    run(as_owner, "UPDATE serving.settings SET value = %s WHERE name = 'retention_months'", retention)
