"""Optional parts, each on a stack of its own: `make test-parts`."""

from tests.stack.conftest import keys, owner_keys, role, shared, stack  # noqa: F401 (fixtures)
