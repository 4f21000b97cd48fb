"""The compared stacks: the shipped one, as a user has it, and MLflow at its defaults; and clients of both."""

import base64
import json
import os
import secrets
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from benchmarks.figures import DEFAULTS, MLSTACK
from mlstack import client as ours
from mlstack.errors import MlstackError
from mlstack.host.compose import compose_in, docker
from mlstack.host.engine import connect
from mlstack.host.preflight import free_ports
from tests.support.clone import Clone, make_clone, remove_leftovers, users_environment
from tests.support.wheels import PLUGINS

HERE = Path(__file__).parent
SOURCE = (HERE / "client.py").read_text(encoding="utf-8")
PATIENCE = 300.0  # seconds that a start may take


class Client:
    """A running program of client.py."""

    def __init__(self, command: list[str], folder: Path, log: Path, environment: Mapping[str, str]) -> None:
        with log.open("a") as stderr:
            self._process = subprocess.Popen(
                [*command, "-u", "-c", SOURCE],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self._log = log

    def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        """The answer of a task of client.py. Raises MlstackError with its last output when it fails."""
        assert self._process.stdin and self._process.stdout
        line = ""
        try:
            self._process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass  # reported below, as an end without an answer
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the client ended without an answer"}
        if "error" in answer:
            raise MlstackError(
                f"{task} could not be measured: {answer['error'].strip().splitlines()[-1]}",
                "A benchmark that leaves out what fails would be none.",
                f"read {self._log}",
            ) from RuntimeError(answer["error"])
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        if failed:
            self._process.kill()  # it may be busy with a long task
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass(frozen=True)
class Stack:
    """One of the two stacks. `client_service` is the container that notebooks run in."""

    side: str
    folder: Path
    name: str
    client_service: str
    database: tuple[str, str]
    url: str
    account: tuple[str, str] | None
    log: Path
    packages: Path | None
    """Where the host's Python finds its packages; None: where it always does."""

    def client(self) -> Client:
        """A client in the notebooks' container."""
        command = ["docker", "compose", "exec", "--no-TTY", self.client_service, "python3"]
        return Client(command, self.folder, self.log, os.environ)

    def host_client(self) -> Client:
        """A client on the host, set up as mlstack.client.connect() does, or plain."""
        environment = users_environment() | {"MLFLOW_TRACKING_URI": self.url}
        if self.packages:
            # By default MLflow names MinIO by a host name that only containers know, and the client retries for minutes.
            environment |= {"MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false"}
            return Client([sys.executable, "-S"], self.folder, self.log, environment | {"PYTHONPATH": str(self.packages)})
        assert self.account
        user, password = self.account
        login = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
        return Client([sys.executable], self.folder, self.log, environment | login | dict(ours.PATIENCE))

    def sql(self, statements: str) -> str:
        """The rows of a query by the database's owner."""
        user, database = self.database
        psql = ["docker", "compose", "exec", "--no-TTY", "postgres", "psql", "-XqAt", "-v", "ON_ERROR_STOP=1"]
        done = subprocess.run(
            [*psql, "-U", user, "-d", database], cwd=self.folder, input=statements, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise MlstackError(
                f"the database of {self.side} failed: {done.stderr.strip()}",
                "Its runs could not be made or counted.",
                "make logs",
            )
        return done.stdout.strip()

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return compose_in(self.folder).output("ps", "--all", "--quiet", service).strip()

    def restart_mlflow(self) -> float:
        """Seconds from `docker start` until MLflow answers a call that reads its database."""
        container = self.container("mlflow")
        docker("stop", container)
        begun = time.monotonic()
        docker("start", container)
        self.wait()
        return time.monotonic() - begun

    def wait(self) -> None:
        """Returns with the first answered call."""
        request = urllib.request.Request(f"{self.url}/api/2.0/mlflow/experiments/get?experiment_id=0")  # noqa: S310
        if self.account:
            request.add_header("Authorization", f"Basic {base64.b64encode(':'.join(self.account).encode()).decode()}")
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE):  # noqa: S310
                    return
            except OSError as error:  # not started yet, or rejected during the start
                if time.monotonic() > deadline:
                    raise MlstackError(
                        f"MLflow of {self.side} does not answer: {error}", "Nothing can be measured.", "docker ps -a"
                    ) from error
            time.sleep(0.02)

    def memory(self) -> dict[str, float]:
        """The memory of each running service from `docker stats`, in bytes."""
        engine = connect()
        sizes = {}
        for container in engine.containers(self.name):
            if container.is_running:
                sizes[container.service] = used_memory(engine.api.stats(container.id, stream=False)["memory_stats"])
        return sizes


def used_memory(stats: Mapping[str, Any]) -> int:
    """Bytes of a container's memory, without the file cache that can be evicted."""
    used: int = stats["usage"] - stats["stats"].get("inactive_file", stats["stats"].get("total_inactive_file", 0))
    return used


@contextmanager
def booted(log: Path) -> Iterator[tuple[Stack, Stack, str]]:
    """A new stack of ours with the defaults beside it, as `beside` gives them; removed afterwards."""
    remove_leftovers()
    with TemporaryDirectory(prefix="mlstack-benchmark-") as temporary:
        clone = make_clone(Path(temporary))
        try:
            clone.up()
            with beside(clone, log) as stacks:
                yield stacks
        finally:
            clone.remove()


@contextmanager
def beside(clone: Clone, log: Path) -> Iterator[tuple[Stack, Stack, str]]:
    """The defaults, a clone's running stack, and the password of the defaults' Postgres and MinIO; the defaults are removed."""
    values, password = clone.values, secrets.token_urlsafe(24)
    shipped = Stack(
        MLSTACK,
        clone.folder,
        clone.name,
        "jupyter",
        (values["POSTGRES_USER"], values["POSTGRES_DB"]),
        f"http://127.0.0.1:{values['MLFLOW_PORT']}",
        (values["MLFLOW_TRACKING_USERNAME"], values["MLFLOW_TRACKING_PASSWORD"]),
        log,
        packages=None,
    )
    images = {f"{service.upper()}_IMAGE": clone.image(service) for service in ("postgres", "minio", "mlflow", "jupyter")}
    with TemporaryDirectory(prefix="mlstack-defaults-") as folder:
        reference = _reference(Path(folder), f"{clone.name}-defaults", images, password, log)
        try:
            yield reference, shipped, password
        finally:
            compose_in(reference.folder).output("down", "--volumes", "--timeout", "0")


def make_up(stack: Stack) -> float:
    """Seconds of `make up`. Raises MlstackError with its last output."""
    return _make(stack, "up")


def make_down(stack: Stack) -> float:
    """Seconds of `make down`."""
    return _make(stack, "down")


def _make(stack: Stack, target: str) -> float:
    begun = time.monotonic()
    make(stack, target)
    return time.monotonic() - begun


def make(stack: Stack, *arguments: str) -> str:
    """What a make command prints. Raises MlstackError with its last output."""
    done = subprocess.run(
        ["make", *arguments],
        cwd=stack.folder,
        env=users_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MlstackError(
            f"make {' '.join(arguments)} failed: {done.stderr.strip()[-500:]}",
            "There is nothing to measure without the stack.",
            f"make {' '.join(arguments)}",
        )
    return done.stdout


def _reference(folder: Path, name: str, images: Mapping[str, str], password: str, log: Path) -> Stack:
    (folder / "docker-compose.yml").write_bytes((HERE / "reference.yml").read_bytes())
    port, serve = map(str, free_ports(2))
    ports = {"MLFLOW_PORT": port, "SERVE_PORT": serve}
    values = {"COMPOSE_PROJECT_NAME": name, "PASSWORD": password, **ports, **images, **PLUGINS}
    (folder / ".env").touch(mode=0o600)
    (folder / ".env").write_text("".join(f"{key}={value}\n" for key, value in values.items()))
    stack = Stack(
        DEFAULTS,
        folder,
        name,
        "client",
        ("mlflow", "mlflow"),
        f"http://127.0.0.1:{port}",
        None,
        log,
        _plain_packages(folder / "plain"),
    )
    try:
        compose_in(folder).output("up", "--detach")
        stack.wait()
    except BaseException:
        compose_in(folder).output("down", "--volumes", "--timeout", "10")
        raise
    return stack


def _plain_packages(folder: Path) -> Path:
    """This environment's packages without mlstack: those of a user who installed only MLflow's client."""
    folder.mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if "mlstack" not in package.name and package.suffix != ".pth":
            (folder / package.name).symlink_to(package)
    return folder
