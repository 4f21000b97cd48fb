"""`make add` and `make remove`: optional parts of the stack, which are compose profiles named in `.env`."""

from collections.abc import Iterable

from mlstack.errors import MlstackError
from mlstack.host import env_file, services
from mlstack.host.commands import start
from mlstack.host.stack import Stack


def add(stack: Stack, part: str) -> Stack:
    """Switches a part on, builds what it needs and starts it. Raises MlstackError for an unknown part, and as `make up` does."""
    _require_known(stack, part)
    stack = start.prepare_env(stack)
    return start.up(_with_parts(stack, dict.fromkeys((*services.enabled(stack.values), part))))


def remove(stack: Stack, part: str) -> Stack:
    """Stops a part and switches it off; its volumes are kept. Raises MlstackError for an unknown part."""
    _require_known(stack, part)
    names = [service.name for service in services.of_part(stack.folder, part)]
    if stack.compose.attached("rm", "--stop", "--force", *names, environment=stack.every_part):
        raise MlstackError(
            f"{part} could not be stopped.", "It is still switched on.", "what docker compose says above, then make remove again"
        )
    return start.prepare_env(_with_parts(stack, [name for name in services.enabled(stack.values) if name != part]))


def _require_known(stack: Stack, part: str) -> None:
    parts = services.parts(stack.folder)
    if part not in parts:
        raise MlstackError(
            f"{part!r} is no part of this stack.", "Nothing was changed.", f"name one of: {', '.join(parts)} (PART=…)"
        )


def _with_parts(stack: Stack, parts: Iterable[str]) -> Stack:
    """The stack with these parts in `.env`. Raises MlstackError if the shell overrides them."""
    names = ",".join(parts)
    if stack.values.get("COMPOSE_PROFILES", "") == names:
        return stack
    env_file.change(stack.folder, COMPOSE_PROFILES=names)
    changed = stack.reread()
    if changed.values.get("COMPOSE_PROFILES", "") != names:
        raise MlstackError("COMPOSE_PROFILES comes from your shell.", "It wins over the line in .env.", "unset COMPOSE_PROFILES")
    return changed
