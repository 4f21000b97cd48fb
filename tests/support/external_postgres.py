"""A Postgres as a provider would run it: TLS with an authority of its own, and an administrator who is no superuser."""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from mlstack.host.compose import DOCKER, docker
from mlstack.host.preflight import free_ports
from mlstack.postgres import connected
from mlstack.settings import Login
from tests.support.certificates import Authority, Certificate
from tests.support.clone import NAME

ADMINISTRATOR = "administrator"


@dataclass(frozen=True)
class ExternalPostgres:
    """`superuser` is the provider's own login; `administrator` creates roles and databases and has no other right."""

    container: str
    superuser: Login
    administrator: Login

    def install(self, certificate: Certificate) -> None:
        """Serves this certificate to new connections."""
        for name, text in (("server.crt", certificate.certificate), ("server.key", certificate.key)):
            DOCKER.output("exec", "--interactive", self.container, "bash", "-c", f'umask 077; cat >"$PGDATA/{name}"', stdin=text)
        docker("exec", self.container, "bash", "-c", 'pg_ctl reload --pgdata "$PGDATA"')

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Runs SQL as the provider."""
        with connected(replace(self.superuser, database=database), 10) as connection, connection.cursor() as cursor:
            cursor.execute(statement)


def address() -> str:
    """An address of the host that containers reach too. An engine's first start lists no gateway of its bridge."""
    bridge = docker("network", "inspect", "bridge", "--format", '{{index .Options "com.docker.network.bridge.name"}}').strip()
    return next(item.address for item in psutil.net_if_addrs()[bridge] if item.family == socket.AF_INET)


@contextmanager
def external_postgres(image: str, folder: Path, authority: Authority) -> Iterator[ExternalPostgres]:
    """A server in the host's network; `folder` gets the file with the authority's certificate."""
    host, port = address(), free_ports(1)[0]
    (folder / "authority.pem").write_text(authority.certificate)
    password = secrets.token_hex(16)
    superuser = Login(
        "provider", password, "postgres", host, port, sslmode="verify-full", sslrootcert=str(folder / "authority.pem")
    )
    name = f"{NAME}-{os.getpid()}-external-{secrets.token_hex(3)}"
    environment = {"POSTGRES_USER": superuser.user, "POSTGRES_PASSWORD": password, "POSTGRES_DB": "postgres"}
    flags = [flag for variable, value in environment.items() for flag in ("--env", f"{variable}={value}")]
    server = ("postgres", "-p", str(port), "-c", f"listen_addresses={host}")
    docker("run", "--detach", "--network", "host", "--name", name, *flags, image, *server)
    try:
        with connected(replace(superuser, sslmode="disable"), 60):
            pass
        external = ExternalPostgres(name, superuser, replace(superuser, user=ADMINISTRATOR, password=secrets.token_hex(16)))
        external.install(authority.issue(host))
        with connected(replace(superuser, sslmode="disable"), 10) as connection, connection.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET ssl = on")
            cursor.execute("SELECT pg_reload_conf()")
        external.execute(f"CREATE ROLE {ADMINISTRATOR} LOGIN CREATEDB CREATEROLE PASSWORD '{external.administrator.password}'")
        yield external
    finally:
        docker("rm", "--force", "--volumes", name)
