"""A clean clone of this project with a stack of its own: another name, free ports, fresh secrets."""

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from mlstack import settings
from mlstack.host import services
from mlstack.host.compose import compose_in, docker
from mlstack.host.preflight import free_ports

NAME = "mlstack-test"
ROOT = Path(__file__).parents[2]
PORTS = services.read(ROOT, {"COMPOSE_PROFILES": "*"}).ports


@dataclass(frozen=True)
class Clone:
    """A folder with the project's files and a `.env`."""

    folder: Path
    name: str

    @property
    def values(self) -> dict[str, str]:
        return settings.of_project(self.folder)

    @property
    def config(self) -> dict[str, Any]:
        """The compose file as compose reads it, with the present values of `.env`."""
        return _config(self.folder, (self.folder / ".env").read_bytes())

    def image(self, service: str) -> str:
        image: str = self.config["services"][service]["image"]
        return image

    def compose(self, *arguments: str) -> str:
        return compose_in(self.folder).output(*arguments)

    def make(self, *targets: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`make` as a user would, without a terminal. Neither pytest's settings nor a running stack's reach it.

        YES is passed on its command line: make ignores it in the environment.
        """
        answer = [f"YES={environment.pop('YES')}"] if "YES" in environment else []
        return subprocess.run(
            ["make", *targets, *answer],
            cwd=self.folder,
            env=users_environment() | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, *arguments: str, stdin: int = subprocess.DEVNULL, output: int = subprocess.PIPE) -> subprocess.Popen[str]:
        """A command of mlstack that runs on, in a session of its own, so that all its processes can be ended."""
        return subprocess.Popen(
            [self.folder / ".venv/bin/mlstack", *arguments],
            cwd=self.folder,
            env=users_environment(),
            stdin=stdin,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )

    def set(self, **changes: str) -> None:
        """Edits `.env` as a user would."""
        path = self.folder / ".env"
        lines = path.read_text().splitlines()
        others = [line for line in lines if line.partition("=")[0] not in changes]
        path.write_text("\n".join(others + [f"{name}={value}" for name, value in changes.items()]) + "\n")

    def in_container(self, service: str, *command: str, **environment: str) -> str:
        flags = [flag for name, value in environment.items() for flag in ("--env", f"{name}={value}")]
        return self.compose("exec", "--no-TTY", *flags, service, *command)

    @contextmanager
    def started(self) -> Iterator[str]:
        """Its stack, started as a user would; then removed with its data. Gives what `make up` printed."""
        printed = self.up()
        try:
            yield printed
        finally:
            self.erase()

    def up(self) -> str:
        """What `make up` prints."""
        done = self.make("up")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def erase(self) -> None:
        """Removes containers, networks and volumes, also of parts that are off. No service stops cleanly: its data goes too."""
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "0")

    def remove(self) -> None:
        """Everything in the engine that is the clone's; the layers of its images stay in the build cache.

        Only images with its name: those of MLFLOW_IMAGE and the like are others'.
        """
        self.erase()
        own = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"reference={self.name}-*").split()
        if own:
            docker("image", "rm", "--force", *own)


@lru_cache
def _config(folder: Path, env: bytes) -> dict[str, Any]:  # cached by the content of .env
    # compose escapes $ as $$ in its output.
    config: dict[str, Any] = json.loads(compose_in(folder).output("config", "--format", "json").replace("$$", "$"))
    return config


def users_environment() -> dict[str, str]:
    """This process' environment without a running stack's settings, and without the variables of the make that runs the tests.

    With the uv of this folder, so that no clone has to obtain one.
    """
    foreign = {*settings.VARIABLES, "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    own = {name: value for name, value in os.environ.items() if name not in foreign}
    return own | {"PATH": f"{own['PATH']}:{ROOT}/.venv/uv/bin"}


def make_clone(folder: Path, name: str = f"{NAME}-{os.getpid()}") -> Clone:
    """Copies what git would: every tracked file, and those not ignored that are not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for path in filter(None, listed.stdout.split("\0")):
        if (ROOT / path).is_file():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, folder / path)
    clone = Clone(folder, name)
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    done = clone.make("env", COMPOSE_PROJECT_NAME=clone.name, **ports)
    assert done.returncode == 0, done.stderr
    return clone


def remove_leftovers() -> None:
    """Removes what a killed test run left: containers, networks and volumes named after a process that has ended.

    Workers of one run take turns: two would remove the same container.
    """
    with Path(tempfile.gettempdir(), f"{NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_leftovers()


def _remove_leftovers() -> None:
    for kind, listing in (
        ("container", ("ps", "--all", "--format", "{{.Names}}")),
        ("network", ("network", "ls", "--format", "{{.Name}}")),
        ("volume", ("volume", "ls", "--format", "{{.Name}}")),
        ("image", ("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")),
    ):
        for name in docker(*listing).split():
            pid = name.removeprefix(f"{NAME}-").partition("-")[0].partition("_")[0]
            if name.startswith(f"{NAME}-") and pid.isdecimal() and not psutil.pid_exists(int(pid)):
                docker(kind, "rm", *(["--force", "--volumes"] if kind == "container" else []), name)
