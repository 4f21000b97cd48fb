"""Where MLflow may send webhooks: to public addresses with https, and to the hosts that WEBHOOK_HOSTS names."""

import socket
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from mlstack.server.upstream import replace_webhooks

_PORTS = {"http": 80, "https": 443}


def allow(hosts: Collection[tuple[str, int]]) -> None:
    """Lets MLflow send webhooks to these hosts and ports too: in the stack, or on the host, without TLS.

    MLflow's own setting would open every private address.
    """

    def is_named(url: str) -> bool:
        parts = urlsplit(url)
        return parts.scheme in _PORTS and (parts.hostname, parts.port or _PORTS[parts.scheme]) in hosts

    def is_peer_named(peer: tuple[Any, ...]) -> bool:
        return any(peer[:2] == address for host, port in hosts for address in _addresses(host, port))

    if hosts:
        replace_webhooks(is_named, is_peer_named)


def _addresses(host: str, port: int) -> list[tuple[Any, ...]]:
    """The present addresses of a host; none while it has no address, such as a container that is stopped."""
    try:
        return [answer[4][:2] for answer in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except socket.gaierror:
        return []
