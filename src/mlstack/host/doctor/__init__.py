"""`make doctor`: from this machine outwards and through the stack by doing. It changes nothing that stays."""

from collections.abc import Callable, Iterator

from mlstack.host.doctor import environment, jupyter, machine, minio, mlflow, postgres, stack, tidying
from mlstack.host.doctor.check import Check, Doubt, Result, State, registered, run
from mlstack.host.doctor.context import Limits, Subject
from mlstack.host.services import Services
from mlstack.host.stack import Stack

__all__ = ["Check", "Doubt", "Limits", "Result", "State", "Subject", "checks", "diagnose", "examine"]

_CHECKS = registered(*(module.REACH for module in (machine, environment, stack, postgres, minio, mlflow, jupyter, tidying)))
_SERVICES = _CHECKS.index(stack.running) + 1


def checks(services: Services) -> tuple[Check, ...]:
    """Every check, in the order in which they run: those of the services after the first that looks at containers."""
    of_services = (stack.service(service.name) for service in services.long_running)
    return (*_CHECKS[:_SERVICES], *of_services, *_CHECKS[_SERVICES:])


def examine(subject: Subject, announce: Callable[[Check], None] = lambda check: None) -> Iterator[Result]:
    """Every check's result, as it comes."""
    return run(subject, checks(subject.stack.services), announce)


def diagnose(stack: Stack) -> list[Result]:
    """Every check's result. Never raises: what cannot be examined is a result too."""
    return list(examine(Subject(stack)))
