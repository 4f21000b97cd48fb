"""Counters and gauges in Prometheus' text format."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Labels = tuple[tuple[str, str], ...]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Family:
    """A metric with labels. Counters only grow; gauges are replaced as a whole."""

    name: str
    kind: str
    help: str
    values: dict[Labels, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, amount: float, /, **labels: str) -> None:
        self.values[tuple(labels.items())] += amount

    def replace(self, values: Iterable[tuple[Mapping[str, str], float]]) -> None:
        self.values = {tuple(labels.items()): value for labels, value in values}

    def text(self) -> str:
        lines = [f"# HELP {self.name} {self.help}", f"# TYPE {self.name} {self.kind}"]
        for labels, value in self.values.items():
            described = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
            lines.append(f"{self.name}{{{described}}} {value!r}" if described else f"{self.name} {value!r}")
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Metrics:
    """Everything that /metrics shows."""

    def __init__(self) -> None:
        self.requests = Family("mlstack_scoring_requests_total", "counter", "Answers, by model, version and HTTP status.")
        self.rows = Family("mlstack_scoring_rows_total", "counter", "Rows that were scored.")
        self.seconds = Family("mlstack_scoring_seconds_total", "counter", "Time until the answers, in seconds.")
        self.calls = Family("mlstack_scoring_model_calls_total", "counter", "Calls of a model; each answers a batch.")
        self.decisions = Family("mlstack_scoring_decisions_total", "counter", "Rows for the log: committed, failed or dropped.")
        self.policy_errors = Family("mlstack_scoring_policy_errors_total", "counter", "Rows on which a policy failed.")
        self.challenger = Family("mlstack_scoring_challenger_rows_total", "counter", "Rows of a challenger, by result.")
        self.challenger_seconds = Family("mlstack_scoring_challenger_seconds_total", "counter", "Time of a challenger.")
        self.swaps = Family("mlstack_scoring_swaps_total", "counter", "Candidates that were served or rejected.")
        self.served = Family("mlstack_scoring_served", "gauge", "1 for each version that is served.")
        self.rejected = Family("mlstack_scoring_rejected", "gauge", "1 for each alias whose version is rejected, and why.")
        self.registry_up = Family("mlstack_scoring_registry_up", "gauge", "Whether MLflow answered the last time.")

    def text(self) -> str:
        return "".join(family.text() for family in vars(self).values())
