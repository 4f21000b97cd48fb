import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testcontainers.core.config import testcontainers_config
from xdist.scheduler import LoadScopeScheduling

from tests.support.clone import Clone, make_clone, remove_leftovers

# Its image cannot be pulled where no image registry answers. Fixtures remove what they create, also after Ctrl-C;
# the next run removes what a killed run left.
testcontainers_config.ryuk_disabled = True
# A shell that starts the tests in the background makes them and their children ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


# A worker of `make test` runs whole files, and all files that share containers. The longest first, so that both end together.
STACK, SERVICES = "the shared stack", "the shared services"
LONGEST = (STACK, SERVICES, "tests/stack/test_stack.py")
# Files in tests/stack and tests/commands that need an empty stack, or leave a broken one; those in tests/parts all do.
OWN_STACK = ("test_gc.py", "test_import.py", "test_readme.py", "test_stack.py")


class Groups(LoadScopeScheduling):
    """Sends the tests of a group to one worker. xdist's own loadgroup does not see its marks since pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest groups first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(_group(item.nodeid), len(LONGEST)))


def _group(nodeid: str) -> str:
    file = Path(nodeid.partition("::")[0])
    if file.parent.name == "integration":
        return SERVICES
    return STACK if file.parent.name in ("stack", "commands") and file.name not in OWN_STACK else str(file)


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clean clone, set up and not started."""
    remove_leftovers()
    clone = make_clone(tmp_path_factory.mktemp("clone"))
    yield clone
    clone.remove()
