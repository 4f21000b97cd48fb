"""The part `scoring` on a stack of its own, with versions of a model that multiplies, and what its clients send."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import requests

from tests.support.clone import ROOT, Clone
from tests.support.service import wait_until

PROGRAM = (ROOT / "tests/support/scoring_program.py").read_text()
MODEL = "flights"
JSON = {"Content-Type": "application/json"}
GOOD_ROW = {"x": 2.0, "count": 1, "name": "a"}


@dataclass(frozen=True)
class Scoring:
    """The running part, with a key, and the model versions that were registered."""

    stack: Clone
    key: str = field(repr=False)
    versions: Mapping[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.stack.values['SCORING_PORT']}"

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, headers=self.login, timeout=60)

    def manage(self, method: str, path: str, body: Any = None) -> requests.Response:
        """A request with the notebooks' account, which may do more than a key."""
        account = self.stack.values["MLFLOW_TRACKING_USERNAME"], self.stack.values["MLFLOW_TRACKING_PASSWORD"]
        return requests.request(method, self.url + path, json=body, auth=account, timeout=60)

    def decisions(self, **filters: str) -> list[dict[str, Any]]:
        answer = self.manage("GET", f"/decisions?{urlencode(filters)}")
        assert answer.ok, answer.text
        rows: list[dict[str, Any]] = answer.json()["decisions"]
        return rows

    def metric(self, name: str, **labels: str) -> float:
        described = ",".join(f'{label}="{value}"' for label, value in labels.items())
        values = re.findall(rf"^{name}{{{described}}} (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return float(values[0]) if values else 0.0

    def post(self, path: str, body: Any, **headers: str) -> requests.Response:
        data = body if isinstance(body, str | bytes) else json.dumps(body)
        return requests.post(self.url + path, data, headers={**self.login, **JSON, **headers}, timeout=60)

    def score(self, *rows: Mapping[str, Any]) -> requests.Response:
        return self.post("/invocations", {"dataframe_records": rows})

    @property
    def login(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def set_alias(self, version: str, alias: str = "champion") -> None:
        answer = mlflow_call(self.stack, "POST", "registered-models/alias", name=MODEL, alias=alias, version=version)
        assert answer.ok, answer.text

    def served(self, alias: str = "champion") -> list[str]:
        return [served["version"] for served in self.get("/models").json()["served"] if served["alias"] == alias]

    def rejected(self) -> dict[str, str]:
        return {rejected["version"]: rejected["reason"] for rejected in self.get("/models").json()["rejected"]}


def mlflow_call(stack: Clone, method: str, path: str, account: str = "MLFLOW_TRACKING", **body: str) -> requests.Response:
    login = stack.values[f"{account}_USERNAME"], stack.values[f"{account}_PASSWORD"]
    url = f"http://127.0.0.1:{stack.values['MLFLOW_PORT']}/api/2.0/mlflow/{path}"
    return requests.request(method, url, json=body or None, auth=login, timeout=60)


def with_key(stack: Clone, *kinds: str) -> Scoring:
    """The part, which is on already, with a key and a version of the model for each kind; version 1 is the champion."""
    generated = stack.make("key", NAME="tests")
    key = re.search(r"mls_\S+", generated.stdout)
    assert key, generated.stderr
    stack.in_container("jupyter", "python3", "-c", PROGRAM, MODEL, *kinds)
    versions = json.loads(stack.in_container("jupyter", "cat", "/tmp/versions.json"))  # noqa: S108
    scoring = Scoring(stack, key[0], versions)
    scoring.set_alias("1")
    wait_until(lambda: scoring.served() == ["1"])
    return scoring
