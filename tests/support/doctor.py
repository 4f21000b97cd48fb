"""Some checks of the doctor, with what they need and nothing else."""

from mlstack.host import services
from mlstack.host.doctor import Result, Subject, checks
from mlstack.host.doctor.check import Check, run
from tests.support.clone import ROOT

CHECKS = checks(services.read(ROOT, {}))


def with_needs(*checks: Check) -> list[Check]:
    """Checks and all checks that they need, in the doctor's order."""
    needed, waiting = set(checks), list(checks)
    while waiting:
        new = set(waiting.pop().needs) - needed
        needed |= new
        waiting += new
    return [item for item in CHECKS if item in needed]


def results_of(subject: Subject, *checks: Check) -> dict[str, Result]:
    """The results of these checks and of those that they need, by name."""
    return {result.name: result for result in run(subject, with_needs(*checks))}


def result_of(subject: Subject, check: Check) -> Result:
    return results_of(subject, check)[check.name]
