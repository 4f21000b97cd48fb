"""What a check is, and how checks are run: in order, each only when what it needs is well."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from mlstack.errors import MlstackError
from mlstack.host.doctor.context import Subject


class State(Enum):
    """How a check ended."""

    OK = "ok"
    DOUBTFUL = "doubtful"
    FAILED = "failed"
    NOT_CHECKED = "not checked"


class Doubt(MlstackError):  # noqa: N818 # not an error
    """What works and is probably not meant, or will not work for long."""


@dataclass(frozen=True)
class Result:
    """One check's outcome. `note` is what an ok check found; cause, why it matters and fix are empty where all is well."""

    reach: str
    name: str
    state: State
    note: str = ""
    cause: str = ""
    why: str = ""
    fix: str = ""

    @property
    def ok(self) -> bool:
        """Nothing keeps the stack from working here."""
        return self.state in (State.OK, State.DOUBTFUL)


# Returns a word about what was found, or None. Raises MlstackError when its subject is broken, Doubt when it may be meant.
Examination = Callable[[Subject], str | None]


@dataclass(frozen=True)
class Check:
    """One question, and the checks without whose good end it cannot be asked."""

    reach: str
    name: str
    examine: Examination
    needs: tuple["Check", ...] = ()


_registered: list[Check] = []


def check(reach: str, name: str, *needs: Check) -> Callable[[Examination], Check]:
    """Makes a check of a function. The doctor runs every check that was made in one of its modules."""

    def register(examine: Examination) -> Check:
        _registered.append(Check(reach, name, examine, needs))
        return _registered[-1]

    return register


def registered(*reaches: str) -> tuple[Check, ...]:
    """Every check so far, in the order of their reaches, then in that of their definition."""
    return tuple(sorted(_registered, key=lambda made: reaches.index(made.reach)))


def run(subject: Subject, checks: Sequence[Check], announce: Callable[[Check], None] = lambda check: None) -> Iterator[Result]:
    """The result of each check, in order. One whose needs are not well is not asked, and says which cause stands before it."""
    results: dict[Check, Result] = {}
    for each in checks:
        blocker = next((results[need] for need in each.needs if not results[need].ok), None)
        if blocker:
            results[each] = Result(each.reach, each.name, State.NOT_CHECKED, cause=blocker.cause, fix=blocker.fix)
        else:
            announce(each)
            results[each] = _result(each, subject)
        yield results[each]


def _result(each: Check, subject: Subject) -> Result:
    try:
        return Result(each.reach, each.name, State.OK, note=each.examine(subject) or "")
    except MlstackError as error:
        state = State.DOUBTFUL if isinstance(error, Doubt) else State.FAILED
        return Result(each.reach, each.name, state, cause=error.wrong, why=error.why, fix=error.fix)
    except ExceptionGroup as group:
        problems = [problem for problem in group.exceptions if isinstance(problem, MlstackError)]
        return Result(
            each.reach,
            each.name,
            State.FAILED,
            cause=" ".join(problem.wrong for problem in problems),
            why=problems[0].why,
            fix="; ".join(dict.fromkeys(problem.fix for problem in problems)),
        )
    except Exception as error:  # noqa: BLE001 # a diagnosis with a hole in it is better than none; the hole is shown
        return Result(
            each.reach,
            each.name,
            State.FAILED,
            cause=f"{type(error).__name__}: {error}",
            why="The doctor does not know this one.",
            fix="make logs may say more",
        )
