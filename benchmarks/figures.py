"""What was measured, and what is made of it: medians, spreads, ratios, shares of a raw limit, goals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

DEFAULTS, MLSTACK, RAW = "defaults", "mlstack", "raw"
Values = Mapping[str, float]
"""One repetition: a value for each line that it measured, by the line's key."""


class Better(StrEnum):
    MORE, LESS = "more", "less"


class Against(StrEnum):
    """What a goal is set against."""

    DEFAULTS = "× the defaults"
    RAW = "of the raw limit"
    VALUE = ""


@dataclass(frozen=True)
class Goal:
    """`bound` is a factor by which we are better than the defaults, a share of the raw limit, or a value in the line's unit."""

    against: Against
    bound: float

    def text(self, line: "Line") -> str:
        """As the table shows it."""
        if self.against is Against.VALUE:
            return f"{'≤' if line.better is Better.LESS else '≥'} {number(self.bound)} {line.unit}"
        if self.against is Against.DEFAULTS and line.better is Better.LESS:
            return f"≤ 1/{number(self.bound)} of the defaults"
        return f"≥ {number(self.bound)} {self.against}"


@dataclass(frozen=True)
class Line:
    """One thing that is measured. `label` says what a value is, and of what."""

    key: str
    label: str
    unit: str
    better: Better
    goals: tuple[Goal, ...] = ()


def of(values: Sequence[float]) -> float | None:
    """The median; None of nothing."""
    return median(values) if values else None


@dataclass
class Figure:
    """A line and every value of it, by who gave it: the defaults, mlstack, the raw limit."""

    line: Line
    values: dict[str, list[float]] = field(default_factory=lambda: {DEFAULTS: [], MLSTACK: [], RAW: []})

    def median(self, who: str) -> float | None:
        return of(self.values[who])

    def spread(self, who: str) -> tuple[float, float] | None:
        """The smallest and the largest value."""
        return (min(self.values[who]), max(self.values[who])) if self.values[who] else None

    @property
    def ratio(self) -> float | None:
        """How many times better than the defaults: above 1 is better, whichever way the unit goes."""
        return self._better_than(DEFAULTS)

    @property
    def share(self) -> float | None:
        """The part of the raw limit that is reached: 1 is all of it, whichever way the unit goes."""
        return self._better_than(RAW)

    @property
    def met(self) -> bool | None:
        """Whether every goal is met; None without one, or before both sides of it were measured."""
        found = [self._meets(goal) for goal in self.line.goals]
        return None if not found or None in found else all(found)

    def _better_than(self, who: str) -> float | None:
        ours, theirs = self.median(MLSTACK), self.median(who)
        if not ours or not theirs:
            return None
        return ours / theirs if self.line.better is Better.MORE else theirs / ours

    def _meets(self, goal: Goal) -> bool | None:
        if goal.against is Against.VALUE:
            ours = self.median(MLSTACK)
            return None if ours is None else (ours <= goal.bound if self.line.better is Better.LESS else ours >= goal.bound)
        reached = self.ratio if goal.against is Against.DEFAULTS else self.share
        return None if reached is None else reached >= goal.bound


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1)]


def number(value: float) -> str:
    """Three digits that mean something, and thousands set apart."""
    if value == 0 or abs(value) >= 100:  # noqa: PLR2004
        return f"{value:,.0f}"
    return f"{value:.3g}"
