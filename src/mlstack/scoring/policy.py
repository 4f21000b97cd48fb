"""Policies: how a score becomes a decision. A definition is a list of thresholds, or of rules in CEL, the first of which counts.

    {"thresholds": [{"below": 15, "decision": "on time"}], "otherwise": "late"}
    {"rules": [{"when": "score < 15.0 && features.distance > 300", "decision": "on time"}], "otherwise": "late"}

Both decide every score: `otherwise` is the decision if nothing before it applies, and `missing` that for a score that is no
number (without it, thresholds take `otherwise`, and rules apply as to any other).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cel

KINDS = ("thresholds", "rules")
MOST_STEPS, LONGEST_TEXT = 100, 2_000
VARIABLES = {"score", "answer", "features", "entity"}
# Scores for which every rule has to have an answer.
PROBES = (0.0, -1.0, 1.0, 0.5, 1e300, -1e300, 1e-300)


class PolicyError(Exception):
    """A definition that cannot decide; the message says why."""


@dataclass(frozen=True)
class Case:
    """What is decided on: a row, and the model's answer to it. `decision` is what was decided then, if it comes from the log."""

    features: Mapping[str, Any]
    answer: Any
    entity: str | None = None
    decision: str | None = None

    @property
    def score(self) -> float | None:
        """The number in the answer: itself, or its column `prediction`. None if there is none."""
        value = self.answer.get("prediction") if isinstance(self.answer, dict) else self.answer
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)


@dataclass(frozen=True)
class Policy:
    """One version of a model's policy, compiled. `decide` raises PolicyError if a rule fails on a case."""

    model: str
    version: int
    decide: Callable[[Case], str] = field(repr=False)
    otherwise: str

    @classmethod
    def of(cls, model: str, version: int, definition: object) -> "Policy":
        """Raises PolicyError if the definition is no policy."""
        if not isinstance(definition, dict):
            raise PolicyError("it is no object with thresholds or rules")
        kinds = [kind for kind in KINDS if kind in definition]
        if len(kinds) != 1 or (unknown := definition.keys() - {*KINDS, "otherwise", "missing"}):
            named = f", and the unknown field {min(unknown)!r}" if len(kinds) == 1 else ""
            raise PolicyError(f"it needs either thresholds or rules, and otherwise{named}")
        steps = definition[kinds[0]]
        if not isinstance(steps, list) or not 0 < len(steps) <= MOST_STEPS or not all(isinstance(step, dict) for step in steps):
            raise PolicyError(f"{kinds[0]} is no list of 1 to {MOST_STEPS} objects")
        otherwise = _decision(definition.get("otherwise"), "otherwise")
        missing = _decision(definition.get("missing", otherwise), "missing")
        compiled = (_thresholds if kinds[0] == "thresholds" else _rules)(steps, otherwise)

        # Rules may look at an answer that is no number.
        has_missing = kinds[0] == "thresholds" or "missing" in definition

        def decide(case: Case) -> str:
            return missing if has_missing and case.score is None else compiled(case)

        return cls(model, version, decide, otherwise)

    def require_total(self, cases: Iterable[Case]) -> None:
        """Raises PolicyError unless it decides each of these cases, with their own answers and with those of PROBES."""
        for case in cases:
            for answer in (case.answer, *PROBES):
                self.decide(Case(case.features, answer, case.entity))


@dataclass(frozen=True)
class Replay:
    """What a policy would have decided on logged cases."""

    cases: int
    changes: Mapping[str, int]

    @property
    def changed(self) -> int:
        return sum(self.changes.values())

    def as_json(self) -> dict[str, Any]:
        return {"replayed": self.cases, "changed": self.changed, "changes": dict(self.changes)}


def replay(policy: Policy, cases: Sequence[Case]) -> Replay:
    """Compares what a policy decides with what was decided. Raises PolicyError if it does not decide one."""
    changes = Counter(
        f"{case.decision or 'no decision'} → {decided}" for case in cases if (decided := policy.decide(case)) != case.decision
    )
    return Replay(len(cases), dict(changes.most_common()))


def _decision(value: object, name: str) -> str:
    if not isinstance(value, str) or not value or len(value) > LONGEST_TEXT or "\0" in value:
        raise PolicyError(f"{name} needs a decision: a text")
    return value


def _thresholds(steps: Sequence[Mapping[str, Any]], otherwise: str) -> Callable[[Case], str]:
    bounds: list[tuple[float, str]] = []
    for number, step in enumerate(steps, 1):
        below = step.get("below")
        if step.keys() != {"below", "decision"} or isinstance(below, bool) or not isinstance(below, int | float):
            raise PolicyError(f"threshold {number} is not {{below: a number, decision: a text}}")
        if not math.isfinite(below) or (bounds and below <= bounds[-1][0]):
            raise PolicyError(f"threshold {number} is not larger than the one before it, and would never apply")
        bounds.append((float(below), _decision(step["decision"], f"threshold {number}")))

    def decide(case: Case) -> str:
        return next((decision for below, decision in bounds if case.score is not None and case.score < below), otherwise)

    return decide


def _rules(steps: Sequence[Mapping[str, Any]], otherwise: str) -> Callable[[Case], str]:
    rules = [_rule(number, step) for number, step in enumerate(steps, 1)]

    def decide(case: Case) -> str:
        values = {"score": case.score, "answer": case.answer, "features": dict(case.features), "entity": case.entity or ""}
        return next((decision for applies, decision in rules if applies(values)), otherwise)

    return decide


def _rule(number: int, step: Mapping[str, Any]) -> tuple[Callable[[dict[str, Any]], bool], str]:
    text = step.get("when")
    if step.keys() != {"when", "decision"} or not isinstance(text, str) or len(text) > LONGEST_TEXT:
        raise PolicyError(f"rule {number} is not {{when: an expression of at most {LONGEST_TEXT} characters, decision: a text}}")
    try:
        program = cel.compile(text)
    except ValueError as error:
        raise PolicyError(f"rule {number} cannot be read: {error}") from error
    if unknown := set(program.variables()) - VARIABLES:
        raise PolicyError(f"rule {number} names {min(unknown)!r}; it can use {', '.join(sorted(VARIABLES))}")

    def applies(values: dict[str, Any]) -> bool:
        try:
            result = program.execute(values)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise PolicyError(f"rule {number} fails: {type(error).__name__}: {error}"[:LONGEST_TEXT]) from error
        if not isinstance(result, bool):
            raise PolicyError(f"rule {number} is no condition: it gives {type(result).__name__}")
        return result

    return applies, _decision(step["decision"], f"rule {number}")
