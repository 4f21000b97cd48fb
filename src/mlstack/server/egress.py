"""What the AI gateway may connect to: the hosts that GATEWAY_HOSTS names, and itself.

Accounts choose the address of a model server, so the network alone, which is open or closed for all of them, is not enough.
MLflow tells public from private addresses; here each host and port is named. Every library that connects in Python is checked;
Postgres' is written in C, takes its address from the environment, and is not.
"""

import socket
import sys
from collections.abc import Collection
from typing import Any

from mlflow.exceptions import MlflowException

from mlstack.server.upstream import PERMISSION_DENIED

OWN = ("127.0.0.1", 5000)  # for guardrails, which are models behind the gateway


def confine(hosts: Collection[tuple[str, int]]) -> None:
    """Rejects, from now on and for the whole process, each connection to a host or port that is not named."""
    named, addresses = {*hosts, OWN}, {OWN}
    resolve: Any = socket.getaddrinfo

    def resolved(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        name = (host.decode() if isinstance(host, bytes) else str(host)).lower()
        if (name, port) not in named:
            raise _rejected(name, port)
        answers = resolve(host, port, *arguments, **options)
        addresses.update(answer[4][:2] for answer in answers)
        return answers

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        # An address that was not looked up by name, and names of files, which are no network.
        if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][:2] not in addresses | named:
            raise _rejected(*arguments[1][:2])

    socket.getaddrinfo = resolved
    sys.addaudithook(check)


def _rejected(host: object, port: object) -> MlflowException:
    return MlflowException(
        f"The AI gateway may not connect to {host}:{port}: GATEWAY_HOSTS does not name it, and a model server anywhere would be"
        f" sent what it asks for. Fix: add {host}:{port} to GATEWAY_HOSTS in .env, then make up.",
        PERMISSION_DENIED,
    )
