import signal
from collections.abc import Iterator

import pytest
from testcontainers.core.config import testcontainers_config

from tests.support.clone import Clone, make_clone, remove_leftovers

# Its image cannot be pulled where no image registry answers. Fixtures remove what they make, also after Ctrl-C;
# what a killed run leaves is removed by the next one.
testcontainers_config.ryuk_disabled = True
# Whoever starts the tests in the background has Ctrl-C ignored in them and in all that they start; commands are tested with it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clean clone, set up and not started."""
    remove_leftovers()
    clone = make_clone(tmp_path_factory.mktemp("clone"))
    yield clone
    clone.remove()
