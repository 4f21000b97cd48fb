import signal
from collections.abc import Iterator

import pytest
from testcontainers.core.config import testcontainers_config

from tests.support.clone import Clone, make_clone, remove_leftovers

# Its image cannot be pulled where no image registry answers. Fixtures remove what they create, also after Ctrl-C;
# the next run removes what a killed run left.
testcontainers_config.ryuk_disabled = True
# A shell that starts the tests in the background makes them and their children ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clean clone, set up and not started."""
    remove_leftovers()
    clone = make_clone(tmp_path_factory.mktemp("clone"))
    yield clone
    clone.remove()
