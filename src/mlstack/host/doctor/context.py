"""What the doctor examines, and what several checks look at: looked at once."""

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import engine
from mlstack.host.engine import Container, Engine


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

    project: Path
    limits: Limits = field(default_factory=Limits)
    now: Callable[[], float] = time.time
    named: set[str] = field(default_factory=set)  # runs that checks say they logged, to be removed if they are a doctor's
    artifacts: list[str] = field(default_factory=list)  # folders of the bucket, of such runs
    has_written: bool = False  # objects of its own, likewise
    seen: dict[str, str | MlstackError] = field(default_factory=dict)

    @cached_property
    def values(self) -> dict[str, str]:
        """`.env` under the shell."""
        return settings.of_project(self.project)

    @property
    def name(self) -> str:
        return self.values["COMPOSE_PROJECT_NAME"]

    @cached_property
    def engine(self) -> Engine:
        return engine.connect()

    @cached_property
    def containers(self) -> dict[str, Container]:
        """The stack's containers by service."""
        return {container.service: container for container in self.engine.containers(self.name)}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The compose file as compose reads it with this `.env`."""
        config: dict[str, Any] = json.loads(self.compose("config", "--format", "json"))
        return config

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

    def port(self, name: str) -> int:
        return int(self.values[name])

    def url(self, port: str) -> str:
        """An HTTP address on this machine."""
        return f"http://127.0.0.1:{self.values[port]}"

    def compose(self, *arguments: str, stdin: str = "", timeout: float = 120) -> str:
        """The output of a docker compose command. Raises MlstackError with its last line."""
        return output(["docker", "compose", *arguments], self.project, stdin, timeout, settings.for_commands())

    def python_inside(
        self, service: str, program: str, *arguments: str, timeout: float = 60, environment: Mapping[str, str] | None = None
    ) -> str:
        """The output of a Python program that is run in a service's container, as the service's own user."""
        flags = [flag for name, value in (environment or {}).items() for flag in ("--env", f"{name}={value}")]
        return self.compose(
            "exec", "--no-TTY", *flags, service, "/usr/bin/python3", "-", *arguments, stdin=program, timeout=timeout
        )  # fmt: skip


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


def output(command: list[str], folder: Path, stdin: str, timeout: float, environment: dict[str, str]) -> str:
    """What a command printed. Raises MlstackError when it fails, or takes longer than `timeout` seconds."""
    shown = " ".join(command[:3])
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise MlstackError(f"{shown} … took longer than {timeout:g} s.", "Something in the stack hangs.", "make logs") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise MlstackError(f"{shown} … failed: {lines[-1].strip()}", "The stack could not be examined.", "make logs")
    return done.stdout
