"""Slows down clients that guess passwords, without delaying others.

A password hash costs 0.2 s of a core and 32 MB. So hashes are computed two at a time in each worker, one at a time for each
client address, and for one account from one address they are spaced further apart with every wrong password. Requests with
the same login share one hash. A client that queues more than a few logins is answered 429 and may retry.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cachetools import TTLCache

HASHES = 2  # at the same time, in each worker
FORGET = 300  # seconds after which wrong passwords no longer count
RECORDS = 10_000  # accounts and addresses that are counted


@dataclass(frozen=True)
class Limit:
    """How many wrong passwords cost no wait, how the wait grows after them, and how many logins may wait."""

    free: int
    first_wait: float
    longest_wait: float
    queue: int

    def wait(self, failures: int) -> float:
        """Seconds before the next hash."""
        beyond = failures - self.free
        return 0 if beyond < 0 else min(self.first_wait * 2 ** min(beyond, 30), self.longest_wait)


# Passwords have at least 12 characters: one guess in two seconds is hopeless, and a right password is still checked.
ACCOUNT = Limit(free=5, first_wait=0.25, longest_wait=2, queue=5)
ADDRESS = Limit(free=30, first_wait=0.25, longest_wait=0.5, queue=10)


class TooManyLoginsError(Exception):
    """Too many logins of this account or address wait already: this one is not checked."""

    retry_after = 5  # seconds


@dataclass
class _Record:
    limit: Limit
    failures: int = 0
    queued: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Throttle:
    """Decides when a password may be checked. Belongs to one event loop."""

    def __init__(self) -> None:
        self._records: TTLCache[Hashable, _Record] = TTLCache(RECORDS, FORGET)
        self._pending: dict[Hashable, asyncio.Future[bool]] = {}
        self._hashes = ThreadPoolExecutor(HASHES, "password-hash")

    async def check(self, account: str, address: str, login: Hashable, is_right: Callable[[], bool]) -> bool:
        """Whether the password is right; `is_right` computes the hash, in a thread. Raises TooManyLoginsError."""
        pending = self._pending.get((login, address))
        if pending is None:
            pending = asyncio.ensure_future(self._queued(account, address, is_right))
            self._pending[login, address] = pending
            pending.add_done_callback(lambda _: self._pending.pop((login, address), None))
        # Shielded: a client that disconnects must not cancel the check for others that wait for it.
        return await asyncio.shield(pending)

    async def _queued(self, account: str, address: str, is_right: Callable[[], bool]) -> bool:
        of_account, of_address = self._record((account, address), ACCOUNT), self._record(address, ADDRESS)

        async def hashed() -> bool:
            return await asyncio.get_running_loop().run_in_executor(self._hashes, is_right)

        right = await _in_turn(of_account, lambda: _in_turn(of_address, hashed))
        of_account.failures = 0 if right else of_account.failures + 1
        of_address.failures += not right
        self._records[account, address], self._records[address] = of_account, of_address  # FORGET counts from now
        return right

    def _record(self, key: Hashable, limit: Limit) -> _Record:
        record: _Record = self._records.setdefault(key, _Record(limit))
        return record


async def _in_turn(record: _Record, work: Callable[[], Awaitable[bool]]) -> bool:
    if record.queued >= record.limit.queue:
        raise TooManyLoginsError
    record.queued += 1
    try:
        async with record.turn:
            await asyncio.sleep(record.limit.wait(record.failures))
            return await work()
    finally:
        record.queued -= 1
