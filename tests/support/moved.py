"""A stack with work that moves to an existing Postgres, as docs/external.md says."""

import subprocess
from typing import Any

from mlstack.host.backup import bucket, data_services, postgres
from mlstack.host.stack import Stack
from mlstack.settings import VARIABLES
from tests.support.clone import Clone
from tests.support.external_postgres import ExternalPostgres
from tests.support.work import everything, fill

SECRETS = [name for name, variable in VARIABLES.items() if variable.secret]


def content(clone: Clone) -> tuple[object, dict[str, tuple[str, int]], dict[str, Any]]:
    """Rows and checksum of every table, every object with its ETag and size, and what MLflow's client reads."""
    stack = Stack.of(clone.folder)
    with postgres.connected(stack) as connection:
        tables = postgres.tables(stack, connection)
    client = data_services.storage_client(stack.keys)
    objects = {
        f"{name}/{key}": (item.etag, item.size)
        for name in stack.keys.buckets
        for key, item in bucket.current(client, name).items()
    }
    return tables, objects, everything(clone)


def command(clone: Clone, *targets: str, **options: str) -> subprocess.CompletedProcess[str]:
    """Runs a command, which has to succeed and to show no secret."""
    done = clone.make(*targets, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [name for name in SECRETS if clone.values[name] and clone.values[name] in done.stdout + done.stderr]
    return done


def move(clone: Clone, server: ExternalPostgres, seed: int = 1) -> None:
    """Fills the stack and moves it; afterwards it holds what it held before."""
    fill(clone, runs=6, points=300, megabytes=1, models=1, seed=seed)
    expected = content(clone)
    command(clone, "backup")
    login = server.administrator
    clone.set(
        EXTERNAL_POSTGRES=login.host,
        EXTERNAL_POSTGRES_PORT=str(login.port),
        EXTERNAL_POSTGRES_USER=login.user,
        EXTERNAL_POSTGRES_PASSWORD=login.password,
        EXTERNAL_POSTGRES_CA=login.sslrootcert,
    )
    command(clone, "restore", BACKUP="latest", YES="1")
    assert content(clone) == expected
