"""Deployments: which version is a model's champion since when, who made it that, and why.

from mlstack import deployments
deployments.canary("delays", 0.1, reason="version 7 agrees with 6 on 99 %")
deployments.promote("delays", reason="10 % for a week without complaints")
deployments.rollback("delays", reason="too many late flights")
"""

import logging
from typing import TYPE_CHECKING, Any

from mlstack.client.scoring import call

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def promote(model: str, reason: str) -> str:
    """Makes the challenger the champion and returns its version. Raises MlstackError.

    An account that may not delete the alias leaves it on the champion, where it has no effect; a warning says so.
    """
    promoted = call("POST", f"/deployments/{model}/promote", body={"reason": reason})
    if remaining := promoted.get("remaining"):
        log.warning("%s", remaining)
    return str(promoted["version"])


def rollback(model: str, reason: str) -> str:
    """Makes the previous champion the champion again and returns its version. Raises MlstackError."""
    return str(call("POST", f"/deployments/{model}/rollback", body={"reason": reason})["version"])


def shadow(model: str, reason: str) -> None:
    """Lets the challenger score every request after its answer; it answers none. Raises MlstackError."""
    _traffic(model, reason, mode="shadow")


def canary(model: str, weight: float, reason: str) -> None:
    """Lets the challenger answer this share of the entities, each always or never. Raises MlstackError."""
    _traffic(model, reason, mode="canary", weight=weight)


def off(model: str, reason: str) -> None:
    """Lets the challenger score nothing. Raises MlstackError."""
    _traffic(model, reason, mode="off")


def table(model: str) -> "pd.DataFrame":
    """A model's deployments, the newest first. Raises MlstackError."""
    import pandas as pd

    columns = ["at", "alias", "version", "previous", "set_by", "reason", "id"]
    frame = pd.DataFrame(call("GET", f"/deployments/{model}")["deployments"], columns=columns)
    frame["at"] = pd.to_datetime(frame["at"], utc=True, format="ISO8601")
    return frame


def _traffic(model: str, reason: str, **traffic: Any) -> None:
    call("POST", f"/deployments/{model}/traffic", body={**traffic, "reason": reason})
