"""What the doctor examines; what several checks need is read once."""

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
    """Thresholds of warnings and failures."""

    disk_gib: float = 2
    free_inodes: int = 100_000
    clock_skew: float = 5  # seconds; S3 rejects signatures at 15 minutes, and times of runs are wrong long before
    backup_age: float = 7 * 86400  # seconds
    memory_share: float = 0.9  # of a container's limit
    connection_share: float = 0.8  # of Postgres' maximum


@dataclass
class Subject:
    """One stack under examination. `now` is the host's clock, in seconds since 1970."""

    stack: Stack
    limits: Limits = field(default_factory=Limits)
    now: Callable[[], float] = time.time
    named: set[str] = field(default_factory=set)  # runs that the checks' programs report, to be removed if they are a doctor's
    artifacts: list[str] = field(default_factory=list)  # folders of the bucket, of such runs
    has_written: bool = False  # objects of its own, likewise
    seen: dict[str, str | MlstackError] = field(default_factory=dict)

    @property
    def values(self) -> Mapping[str, str]:
        """`.env` under the shell."""
        return self.stack.values

    @cached_property
    def containers(self) -> dict[str, Container]:
        """The stack's containers by service, read once."""
        return self.stack.containers

    @cached_property
    def config(self) -> dict[str, Any]:
        """The compose file as compose reads it with this `.env`."""
        return compose.config(self.stack.compose)

    def once(self, name: str, look: Callable[[], str]) -> str:
        """A slow result that several checks share. A failure is not repeated: it would fail again."""
        if name not in self.seen:
            try:
                self.seen[name] = look()
            except MlstackError as error:
                self.seen[name] = error
        result = self.seen[name]
        if isinstance(result, MlstackError):
            raise result
        return result

    def visit(self, place: str, program: Callable[[], str]) -> dict[str, Any]:
        """The result of a user's program in a place; its runs are recorded, to be removed if they are a doctor's."""
        result: dict[str, Any] = json.loads(self.once(place, program))
        self.named |= {name for name in (result["run"], *result.get("left", [])) if isinstance(name, str)}
        return result

    def url(self, port: str) -> str:
        """An HTTP address on the host."""
        return f"http://127.0.0.1:{self.stack.port(port)}"

    def python_inside(
        self, service: str, program: str, *arguments: str, timeout: float = 60, environment: Mapping[str, str] | None = None
    ) -> str:
        """The output of a Python program that is run in a service's container, as the service's own user."""
        flags = [flag for name, value in (environment or {}).items() for flag in ("--env", f"{name}={value}")]
        command = ("exec", "--no-TTY", *flags, service, "/usr/bin/python3", "-", *arguments)
        return output(self.stack.compose, *command, stdin=program, timeout=timeout)


def skew(subject: Subject, whose: str, read: Callable[[], float], fix: str) -> str:
    """Compares a clock with the host's. Raises MlstackError if they differ too much."""
    before = subject.now()
    time_read = read()
    after = subject.now()
    apart = max(before - time_read, time_read - after, 0.0)  # the time of the request itself is no skew
    if apart > subject.limits.clock_skew:
        raise MlstackError(
            f"the clock of {whose} is {apart:.0f} s off the host's.",
            "MinIO rejects signed requests at 15 minutes, and the times of runs are wrong.",
            fix,
        )
    return f"within {apart:.1f} s"


def output(
    program: Program, *arguments: str, stdin: str = "", timeout: float = 120, environment: Mapping[str, str] | None = None
) -> str:
    """The output of a command. Raises MlstackError when it fails, or takes longer than `timeout` seconds."""
    try:
        return program.output(*arguments, stdin=stdin, timeout=timeout, environment=environment)
    except CommandFailed as error:
        raise MlstackError(error.wrong, "The stack could not be examined.", "make logs") from error
