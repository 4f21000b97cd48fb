"""What a request was answered, and by what: for its headers, its body and the decision log."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from mlstack.scoring.catalogue import CHAMPION, Served
from mlstack.scoring.decisions import Decisions
from mlstack.scoring.explain import Explanation, Unexplained
from mlstack.scoring.schema import Row


@dataclass(frozen=True)
class Subject:
    """Who asks about whom. `request` is the decision's id, `started` is of time.perf_counter."""

    request: UUID
    client: str
    entity: str | None
    started: float


@dataclass(frozen=True)
class Answer:
    """What a version answered to a request, and what the policy decided on it."""

    served: Served
    role: str
    rows: Sequence[Row]
    predictions: Sequence[Any]
    subject: Subject
    decided: Sequence[str] | None = None
    policy_version: int | None = None
    is_logged: bool = True
    explanations: Sequence[Explanation | Unexplained] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What an answer says of itself."""
        headers = {"X-Mlstack-Model": self.served.version.model, "X-Mlstack-Version": self.served.version.number}
        if self.policy_version is not None:
            headers["X-Mlstack-Policy"] = str(self.policy_version)
        if self.is_logged:
            headers["X-Mlstack-Decision"] = str(self.subject.request)
        return headers

    @property
    def parameters(self) -> dict[str, object]:
        """The same in the body of a V2 answer, as far as it is not there anyway."""
        decision = {"decision_id": str(self.subject.request)} if self.is_logged else {}
        return {**decision, **({"policy_version": self.policy_version} if self.policy_version is not None else {})}

    def decisions(self, deployment: UUID | None) -> Decisions:
        """Its rows for the log."""
        return Decisions(
            request=self.subject.request,
            model=self.served.version.model,
            version=self.served.version.number,
            role=self.role,
            client=self.subject.client,
            entity=self.subject.entity,
            rows=self.rows,
            scores=self.predictions,
            started=self.subject.started,
            policy_version=self.policy_version,
            decided=self.decided,
            deployment=deployment if self.role == CHAMPION else None,
        )
