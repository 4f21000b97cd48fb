"""`make doctor`: from this machine outwards and through the stack by doing. It changes nothing that stays."""

from collections.abc import Callable, Iterator
from pathlib import Path

from mlstack.host.doctor import environment, jupyter, machine, minio, mlflow, postgres, stack, tidying
from mlstack.host.doctor.check import Check, Doubt, Result, State, registered, run
from mlstack.host.doctor.context import Limits, Subject

__all__ = ["CHECKS", "Check", "Doubt", "Limits", "Result", "State", "Subject", "diagnose", "examine"]

CHECKS = registered(*(module.REACH for module in (machine, environment, stack, postgres, minio, mlflow, jupyter, tidying)))


def examine(subject: Subject, announce: Callable[[Check], None] = lambda check: None) -> Iterator[Result]:
    """Every check's result, as it comes."""
    return run(subject, CHECKS, announce)


def diagnose(project: Path) -> list[Result]:
    """Every check's result. Never raises: what cannot be examined is a result too."""
    return list(examine(Subject(project)))
