"""Commands that a user types now and then, also interrupted, out of order and on a broken stack: `make test-commands`."""

from tests.stack.conftest import keys, owner_keys, role, shared, stack  # noqa: F401 (fixtures)
