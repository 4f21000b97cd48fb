"""What the project needs of the store of its artifacts and data sets, promised by VersityGW (docs/storage.md)."""

import pytest

from mlstack.settings import VERSITYGW
from tests.integration.test_storage_contract import *  # noqa: F403 (its tests and fixtures)
from tests.support.clone import Clone, make_clone


@pytest.fixture(scope="module")
def name() -> str:
    return VERSITYGW


@pytest.fixture(scope="module")
def image(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    other = make_clone(tmp_path_factory.mktemp("versitygw"))  # with the name of `clone`, which removes its image
    other.set(STORAGE=VERSITYGW)
    other.compose("build", "--quiet", "minio")
    return other
