"""One check of the doctor, with what it needs and nothing else."""

from mlstack.host.doctor import CHECKS, Result, Subject
from mlstack.host.doctor.check import Check, run


def with_needs(*checks: Check) -> list[Check]:
    """Checks and all checks that they need, in the doctor's order."""
    wanted, waiting = set(checks), list(checks)
    while waiting:
        new = set(waiting.pop().needs) - wanted
        wanted |= new
        waiting += new
    return [each for each in CHECKS if each in wanted]


def result_of(subject: Subject, check: Check) -> Result:
    return list(run(subject, with_needs(check)))[-1]
