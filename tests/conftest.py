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


SHARED, STACK = "the shared stack", "tests/stack/test_stack.py"
INTEGRATION = "the shared services"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A worker of `make test` gets whole files, and one worker all those that share containers; the two longest first."""
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: {SHARED: 0, STACK: 1}.get(groups[item], 2))


def _group(item: pytest.Item) -> str:
    file = item.nodeid.partition("::")[0]
    if file.startswith("tests/integration/"):
        return INTEGRATION
    return SHARED if file.startswith("tests/stack/") and not item.get_closest_marker("own_stack") else file


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clean clone, set up and not started."""
    remove_leftovers()
    clone = make_clone(tmp_path_factory.mktemp("clone"))
    yield clone
    clone.remove()
