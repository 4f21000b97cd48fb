"""What a check is, and how checks run: in order, each only if the checks that it needs passed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from mlstack.errors import MlstackError, quoted
from mlstack.host.doctor.context import Subject


class State(Enum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    NOT_CHECKED = "not checked"


class CheckWarning(MlstackError):  # noqa: N818 # not an error
    """Something that works but is probably not intended, or will fail soon."""


@dataclass(frozen=True)
class Result:
    """One check's outcome. `note` is the result of a passed check; cause, why it matters and fix are those of the others."""

    reach: str
    name: str
    state: State
    note: str = ""
    cause: str = ""
    why: str = ""
    fix: str = ""

    @property
    def ok(self) -> bool:
        """Whether this does not keep the stack from working."""
        return self.state in (State.OK, State.WARNING)


# Returns a note or None. Raises MlstackError for a failure, CheckWarning for a warning.
Examination = Callable[[Subject], str | None]


@dataclass(frozen=True)
class Check:
    """One check, and the checks that must pass before it can run."""

    reach: str
    name: str
    examine: Examination
    needs: tuple["Check", ...] = ()


_registered: list[Check] = []


def check(reach: str, name: str, *needs: Check) -> Callable[[Examination], Check]:
    """Registers a function as a check. The doctor runs every registered check."""

    def register(examine: Examination) -> Check:
        _registered.append(Check(reach, name, examine, needs))
        return _registered[-1]

    return register


def registered(*reaches: str) -> tuple[Check, ...]:
    """All registered checks, ordered by area, then by definition."""
    return tuple(sorted(_registered, key=lambda item: reaches.index(item.reach)))


def run(subject: Subject, checks: Sequence[Check], announce: Callable[[Check], None] = lambda check: None) -> Iterator[Result]:
    """The result of each check, in order. One whose needed checks failed does not run, and has their cause."""
    results: dict[Check, Result] = {}
    for item in checks:
        blocker = next((results[need] for need in item.needs if not results[need].ok), None)
        if blocker:
            results[item] = Result(item.reach, item.name, State.NOT_CHECKED, cause=blocker.cause, fix=blocker.fix)
        else:
            announce(item)
            results[item] = _result(item, subject)
        yield results[item]


def _result(item: Check, subject: Subject) -> Result:
    try:
        return Result(item.reach, item.name, State.OK, note=quoted(item.examine(subject) or ""))
    except MlstackError as error:
        state = State.WARNING if isinstance(error, CheckWarning) else State.FAILED
        return Result(item.reach, item.name, state, cause=error.wrong, why=error.why, fix=error.fix)
    except ExceptionGroup as group:
        problems = [problem for problem in group.exceptions if isinstance(problem, MlstackError)]
        return Result(
            item.reach,
            item.name,
            State.FAILED,
            cause=" ".join(problem.wrong for problem in problems),
            why=problems[0].why,
            fix="; ".join(dict.fromkeys(problem.fix for problem in problems)),
        )
    except Exception as error:  # noqa: BLE001 # a diagnosis with an error in it is better than none; the error is shown
        return Result(
            item.reach,
            item.name,
            State.FAILED,
            cause=quoted(f"{type(error).__name__}: {error}"),
            why="The doctor does not know this one.",
            fix="make logs may say more",
        )
