"""Sets up empty services and updates older ones. Every step can be repeated, and then changes nothing."""

from enum import Enum

from mlstack.logger import get_logger

log = get_logger("mlstack.bootstrap")


class Outcome(Enum):
    """What an `ensure_*` step did."""

    CREATED = "created"
    CHANGED = "changed"
    ALREADY_THERE = "already there"


def report(subject: str, outcome: Outcome) -> Outcome:
    """Logs a step, once."""
    log.info("%s: %s", subject, outcome.value, stacklevel=2)
    return outcome
