"""`make key` and `make key-remove`: keys of the programs that use the scoring service. It stores only their hashes."""

from mlstack.errors import MlstackError
from mlstack.host.compose import CommandFailed
from mlstack.host.stack import Stack

SERVICE = "scoring"


def add(stack: Stack, name: str) -> str:
    """A new key for a client, in place of the one that it has. Raises MlstackError if the service does not run."""
    return _run(stack, "add", name).strip()


def remove(stack: Stack, name: str) -> None:
    """Takes a client's key away. Raises MlstackError if it has none."""
    _run(stack, "remove", name)


def require_on(stack: Stack) -> None:
    """Raises MlstackError if the part is off."""
    if not stack.services.by_name.get(SERVICE):
        raise MlstackError("the part scoring is off.", "Its service does this.", "make add PART=scoring")


def _run(stack: Stack, action: str, name: str) -> str:
    require_on(stack)
    container = stack.containers.get(SERVICE)
    if container is None or not container.is_running:
        raise MlstackError("the scoring service does not run.", "It keeps the keys.", "make up")
    try:
        command = ("python3", "-m", "mlstack.scoring.access", action, name)
        return stack.compose.output("exec", "--no-TTY", SERVICE, *command)
    except CommandFailed as error:
        if error.stderr.strip():
            reason = error.stderr.strip().splitlines()[-1]
            raise MlstackError(f"the keys cannot be changed: {reason}", "Postgres keeps their hashes.", "make doctor") from error
        raise MlstackError(
            f"there is no key of {name!r}." if action == "remove" else f"no key was generated for {name!r}.",
            "Nothing was changed.",
            "check NAME: 1 to 63 letters, digits, ., _ and -",
        ) from error
