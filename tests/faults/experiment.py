"""One fault: a client works, the fault is injected, and what was acknowledged is compared with what is stored."""

import re
import time
from dataclasses import asdict, dataclass

from tests.faults import comparison
from tests.faults.comparison import Ledger, Verdict
from tests.faults.faults import Fault
from tests.faults.stack import PATIENCE, Stack, start_client
from tests.support.service import wait_until

SHOWN = 220  # characters of a client's message


@dataclass(frozen=True)
class Row:
    """What a fault did, as the report shows it."""

    fault: str
    saw: str
    rate: int  # points acknowledged in a second before the fault, of the slower of both kinds
    points: int
    artifacts: int
    registry: int
    lost: int
    twice: int
    recovery: float  # seconds from the fault's end until each kind of write was answered and every service was healthy
    unacknowledged: str  # what happened to points that were never acknowledged

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """A row and the data behind it."""

    row: Row
    verdicts: tuple[Verdict, ...]
    ledgers: tuple[Ledger, ...]


def run(stack: Stack, fault: Fault, name: str, large: int = 300, **environment: str) -> Result:
    """Injects a fault while a client writes. Raises TimeoutError when the stack does not come back by itself."""
    clients = [start_client(stack, name, large, **environment)]
    clients[0].wait_until_steady()
    before = clients[0].ledger
    fault.inject(stack, clients[0])
    ended, position = time.monotonic(), clients[0].ledger.length
    if fault.kills_client:
        wait_until(lambda: stack.is_healthy, PATIENCE, 0.5)
        clients.append(start_client(stack, f"{name}-after", large, **environment))
        wait_until(lambda: clients[-1].has_begun, PATIENCE)
        position = 0
    wait_until(lambda: clients[-1].answered(position), PATIENCE)
    wait_until(lambda: stack.is_healthy, PATIENCE, 0.5)
    recovery = time.monotonic() - ended
    clients[-1].stop()
    ledgers = tuple(client.ledger for client in clients)
    verdicts = tuple(comparison.compare(ledger, stack.audit(ledger)) for ledger in ledgers)
    return Result(_row(fault, before, ledgers, verdicts, recovery), verdicts, ledgers)


def _row(fault: Fault, before: Ledger, ledgers: tuple[Ledger, ...], verdicts: tuple[Verdict, ...], recovery: float) -> Row:
    unanswered = sum(verdict.unanswered for verdict in verdicts)
    missing = sum(verdict.unanswered_lost for verdict in verdicts)
    return Row(
        fault=fault.name,
        saw=_saw(fault, ledgers),
        rate=int(min(before.rate("sync"), before.rate("async"))),
        points=sum(verdict.points for verdict in verdicts),
        artifacts=sum(verdict.artifacts for verdict in verdicts),
        registry=sum(verdict.registry for verdict in verdicts),
        lost=sum(len(verdict.lost) + len(verdict.broken) for verdict in verdicts),
        twice=sum(len(verdict.versions_again) + len(verdict.doubled) for verdict in verdicts),
        recovery=round(recovery, 1),
        unacknowledged=f"{missing} of {unanswered} points" if unanswered else "none",
    )


def _saw(fault: Fault, ledgers: tuple[Ledger, ...]) -> str:
    """What a user saw: the first message of a call that finally failed, or how long the slowest call took."""
    failed = [entry for ledger in ledgers for entry in ledger.failed()]
    if failed:
        kinds = sorted({entry.kind for entry in failed})
        # A direct call's message first: the asynchronous ones repeat it in a list.
        message = re.sub(r"\s+", " ", min(failed, key=lambda entry: entry.kind in ("async", "end")).answer)
        message = message if len(message) <= SHOWN else message[:SHOWN] + "…"
        return f"{len(failed)} calls failed ({', '.join(kinds)}): {message}"
    if fault.kills_client:
        return "the client was killed; a new one wrote without an error"
    slowest = max(entry.seconds for ledger in ledgers for entry in ledger.entries if entry.outcome == "stored")
    return f"no error; the slowest call took {slowest:.0f} s"
