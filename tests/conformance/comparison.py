"""Sends the same calls to both servers, and reports where the answers or the stored rows differ."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.conformance.deliberate import OF_SERVER, quoted
from tests.conformance.fuzz import filled
from tests.conformance.servers import Answer, Call, Pair, Side, differences, normal

Rows = dict[str, list[Any]]


@dataclass(frozen=True)
class Place:
    """What `{experiment}` and the like in calls stand for: the same on both sides."""

    experiment: str
    searched: str
    model: str

    def fill(self, call: Call, run: str) -> Call:
        return filled(call, run=run, experiment=self.experiment, searched=self.searched, model=self.model)


@dataclass
class Comparison:
    """What was compared so far: how many answers and runs in each area."""

    pair: Pair
    place: Place
    answers: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)

    def sequences(self, area: str, chosen: Iterable[Sequence[Call]]) -> list[str]:
        """Sends each sequence of calls to a run of its own; every difference, with the calls that lead to it."""
        sequences = [calls if len(calls) == 1 else [quoted(call) or call for call in calls] for calls in chosen]
        runs = self.pair.runs(len(sequences), self.place.experiment)
        # Where the deliberate difference of bare NaN is possible, genuine MLflow gets both forms, and ours must do as either.
        twins = self.pair.runs(len(sequences), self.place.experiment)
        wrong: dict[str, list[str]] = {}
        in_its_words: dict[str, str] = {}
        differs_on_purpose: set[str] = set()  # what is stored, and read afterwards, then differs as well
        for run, twin, templates in zip(runs, twins, sequences, strict=True):
            wrong[run] = []
            for template in templates:
                call = self.place.fill(template, run)
                ours, genuine = self.pair.send(call)
                self.answers[area] += 1
                reads_a_difference = call.method == "GET" and run in differs_on_purpose
                lines = [] if reads_a_difference else answers_differ(call, ours, genuine)
                if not lines and differences(ours.normal(), genuine.normal()):
                    differs_on_purpose.add(run)
                if words := quoted(self.place.fill(template, twin)):
                    in_its_words[run] = twin
                    other = answers_differ(call, ours, self.pair.genuine.send(words))
                    lines = lines and other
                wrong[run] += [f"{call}\n    {line}" for line in lines]
        stored = self._stored([*runs, *twins])
        for run, templates in zip(runs, sequences, strict=True):
            self.runs[area] += 1
            ours_, genuine_ = stored[0][run], stored[1][run]
            lines = [] if run in differs_on_purpose else differences(ours_, genuine_)
            if lines and run in in_its_words:
                lines = differences(ours_, stored[1][in_its_words[run]])
            if lines:
                calls = "\n    ".join(str(self.place.fill(template, run)) for template in templates)
                wrong[run].append(f"rows after {calls}\n    " + "\n    ".join(lines))
        return [line for lines in wrong.values() for line in lines]

    def call(self, area: str, call: Call) -> list[str]:
        """One call that needs no run of its own."""
        ours, genuine = self.pair.send(call)
        self.answers[area] += 1
        return [f"{call}\n    {line}" for line in answers_differ(call, ours, genuine)]

    def _stored(self, runs: list[str]) -> tuple[dict[str, Rows], dict[str, Rows]]:
        def rows(side: Side) -> dict[str, Rows]:
            return {run: normal(tables) for run, tables in side.rows(runs).items()}

        ours, genuine = self.pair.both(rows)
        return ours, genuine


def answers_differ(call: Call, ours: Answer, genuine: Answer) -> list[str]:
    """Where two answers differ; nothing when they are equal or differ on purpose."""
    lines = differences(ours.normal(), genuine.normal())
    if any(known.is_meant(call, ours, genuine) for known in OF_SERVER):
        return []
    return lines
