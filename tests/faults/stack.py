"""The stack that faults are injected into, its engine, and the clients that work on it."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import comparison
from tests.faults.comparison import KINDS, Ledger
from tests.support.clone import Clone, users_environment
from tests.support.service import wait_until

HERE = Path(__file__).parent
SERVICES = ("postgres", "minio", "mlflow", "jupyter")
PATIENCE = 400  # seconds for a stack to become healthy by itself: longer than a client's retries


@dataclass(frozen=True)
class Stack:
    """A clone's running stack, on the host's engine or on one in a container."""

    clone: Clone
    engine: str = ""  # the container whose engine runs it
    services: tuple[str, ...] = SERVICES

    def docker(self, *arguments: str, stdin: str | None = None) -> str:
        inside = ["docker", "exec", "--interactive", "--workdir", str(self.clone.folder), self.engine] if self.engine else []
        done = subprocess.run(
            [*inside, "docker", *arguments],
            cwd=self.clone.folder,
            env=users_environment(),
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def compose(self, *arguments: str, stdin: str | None = None) -> str:
        return self.docker("compose", *arguments, stdin=stdin)

    def container(self, service: str) -> str:
        """Its container; the first of several."""
        return self.compose("ps", "--all", "--quiet", service).split()[0]

    def kill(self, service: str) -> None:
        """kill -9 of the container's first process from outside: Docker would not restart it after `docker kill`."""
        pid = self.docker("inspect", "--format", "{{.State.Pid}}", self.container(service)).strip()
        self.as_root_of_the_host("kill", "-9", pid)

    def as_root_of_the_host(self, *command: str, network: str = "none") -> str:
        """A command as root in the process namespace of the engine's host."""
        return self.docker(
            "run", "--rm", "--pid", "host", "--user", "0", "--network", network, "--entrypoint", "bash",
            self.clone.image("postgres"), "-c", " ".join(command),
        )  # fmt: skip

    @property
    def is_healthy(self) -> bool:
        """Every long-running service is up and healthy."""
        states = self.compose("ps", "--all", "--format", "{{.Service}} {{.State}} {{.Health}}").split("\n")
        return {f"{service} running healthy" for service in self.services} <= set(states)

    def audit(self, ledger: Ledger) -> dict[str, Any]:
        """What Postgres and MinIO hold of the client's run; its objects are deleted afterwards."""
        return self._audit(ledger, "forget")

    def look(self, ledger: Ledger) -> dict[str, Any]:
        """What Postgres and MinIO hold of the client's run."""
        return self._audit(ledger)

    def _audit(self, ledger: Ledger, *forget: str) -> dict[str, Any]:
        output = self.compose(
            "run", "--rm", "--no-deps", "--no-TTY", "--interactive", "bootstrap",
            "python3", "-", ledger.run, ledger.model, ledger.prefix, *forget,
            stdin=(HERE / "audit.py").read_text(),
        )  # fmt: skip
        stored: dict[str, Any] = json.loads(output)
        return stored


@dataclass
class Client:
    """A training client in the Jupyter container."""

    stack: Stack
    folder: Path  # of its ledger, on the host

    @property
    def ledger(self) -> Ledger:
        return comparison.read(self.folder / "ledger.jsonl")

    @property
    def has_begun(self) -> bool:
        path = self.folder / "ledger.jsonl"
        return path.exists() and path.read_bytes().count(b"\n") > 0

    def wait_until_steady(self) -> None:
        """Each kind of write was answered several times, and a large file is in flight."""
        wait_until(lambda: self.has_begun, 90)
        wait_until(lambda: self.answered(0, 5), 120)

    def answered(self, since: int, times: int = 1) -> bool:
        """Whether each kind of write was acknowledged `times` times in calls that ended after this line of the ledger."""
        ledger = self.ledger
        fresh = [entry.kind for entry in ledger.entries if entry.outcome == "stored" and entry.position >= since]
        return all(fresh.count(kind) >= times for kind in KINDS)

    def stop(self) -> Ledger:
        """Tells it to end and waits until it has."""
        (self.folder / "stop").touch()
        wait_until(lambda: self.ledger.has_ended, PATIENCE)
        return self.ledger

    def kill(self) -> None:
        """kill -9, as the out-of-memory killer of the host does it."""
        self.stack.compose("exec", "--no-TTY", "jupyter", "bash", "-c", f"kill -9 {self.ledger.pid}")


def start_client(stack: Stack, name: str, large: int = 300, **environment: str) -> Client:
    """Starts a client in the background; its folder is in notebooks/, which the host sees."""
    folder = stack.clone.folder / "notebooks" / name
    folder.mkdir()
    uid, gid = (int(stack.clone.values[key]) for key in ("HOST_UID", "HOST_GID"))
    shutil.copy2(HERE / "client.py", folder)
    if os.geteuid() == 0:
        os.chown(folder, uid, gid)
    flags = [flag for key, value in environment.items() for flag in ("--env", f"{key}={value}")]
    inside = f"/home/mlstack/notebooks/{name}"
    stack.compose(
        "exec", "--detach", *flags, "jupyter",
        "bash", "-c", f"exec python3 {inside}/client.py {inside} {large} >{inside}/output.txt 2>&1",
    )  # fmt: skip
    return Client(stack, folder)
