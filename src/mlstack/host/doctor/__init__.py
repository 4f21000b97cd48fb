"""`make doctor`: checks the host and then the stack by using it. It leaves nothing behind."""

from collections.abc import Callable, Iterator

from mlstack.host.doctor import environment, gateway, jupyter, machine, minio, mlflow, postgres, ray, scoring, stack, tidying
from mlstack.host.doctor.check import Check, CheckWarning, Result, State, registered, run
from mlstack.host.doctor.context import Limits, Subject
from mlstack.host.services import Services
from mlstack.host.stack import Stack

__all__ = ["Check", "CheckWarning", "Limits", "Result", "State", "Subject", "checks", "diagnose", "examine"]

_CHECKS = registered(
    *(module.REACH for module in (machine, environment, stack, postgres, minio, mlflow, jupyter, scoring, gateway, ray, tidying))
)
_SERVICES = _CHECKS.index(stack.running) + 1


def checks(services: Services) -> tuple[Check, ...]:
    """Every check, in the order in which they run: the checks of services follow the first check of the containers."""
    of_services = (stack.service(name) for name, item in services.by_name.items() if item.is_long_running or item.is_external)
    off = {part.REACH for part in (scoring, gateway, ray) if part.SERVICE not in services.by_name}
    following = (item for item in _CHECKS[_SERVICES:] if item.reach not in off)
    return (*_CHECKS[:_SERVICES], *of_services, *following)


def examine(subject: Subject, announce: Callable[[Check], None] = lambda check: None) -> Iterator[Result]:
    """The results of all checks, one by one."""
    return run(subject, checks(subject.stack.services), announce)


def diagnose(stack: Stack) -> list[Result]:
    """Every check's result. Never raises: a check that cannot run is a result too."""
    return list(examine(Subject(stack)))
