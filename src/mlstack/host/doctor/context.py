"""What the doctor examines, and what several checks look at: looked at once."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mlstack.errors import MlstackError
from mlstack.host import compose
from mlstack.host.compose import CommandFailed, Program
from mlstack.host.engine import Container
from mlstack.host.stack import Stack


@dataclass(frozen=True)
class Limits:
    """From where on something is too little or too much."""

    disk_gib: float = 2
    free_inodes: int = 100_000
    clock_skew: float = 5  # seconds; S3 refuses signatures at 15 minutes, and run times are off long before
    backup_age: float = 7 * 86400  # seconds
    memory_share: float = 0.9  # of a container's limit
    connection_share: float = 0.8  # of Postgres' maximum


@dataclass
class Subject:
    """One stack under examination. `now` is this machine's clock, in seconds since 1970."""

    stack: Stack
    limits: Limits = field(default_factory=Limits)
    now: Callable[[], float] = time.time
    named: set[str] = field(default_factory=set)  # runs that checks say they logged, to be removed if they are a doctor's
    artifacts: list[str] = field(default_factory=list)  # folders of the bucket, of such runs
    has_written: bool = False  # objects of its own, likewise
    seen: dict[str, str | MlstackError] = field(default_factory=dict)

    @property
    def values(self) -> Mapping[str, str]:
        """`.env` under the shell."""
        return self.stack.values

    @cached_property
    def containers(self) -> dict[str, Container]:
        """The stack's containers by service, as they were when they were first looked at."""
        return self.stack.containers

    @cached_property
    def config(self) -> dict[str, Any]:
        """The compose file as compose reads it with this `.env`."""
        return compose.config(self.stack.compose)

    def once(self, name: str, look: Callable[[], str]) -> str:
        """What a long look gives, for the checks that share it. A failed one is not repeated: it would fail again."""
        if name not in self.seen:
            try:
                self.seen[name] = look()
            except MlstackError as error:
                self.seen[name] = error
        found = self.seen[name]
        if isinstance(found, MlstackError):
            raise found
        return found

    def visit(self, place: str, program: Callable[[], str]) -> dict[str, Any]:
        """What a user's code did in a place; the runs that it names are noted, to be removed if a doctor made them."""
        found: dict[str, Any] = json.loads(self.once(place, program))
        self.named |= {name for name in (found["run"], *found.get("left", [])) if isinstance(name, str)}
        return found

    def url(self, port: str) -> str:
        """An HTTP address on this machine."""
        return f"http://127.0.0.1:{self.stack.port(port)}"

    def python_inside(
        self, service: str, program: str, *arguments: str, timeout: float = 60, environment: Mapping[str, str] | None = None
    ) -> str:
        """The output of a Python program that is run in a service's container, as the service's own user."""
        flags = [flag for name, value in (environment or {}).items() for flag in ("--env", f"{name}={value}")]
        command = ("exec", "--no-TTY", *flags, service, "python3", "-", *arguments)
        return output(self.stack.compose, *command, stdin=program, timeout=timeout)


def skew(subject: Subject, whose: str, read: Callable[[], float], fix: str) -> str:
    """Compares a clock with this machine's. Raises MlstackError when they are too far apart."""
    before = subject.now()
    found = read()
    after = subject.now()
    apart = max(before - found, found - after, 0.0)  # what lies within the question is no skew
    if apart > subject.limits.clock_skew:
        raise MlstackError(
            f"the clock of {whose} is {apart:.0f} s off this machine's.",
            "The storage refuses signed requests at 15 minutes, and the times of runs are wrong.",
            fix,
        )
    return f"within {apart:.1f} s"


def output(
    program: Program, *arguments: str, stdin: str = "", timeout: float = 120, environment: Mapping[str, str] | None = None
) -> str:
    """What a command printed. Raises MlstackError when it fails, or takes longer than `timeout` seconds."""
    try:
        return program.output(*arguments, stdin=stdin, timeout=timeout, environment=environment)
    except CommandFailed as error:
        raise MlstackError(error.wrong, "The stack could not be examined.", "make logs") from error
