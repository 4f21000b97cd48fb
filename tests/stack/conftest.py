import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mlstack import settings
from mlstack.postgres import connected
from mlstack.settings import Keys, Login
from tests.support.clone import Clone

SECRETS = [name for name, variable in settings.VARIABLES.items() if variable.secret]


@pytest.fixture(scope="module")
def stack(clone: Clone) -> Iterator[Clone]:
    """The shipped stack, started as a user would, empty at the start of each file."""
    env = clone.folder / ".env"
    before = env.read_bytes()
    with clone.started() as printed:
        assert f"http://127.0.0.1:{clone.values['JUPYTER_PORT']}/lab" in printed
        assert "01_first_run.ipynb" in printed
        assert not [name for name in SECRETS if clone.values[name] in printed]
        yield clone
    env.write_bytes(before)  # the session's containers, which other files share, do not know rotated secrets
    shutil.rmtree(clone.folder / "backups", ignore_errors=True)  # of this stack, which is removed


@pytest.fixture
def role(stack: Clone) -> Login:
    """MLflow's database login, from the host."""
    return replace(settings.tracking_login(stack.values), host="127.0.0.1", port=int(stack.values["POSTGRES_PORT"]))


@pytest.fixture
def keys(stack: Clone) -> Keys:
    """MLflow's keys for MinIO, from the host."""
    return replace(settings.tracking_keys(stack.values), endpoint=f"127.0.0.1:{stack.values['MINIO_PORT']}")


@pytest.fixture
def owner_keys(stack: Clone) -> Keys:
    """The keys of MinIO's owner, from the host."""
    return replace(settings.storage_owner(stack.values), endpoint=f"127.0.0.1:{stack.values['MINIO_PORT']}")


def rows(role: Login, statement: str) -> list[tuple[object, ...]]:
    with connected(role, 30) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()
