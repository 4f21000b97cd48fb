import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mlstack import settings
from mlstack.postgres import connected
from mlstack.settings import Keys, Login
from tests.conftest import OWN_STACK
from tests.support.clone import Clone

SECRETS = [name for name, variable in settings.VARIABLES.items() if variable.secret and not variable.optional]


@pytest.fixture(scope="package")
def shared(clone: Clone) -> Iterator[Clone]:
    """The clone, whose stack runs until the last test of this folder."""
    yield clone
    clone.erase()


@pytest.fixture(scope="module")
def stack(shared: Clone, request: pytest.FixtureRequest) -> Iterator[Clone]:
    """The shipped stack, started as a user would; files share it. Those in OWN_STACK and of parts get an empty one."""
    is_own = request.node.path.name in OWN_STACK or request.node.path.parent.name == "parts"
    if is_own:
        shared.erase()
    printed = shared.up()
    assert f"http://127.0.0.1:{shared.values['JUPYTER_PORT']}/lab" in printed
    assert "01_first_run.ipynb" in printed
    assert not [name for name in SECRETS if shared.values[name] in printed]
    yield shared
    if is_own:
        shared.erase()
    shutil.rmtree(shared.folder / "backups", ignore_errors=True)


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
