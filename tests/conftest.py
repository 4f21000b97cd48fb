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


# A worker of `make test` runs whole files, and all files that share containers. The longest first, so that both end together.
STACK, SERVICES = "the shared stack", "the shared services"
LONGEST = (STACK, SERVICES, "tests/stack/test_stack.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups the tests for the workers, and puts the longest groups first."""
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: LONGEST.index(groups[item]) if groups[item] in LONGEST else len(LONGEST))


def _group(item: pytest.Item) -> str:
    file = item.nodeid.partition("::")[0]
    if file.startswith("tests/stack/") and not item.get_closest_marker("own_stack"):
        return STACK
    return SERVICES if file.startswith("tests/integration/") else file


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clean clone, set up and not started."""
    remove_leftovers()
    clone = make_clone(tmp_path_factory.mktemp("clone"))
    yield clone
    clone.remove()
