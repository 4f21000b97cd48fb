"""`make doctor`: from this machine outwards and through the stack by doing. It changes nothing that stays."""

from collections.abc import Callable, Iterator
from pathlib import Path

from mlstack.doctor import database, environment, host, notebooks, stack, storage, tidying, tracking
from mlstack.doctor.check import Check, Doubt, Result, State, run
from mlstack.doctor.subject import Limits, Subject

__all__ = ["CHECKS", "Check", "Doubt", "Limits", "Result", "State", "Subject", "diagnose", "examine"]

CHECKS: tuple[Check, ...] = (
    *host.CHECKS,
    *environment.CHECKS,
    *stack.CHECKS,
    *database.CHECKS,
    *storage.CHECKS,
    *tracking.CHECKS,
    *notebooks.CHECKS,
    *tidying.CHECKS,
)


def examine(subject: Subject, announce: Callable[[Check], None] = lambda check: None) -> Iterator[Result]:
    """Every check's result, as it comes."""
    return run(subject, CHECKS, announce)


def diagnose(project: Path) -> list[Result]:
    """Every check's result. Never raises: what cannot be examined is a result too."""
    return list(examine(Subject(project)))
