"""The service's connections to Postgres. Each belongs to a thread of its own, so that no wait holds up an answer."""

import asyncio
import select
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from mlstack.settings import Login

CONNECT_SECONDS = 2
SILENCE = 5000  # milliseconds without an acknowledgement, after which a connection is given up
T = TypeVar("T")


def is_lost(connection: Connection) -> bool:
    """Whether an idle connection is closed, also by the server: a restart says so before it is used again."""
    return bool(connection.closed or select.select([connection.fileno()], [], [], 0)[0])


class StoreError(Exception):
    """Postgres does not answer, or the connection to it was lost."""


class Store:
    """One connection, which is opened when it is needed and again after it was lost."""

    def __init__(self, login: Login, name: str) -> None:
        self._login, self._name = login, name
        self._thread = ThreadPoolExecutor(1, name)
        self._connection: Connection | None = None

    async def run(self, work: Callable[[Cursor], T]) -> T:
        """Does work in one transaction. Raises StoreError if Postgres is unavailable, psycopg2.Error if it rejects the work."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    def _run(self, work: Callable[[Cursor], T]) -> T:
        try:
            if self._connection is None or is_lost(self._connection):
                self._connection = self._connected()
            with self._connection, self._connection.cursor() as cursor:
                return work(cursor)
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            if self._connection is not None:
                self._connection.close()
            raise StoreError(str(error).strip()) from error

    def _connected(self) -> Connection:
        connection: Connection = psycopg2.connect(
            **self._login.parameters,
            connect_timeout=CONNECT_SECONDS,
            tcp_user_timeout=SILENCE,
            application_name=f"scoring {self._name}",
        )
        return connection
