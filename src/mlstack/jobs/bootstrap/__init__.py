"""Brings empty or old services to the wanted state. Every step may be repeated; repeated steps change nothing."""

from enum import Enum

from mlstack.logger import get_logger

log = get_logger("mlstack.bootstrap")


class Outcome(Enum):
    """What an `ensure_*` step found."""

    CREATED = "created"
    CHANGED = "changed"
    ALREADY_THERE = "already there"


def report(subject: str, outcome: Outcome) -> Outcome:
    """Logs a step, once."""
    log.info("%s: %s", subject, outcome.value, stacklevel=2)
    return outcome
