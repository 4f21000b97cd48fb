"""One service of the shipped compose file in its own container: same image, command, environment, healthcheck, restrictions.

Docker does not run the healthcheck: the tests run it when they need its answer.
"""

import os
import secrets
import time
from collections.abc import Callable
from typing import Any, Self

from docker.models.containers import Container
from docker.types import Mount
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from tests.support.clone import NAME, Clone, free_ports


class Service(DockerContainer):
    """A service of the clone's compose file, reachable by its name in `network` and on a free loopback port."""

    def __init__(self, clone: Clone, service: str, network: Network, *ports: int, **options: Any) -> None:
        config = clone.config["services"][service]
        super().__init__(
            config["image"],
            command=config.get("command"),
            env=dict(config["environment"]),
            name=f"{NAME}-{os.getpid()}-{service}-{secrets.token_hex(3)}",
            network=network,
            network_aliases=[service, *_aliases(config)],
            user=config.get("user"),
            read_only=config["read_only"],
            cap_drop=config["cap_drop"],
            security_opt=config["security_opt"],
            mem_limit=config["mem_limit"],
            memswap_limit=config["memswap_limit"],
            pids_limit=config["pids_limit"],
            mounts=[Mount(target, source=None) for target in _data(config) - {at for _, at, _ in options.get("volumes", [])}],
            **options,
        )
        if size := config.get("shm_size"):
            self._kwargs["shm_size"] = int(size)
        for secret in config.get("secrets", []):
            source = clone.config["secrets"][secret["source"]]["file"]
            self._kwargs["mounts"].append(Mount(secret["target"], source, type="bind", read_only=True))
        self.tmpfs = dict(entry.partition(":")[::2] for entry in config.get("tmpfs", []))
        for port in ports:
            # A fixed port stays the same when the container restarts; one that Docker chooses would not.
            self.ports[str(port)] = ("127.0.0.1", free_ports(1)[0])  # type: ignore[assignment] # docker's own type
        check: list[str] = config.get("healthcheck", {}).get("test", [])
        self._check = check[check.index("health") + 1 :] if check else []  # without the wait for the service

    def start(self) -> Self:
        """Starts the container, and waits until its healthcheck passes where it has one."""
        super().start()
        if self._check:
            wait_until(self.is_healthy, seconds=300)
        return self

    @property
    def wrapped(self) -> Container:
        container = self.get_wrapped_container()
        container.reload()
        return container

    def is_healthy(self) -> bool:
        """Whether the container runs and its healthcheck passes now."""
        return self.wrapped.status == "running" and self.wrapped.exec_run(self._check).exit_code == 0

    def address(self, port: int) -> str:
        return f"127.0.0.1:{self.get_exposed_port(port)}"

    def restart(self) -> Self:
        """Restarts the container and waits until it is healthy."""
        self.wrapped.restart()
        wait_until(self.is_healthy)
        return self

    def run(self, *command: str, user: str = "") -> str:
        """The output of a command inside; fails the test with it when the command fails."""
        code, output = self.wrapped.exec_run(list(command), user=user)
        assert code == 0, output.decode()
        text: str = output.decode()
        return text

    def log(self) -> str:
        text: str = self.wrapped.logs().decode()
        return text

    def finish(self) -> int:
        """Waits for a one-shot and returns its exit code."""
        code: int = self.wrapped.wait(timeout=180)["StatusCode"]
        return code


def _aliases(config: dict[str, Any]) -> list[str]:
    """Other names that the service has in one of its networks."""
    return [alias for network in config["networks"].values() if network for alias in network.get("aliases", [])]


def _data(config: dict[str, Any]) -> set[str]:
    """Where the service's volumes are. Here each is a new one that goes with its container."""
    return {mount["target"] for mount in config.get("volumes", []) if mount["type"] == "volume"}


def wait_until(holds: Callable[[], bool], seconds: float = 180, interval: float = 0.2) -> None:
    """Waits for a condition. Raises TimeoutError, by default so late that no busy machine fails a test."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {seconds} s")
        time.sleep(interval)
