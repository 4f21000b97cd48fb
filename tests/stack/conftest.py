from collections.abc import Iterator

import pytest

from mlstack import settings
from mlstack.settings import Keys, Login
from tests.clone import Clone

SECRETS = [name for name, variable in settings.VARIABLES.items() if variable.secret]


@pytest.fixture(scope="module")
def stack(clone: Clone) -> Iterator[Clone]:
    done = clone.make("up")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"http://127.0.0.1:{clone.values['JUPYTER_PORT']}/lab" in done.stdout
    assert "01_first_run.ipynb" in done.stdout
    assert not [name for name in SECRETS if clone.values[name] in done.stdout + done.stderr]
    yield clone
    clone.compose("down", "--volumes", "--remove-orphans", "--timeout", "10")


@pytest.fixture
def role(stack: Clone) -> Login:
    values = stack.values
    return Login(
        values["MLFLOW_DB_USER"], values["MLFLOW_DB_PASSWORD"], values["POSTGRES_DB"], "127.0.0.1", int(values["POSTGRES_PORT"])
    )


@pytest.fixture
def keys(stack: Clone) -> Keys:
    values = stack.values
    endpoint = f"127.0.0.1:{values['MINIO_PORT']}"
    return Keys(values["MLFLOW_S3_ACCESS_KEY_ID"], values["MLFLOW_S3_SECRET_ACCESS_KEY"], values["MINIO_BUCKET"], endpoint)
