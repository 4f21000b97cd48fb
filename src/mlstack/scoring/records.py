"""What the service reads in Postgres every second, and keeps on its volume for when Postgres is down: keys, the policies that
decide, and how much traffic a challenger gets."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from mlstack.scoring import files
from mlstack.scoring.access import Keys, keys_in
from mlstack.scoring.policy import Policy, PolicyError
from mlstack.scoring.store import Store, StoreError

log = logging.getLogger(__name__)

INTERVAL = 1  # seconds


@dataclass(frozen=True)
class Traffic:
    """What a model's challenger gets: the same rows after the answer (shadow), or a share of the requests (canary)."""

    mode: str = "shadow"
    weight: float = 0.0

    def is_canary(self, model: str, subject: str) -> bool:
        """Whether the challenger answers for this entity. The same entity always gets the same, until the weight changes."""
        if self.mode != "canary":
            return False
        share = int.from_bytes(hashlib.sha256(f"{model}\0{subject}".encode()).digest()[:8]) / 2**64
        return share < self.weight


class Records:
    """Belongs to one event loop."""

    def __init__(self, store: Store, keys: Keys, path: Path) -> None:
        self._store, self._keys, self._path = store, keys, path
        self._definitions: list[list[Any]] = []
        self._policies: Mapping[str, Policy] = {}
        self._traffic: Mapping[str, Traffic] = {}
        self._is_up: bool | None = None

    def policy(self, model: str) -> Policy | None:
        """The policy that decides on a model's scores."""
        return self._policies.get(model)

    def traffic(self, model: str) -> Traffic:
        """What the model's challenger gets."""
        return self._traffic.get(model, Traffic())

    def start(self) -> None:
        """Takes what was read last."""
        if self._path.exists():
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            self._take(kept["policies"], {model: Traffic(**traffic) for model, traffic in kept["traffic"].items()})

    async def follow(self) -> None:
        """Reads again every second, until it is cancelled."""
        while True:
            try:
                await self.refresh()
            except (StoreError, psycopg2.Error) as error:
                self._report(str(error).strip())
            await asyncio.sleep(INTERVAL)

    async def refresh(self) -> None:
        """Reads what is stored now. Raises StoreError or psycopg2.Error."""
        keys, policies, traffic = await self._store.run(_read)
        self._report(None)
        self._keys.replace(keys)
        if policies != self._definitions or traffic != self._traffic:
            self._take(policies, traffic)
            kept = {"policies": policies, "traffic": {model: asdict(share) for model, share in traffic.items()}}
            files.write(self._path, json.dumps(kept))

    def _take(self, definitions: list[list[Any]], traffic: Mapping[str, Traffic]) -> None:
        policies = dict(self._policies)
        for model, version, definition in definitions:
            try:
                policies[model] = Policy.of(model, version, definition)
            except PolicyError:  # another version of mlstack accepted it: the policy before it decides on
                log.exception("version %d of the policy of %s cannot be used", version, model)
        active = {model for model, _, _ in definitions}
        self._policies = {model: policy for model, policy in policies.items() if model in active}
        self._definitions, self._traffic = definitions, traffic

    def _report(self, problem: str | None) -> None:
        """Logs a change, not every look."""
        if (problem is None) != self._is_up:
            log.log(logging.WARNING if problem else logging.INFO, "%s", problem or "reading keys and policies in Postgres")
        self._is_up = problem is None


def _read(cursor: Cursor) -> tuple[dict[str, str], list[list[Any]], dict[str, Traffic]]:
    keys = keys_in(cursor)
    cursor.execute("SELECT model, version, definition FROM serving.current_policies ORDER BY model")
    policies = [list(row) for row in cursor.fetchall()]
    cursor.execute("SELECT model, mode, weight FROM serving.current_traffic")
    return keys, policies, {model: Traffic(mode, weight) for model, mode, weight in cursor.fetchall()}
