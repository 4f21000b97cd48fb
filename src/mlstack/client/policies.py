"""Policies: how a model's score becomes a decision, in versions that never change.

    from mlstack import policies
    policies.put("delays", {"thresholds": [{"below": 15, "decision": "on time"}], "otherwise": "late"})
    policies.activate("delays", 1, reason="first thresholds")

Both calls try the policy on the newest decisions first and return what it would change.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlstack.client.scoring import call


@dataclass(frozen=True)
class Trial:
    """What a policy would have decided on the newest decisions. `version` is None if it was only tried."""

    version: int | None
    replayed: int
    changed: int
    changes: Mapping[str, int]

    def __str__(self) -> str:
        return f"would change {self.changed:,} of {self.replayed:,}"


def check(model: str, definition: Mapping[str, Any]) -> Trial:
    """Tries a definition without storing it. Raises MlstackError if it is no policy, or does not decide every score."""
    return Trial(**call("POST", f"/policies/{model}", body=definition, check="true"))


def put(model: str, definition: Mapping[str, Any]) -> Trial:
    """Stores a definition as the next version of a model's policy. It decides nothing yet. Raises as `check` does."""
    return Trial(**call("POST", f"/policies/{model}", body=definition))


def activate(model: str, version: int, reason: str) -> Trial:
    """Lets a version decide from now on. Raises MlstackError as `check` does; then the version before it decides on."""
    answer = call("POST", f"/policies/{model}/activate", body={"version": version, "reason": reason})
    return Trial(answer["active"], answer["replayed"], answer["changed"], answer["changes"])


def deactivate(model: str, reason: str) -> None:
    """Lets no policy decide. Raises MlstackError."""
    call("POST", f"/policies/{model}/activate", body={"version": None, "reason": reason})


def table(model: str) -> dict[str, Any]:
    """The versions of a model's policy, the newest first, and the number of the active one. Raises MlstackError."""
    return call("GET", f"/policies/{model}")
