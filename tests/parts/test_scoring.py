"""The optional part `scoring`: follows an alias under load, rejects what is malformed, and answers while MLflow is down."""

import gzip
import json
import random
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle, pairwise, permutations, product
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.deployments import get_deploy_client

from mlstack.host import recovery
from mlstack.host.preflight import free_ports
from mlstack.host.stack import Stack
from mlstack.postgres import connected
from tests.support import readme
from tests.support.clone import ROOT, Clone, users_environment
from tests.support.projects import set_values
from tests.support.scoring import GOOD_ROW, JSON, MODEL, Scoring, mlflow_call, with_key
from tests.support.service import wait_until

# Kinds of versions that fail, and what the service says of each.
BROKEN = {
    "crash": "it crashes while it is loaded",
    "exit": "it ends the process that loads it",
    "memory": "it needs more memory than SCORING_MEMORY",
    "package": "it needs the package a_package_that_is_missing",
    "other answer": "with other values than when it was logged",
    "no signature": "it has no signature",
}
# Each model's factor is its version's number.
KINDS = ("good", "good", "good", *BROKEN)
SWAPS = 20
REJECTED = "mlstack.scoring.rejected"
CLIENTS = 4
# In Jupyter: what notebooks import. Its arguments are the model and the decision of an earlier answer.
NOTEBOOK = """
import sys
import pandas as pd
from mlstack import decisions, labels, policies
from mlstack.errors import MlstackError
model, decision = sys.argv[1:]
row = decisions.table(model, request=decision).iloc[0]
assert (row.score, row.entity, row.label) == (20.0, "notebook", None), row
assert labels.put(decision, 18.5, known_at="2026-11-28T12:00:00Z")
assert not labels.put(decision, 18.5, known_at="2026-11-28T12:00:00Z")
assert labels.put(decision, 19.5, known_at=pd.Timestamp("2026-11-29"))
row = decisions.table(model, entity="notebook").iloc[0]
assert (row.label, row.label_known_at) == (19.5, pd.Timestamp("2026-11-29", tz="UTC")), row
assert len(decisions.table(model)) > 6_000
definition = {"thresholds": [{"below": 10, "decision": "small"}], "otherwise": "large"}
tried = policies.check(model, definition)
assert tried.replayed == tried.changed > 6_000, tried
assert policies.put(model, definition).version == 1
assert policies.table(model)["active"] is None
print(policies.activate(model, 1, reason="tests"))
try:
    policies.activate(model, 7, reason="tests")
    raise SystemExit("a version that does not exist was activated")
except MlstackError as error:
    assert "404" in error.wrong
"""


@pytest.fixture(scope="module")
def scoring(stack: Clone) -> Scoring:
    before = (stack.folder / ".env").read_text()
    assert "scoring" not in stack.compose("ps", "--services")
    added = stack.make("add", PART="scoring")
    assert added.returncode == 0, added.stderr
    assert f"http://127.0.0.1:{stack.values['SCORING_PORT']}" in added.stdout
    changed = [line for line in (stack.folder / ".env").read_text().splitlines() if line not in before.splitlines()]
    assert changed == ["COMPOSE_PROFILES=scoring"]
    return with_key(stack, *KINDS)


def test_lost_env_gets_the_part_back_from_its_containers(scoring: Scoring) -> None:
    values = scoring.stack.values
    known = recovery.from_containers(Stack.of(scoring.stack.folder))
    names = ("COMPOSE_PROFILES", "SCORING_PORT", "SCORING_MEMORY", "SCORING_USERNAME", "SCORING_PASSWORD")
    assert {name: known.get(name) for name in names} == {name: values[name] for name in names}


# ---- an alias that moves under load --------------------------------------------------------------


# In Jupyter: histogram boosting with a categorical column, on which shap.TreeExplainer is wrong.
BOOSTED = """
import mlflow
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
random = np.random.default_rng(3)
frame = pd.DataFrame({
    "kind": random.choice(list("abcdef"), 600), "number": random.normal(size=600), "other": random.normal(size=600)})
target = frame.number * frame.kind.isin(["b", "e"]) + frame.kind.isin(["c", "e"])
encoder = make_column_transformer((OrdinalEncoder(), ["kind"]), remainder="passthrough")
model = make_pipeline(encoder, HistGradientBoostingRegressor(categorical_features=[0], random_state=0)).fit(frame, target)
with mlflow.start_run():
    logged = mlflow.sklearn.log_model(model, name="model", input_example=frame.head(2), registered_model_name="boosted")
mlflow.MlflowClient().set_registered_model_alias("boosted", "champion", logged.registered_model_version)
print(frame.head(2).to_json(orient="records"))
"""


@dataclass
class Load:
    """Clients that score single rows until they are stopped, and what they were answered."""

    scoring: Scoring
    stopped: threading.Event = field(default_factory=threading.Event)
    failed: list[str] = field(default_factory=list)
    entity: str = "load"
    count: int = 0
    slowest: float = 0

    def run(self) -> None:
        with requests.Session() as session:
            session.headers.update({**self.scoring.login, **JSON, "X-Mlstack-Entity": self.entity})
            while not self.stopped.is_set():
                x = random.uniform(0, 1000)  # noqa: S311
                body = json.dumps({"dataframe_records": [{**GOOD_ROW, "x": x}]})
                started = time.monotonic()
                answer = session.post(f"{self.scoring.url}/invocations", body, timeout=60)
                self.slowest = max(self.slowest, time.monotonic() - started)
                self.count += 1
                factor = float(answer.headers.get("X-Mlstack-Version", "nan"))
                if answer.status_code != 200 or answer.json()["predictions"] != [x * factor]:
                    self.failed.append(answer.text)


def test_alias_that_moves_under_load_fails_no_request_and_broken_versions_are_rejected(scoring: Scoring) -> None:
    load = Load(scoring)
    clients = [threading.Thread(target=load.run) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    served, reasons = "1", {}
    try:
        for step in steps(scoring.versions):
            scoring.set_alias(step)
            if scoring.versions[step] == "good":
                wait_until(lambda step=step: scoring.served() == [step])  # type: ignore[misc]
                served = step
            else:
                wait_until(lambda step=step: step in scoring.rejected())  # type: ignore[misc]
                assert scoring.served() == [served]
                reasons[scoring.versions[step]] = scoring.rejected()[step]
                assert reasons[scoring.versions[step]].partition('"')[0] in scoring.get("/metrics").text
                wait_until(lambda step=step: tags(scoring, step).get(REJECTED) == scoring.rejected()[step])  # type: ignore[misc]
    finally:
        load.stopped.set()
        for client in clients:
            client.join()
    assert load.failed == []
    assert load.count > SWAPS * CLIENTS
    assert reasons.keys() == BROKEN.keys()
    assert {kind: reason for kind, reason in reasons.items() if BROKEN[kind] not in reason} == {}
    scoring.set_alias("1")
    wait_until(lambda: scoring.rejected() == {} and scoring.served() == ["1"])


def tags(scoring: Scoring, version: str) -> dict[str, str]:
    answer = mlflow_call(scoring.stack, "GET", f"model-versions/get?name={MODEL}&version={version}").json()
    return {tag["key"]: tag["value"] for tag in answer["model_version"].get("tags", [])}


def steps(versions: Mapping[str, str]) -> list[str]:
    """The versions that get the alias in turn: each that is broken, with good ones between them."""
    good = cycle(["2", "3", "1"])
    broken = [version for version, kind in versions.items() if kind != "good"]
    listed = [version for failing in broken for version in (failing, next(good), next(good))]
    return [*listed, *(next(good) for _ in range(SWAPS - len(listed)))]


# ---- requests ------------------------------------------------------------------------------------


def records(**row: Any) -> dict[str, Any]:
    return {"dataframe_records": [{**GOOD_ROW, **row}]}


SPLIT = {"columns": ["x", "count", "name"], "data": [[2.0, 1, "a"]]}
V2 = {
    "inputs": [
        {"name": "x", "shape": [1], "datatype": "FP64", "data": [2.0]},
        {"name": "count", "shape": [1, 1], "datatype": "INT64", "data": [[1]]},
        {"name": "name", "shape": [1], "datatype": "BYTES", "data": ["a"]},
    ]
}
WELL_FORMED: dict[str, tuple[str, Any, dict[str, str]]] = {
    "records": ("/invocations", records(), {}),
    "a long as 1.0": ("/invocations", {"dataframe_records": [{**GOOD_ROW, "count": 1.0}]}, {}),
    "other columns": ("/invocations", records(other="ignored"), {}),
    "split": ("/invocations", {"dataframe_split": SPLIT}, {}),
    "instances": ("/invocations", {"instances": [GOOD_ROW]}, {}),
    "inputs by column": ("/invocations", {"inputs": {"x": [2.0], "count": [1], "name": ["a"]}}, {}),
    "inputs as a row": ("/invocations", {"inputs": GOOD_ROW}, {}),
    "CSV": ("/invocations", "x,count,name\n2.0,1,a\n", {"Content-Type": "text/csv"}),
    "endpoint": (f"/endpoints/{MODEL}/invocations", records(), {}),
    "endpoint with an alias": (f"/endpoints/{MODEL}@champion/invocations", records(), {}),
}


def test_every_format_of_mlflow_is_answered(scoring: Scoring, subtests: pytest.Subtests) -> None:
    for name, (path, body, headers) in WELL_FORMED.items():
        with subtests.test(name=name):
            answer = scoring.post(path, body, **headers)
            assert (answer.status_code, answer.json()) == (200, {"predictions": [2.0]})
            assert (answer.headers["X-Mlstack-Model"], answer.headers["X-Mlstack-Version"]) == (MODEL, "1")
    assert scoring.post("/invocations", {"dataframe_records": []}).json() == {"predictions": []}
    assert scoring.score({**GOOD_ROW, "x": None}).json() == {"predictions": [None]}


def test_explanation_of_boosting_with_categories_is_exact(scoring: Scoring) -> None:
    example = json.loads(scoring.stack.in_container("jupyter", "python3", "-W", "ignore", "-c", BOOSTED).splitlines()[-1])
    wait_until(lambda: any(served["model"] == "boosted" for served in scoring.get("/models").json()["served"]))
    path = "/endpoints/boosted/invocations"

    def score(*rows: Mapping[str, Any]) -> list[float]:
        predictions: list[float] = scoring.post(path, {"dataframe_records": rows}).json()["predictions"]
        return predictions

    row = {"kind": "e", "number": 1.5, "other": -0.3}
    expected = dict.fromkeys(row, 0.0)
    for order, other in product(permutations(row), example):  # Shapley values by their definition
        mixed = [{**other, **{name: row[name] for name in order[:count]}} for count in range(len(row) + 1)]
        for name, (before, after) in zip(order, pairwise(score(*mixed)), strict=True):
            expected[name] += (after - before) / 6 / len(example)
    answer = scoring.post(f"{path}?explain=true", {"dataframe_records": [row]}).json()
    (explanation,) = answer["explanations"]
    assert explanation["contributions"] == pytest.approx(expected, abs=1e-9)
    assert explanation["base"] + sum(expected.values()) == pytest.approx(answer["predictions"][0], rel=1e-6)
    assert explanation["contributions"]["kind"] > 0.1
    assert scoring.post(f"{path}?explain=true", {"dataframe_records": [row] * 11}).status_code == 413
    assert "explanations" not in scoring.post(path, {"dataframe_records": [row]}).json()
    dropped = mlflow_call(scoring.stack, "DELETE", "registered-models/alias", name="boosted", alias="champion")
    assert dropped.ok, dropped.text
    wait_until(lambda: scoring.post("/invocations", records()).ok)  # one model is served again


def test_inference_protocol_is_answered(scoring: Scoring) -> None:
    answer = scoring.post(f"/v2/models/{MODEL}/infer", {**V2, "id": "7"}).json()
    outputs = [{"name": "output", "datatype": "FP64", "shape": [1], "data": [2.0]}]
    assert answer.pop("parameters").keys() == {"decision_id"}
    assert answer == {"model_name": MODEL, "model_version": "1", "id": "7", "outputs": outputs}
    assert scoring.get(f"/v2/models/{MODEL}/ready").json()["ready"] is True
    assert [tensor["datatype"] for tensor in scoring.get(f"/v2/models/{MODEL}").json()["inputs"]] == ["FP64", "INT64", "BYTES"]


def binary(**columns: bytes) -> tuple[bytes, dict[str, str]]:
    """A request with binary tensors of one value, and its headers."""
    tensors = [
        {"name": name, "datatype": datatype, "shape": [1], "parameters": {"binary_data_size": len(columns[name])}}
        for name, datatype in (("x", "FP64"), ("count", "INT64"), ("name", "BYTES"))
    ]
    text = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    return text + b"".join(columns.values()), {"Inference-Header-Content-Length": str(len(text))}


def test_inference_protocol_is_answered_in_its_binary_form(scoring: Scoring) -> None:
    body, headers = binary(x=struct.pack("<d", 2.0), count=struct.pack("<q", 1), name=struct.pack("<I", 1) + b"a")
    answer = scoring.post(f"/v2/models/{MODEL}/infer", body, **headers)
    assert answer.ok, answer.text
    length = int(answer.headers["Inference-Header-Content-Length"])
    outputs = json.loads(answer.content[:length])["outputs"]
    assert outputs == [{"name": "output", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}}]
    assert struct.unpack("<d", answer.content[length:]) == (2.0,)


def test_binary_tensor_that_is_cut_off_is_rejected(scoring: Scoring, subtests: pytest.Subtests) -> None:
    number, text = struct.pack("<d", 2.0), struct.pack("<I", 1) + b"a"
    whole, headers = binary(x=number, count=struct.pack("<q", 1), name=text)
    for name, (body, length) in {
        "bytes are missing": (whole[:-1], headers),
        "bytes are left over": (whole + b"a", headers),
        "half a number": binary(x=number, count=b"1234", name=text),
        "half a text": binary(x=number, count=struct.pack("<q", 1), name=struct.pack("<I", 9) + b"a"),
        "a text that is not UTF-8": binary(x=number, count=struct.pack("<q", 1), name=struct.pack("<I", 1) + b"\xff"),
        "a length beyond the body": (whole, {"Inference-Header-Content-Length": "100000"}),
        "a length that is no number": (whole, {"Inference-Header-Content-Length": "-1"}),
    }.items():
        with subtests.test(name=name):
            assert scoring.post(f"/v2/models/{MODEL}/infer", body, **length).status_code == 400


def test_nvidias_client_of_the_inference_protocol_is_answered(scoring: Scoring, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    python, lock = tmp_path / "bin/python", ROOT / "requirements/triton.txt"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", lock], check=True)
    address = scoring.url.removeprefix("http://")
    command = [python, ROOT / "tests/support/triton_program.py", address, scoring.key, MODEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_mlflows_own_client_of_deployments_is_answered(scoring: Scoring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anybody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", scoring.key)
    client = get_deploy_client(scoring.url)
    assert client.predict(endpoint=MODEL, inputs=records()) == {"predictions": [2.0]}


MALFORMED: dict[str, tuple[int, Any]] = {
    "no body": (400, ""),
    "no JSON": (400, "{"),
    "nested too deeply": (400, "[" * 100_000),
    "not UTF-8": (400, b'{"dataframe_records": [{"name": "\xff"}]}'),
    "a list": (400, []),
    "no format": (400, {}),
    "two formats": (400, {"instances": [], "inputs": []}),
    "parameters": (400, {**records(), "params": {"a": 1}}),
    "records are an object": (422, {"dataframe_records": GOOD_ROW}),
    "a row is a list": (422, {"dataframe_records": [[2.0, 1, "a"]]}),
    "a row is null": (422, {"dataframe_records": [None]}),
    "a column is missing": (422, {"dataframe_records": [{"x": 2.0, "count": 1}]}),
    "split without columns": (400, {"dataframe_split": {"data": [[2.0, 1, "a"]]}}),
    "split with a short row": (422, {"dataframe_split": {**SPLIT, "data": [[2.0, 1]]}}),
    "split with a column twice": (400, {"dataframe_split": {**SPLIT, "columns": ["x", "x", "name"]}}),
    "columns of different lengths": (400, {"inputs": {"x": [1.0, 2.0], "count": [1], "name": ["a"]}}),
    "a fraction in a long": (422, records(count=4.7)),
    "true in a long": (422, records(count=True)),
    "text in a long": (422, records(count="4")),
    "null in a long": (422, records(count=None)),
    "a long beyond 64 bits": (422, records(count=10**30)),
    "1e30 in a long": (422, records(count=1e30)),
    "a list in a long": (422, records(count=[1])),
    "text in a double": (422, records(x="4")),
    "true in a double": (422, records(x=True)),
    "1e400 in a double": (422, '{"dataframe_records": [{"x": 1e400, "count": 1, "name": "a"}]}'),
    "a number in a string": (422, records(name=4)),
    "null in a string": (422, records(name=None)),
    "a row on which the model fails": (422, records(x=-1.0)),
    "more rows than allowed": (413, {"dataframe_records": [GOOD_ROW] * 10_001}),
}


def test_malformed_request_is_rejected_and_fails_no_neighbour(scoring: Scoring, subtests: pytest.Subtests) -> None:
    load = Load(scoring)
    neighbours = [threading.Thread(target=load.run) for _ in range(CLIENTS)]
    for neighbour in neighbours:
        neighbour.start()
    try:
        for name, (status, body) in MALFORMED.items():
            with subtests.test(name=name):
                answer = scoring.post("/invocations", body)
                assert answer.status_code == status, answer.text
                assert answer.json()["message"]
        for _ in range(50):  # many of them share a call of the model with a neighbour's row
            assert scoring.score({**GOOD_ROW, "x": -1.0}).status_code == 422
    finally:
        load.stopped.set()
        for neighbour in neighbours:
            neighbour.join()
    assert load.failed == []


def test_rejection_names_row_column_expected_and_found_and_nothing_else(scoring: Scoring) -> None:
    rejected = scoring.score(GOOD_ROW, {**GOOD_ROW, "name": "confidential", "count": "secret-value"})
    described = rejected.json()
    assert (described["row"], described["column"], described["expected"]) == (1, "count", "long")
    assert described["found"] == "a string"
    assert "secret-value" not in rejected.text and "confidential" not in rejected.text
    failing = scoring.score(GOOD_ROW, GOOD_ROW, {**GOOD_ROW, "x": -1.0}, GOOD_ROW)
    assert (failing.status_code, failing.json()["row"]) == (422, 2)
    assert "secret-of-the-model" not in failing.text


# ---- denied attempts ------------------------------------------------------------------------------


@pytest.mark.refusal
def test_client_without_a_valid_key_scores_nothing(scoring: Scoring) -> None:
    attempts = [{}, {"Authorization": "Bearer "}, {"Authorization": "Bearer mls_guess"}, {"Authorization": "Basic ????"}]
    for path in ("/invocations", "/models", "/metrics", "/openapi.json", f"/v2/models/{MODEL}", "//ping/../models"):
        answers = [requests.post(scoring.url + path, json=records(), headers=headers, timeout=60) for headers in attempts]
        assert {answer.status_code for answer in answers} == {401}
    other = scoring.stack.make("key", NAME="other")
    key = re.search(r"mls_\S+", other.stdout)
    assert key, other.stderr
    login = {"Authorization": f"Bearer {key[0]}"}
    assert requests.get(f"{scoring.url}/models", headers=login, timeout=60).status_code == 200
    assert scoring.stack.make("key-remove", NAME="other").returncode == 0
    assert requests.get(f"{scoring.url}/models", headers=login, timeout=60).status_code == 401


@pytest.mark.refusal
def test_page_of_a_browser_cannot_use_the_scoring_service(scoring: Scoring) -> None:
    for headers in ({"Origin": "https://page.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "rebound.example"}):
        assert scoring.post("/invocations", records(), **headers).status_code == 403


@pytest.mark.refusal
def test_large_body_is_rejected_before_it_is_read(scoring: Scoring) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(1024):
            yield b" " * 65536

    for data in (b" " * (17 << 20), body()):
        try:
            answer = requests.post(f"{scoring.url}/invocations", data, headers={**scoring.login, **JSON}, timeout=60)  # type: ignore[arg-type]
        except requests.ConnectionError:
            continue  # the service closed the connection while the rest was sent
        assert answer.status_code == 413
    packed = gzip.compress(b" " * (17 << 20))
    sent = (("gzip", packed), ("gzip", packed[:-9]), ("gzip", packed[:99]), ("gzip", b"{}"), ("br", b"{}"))
    answers = [scoring.post("/invocations", data, **{"Content-Encoding": encoding}) for encoding, data in sent]
    assert [answer.status_code for answer in answers] == [413, 413, 400, 400, 415]
    assert scoring.score(GOOD_ROW).ok


@pytest.mark.refusal
def test_account_of_the_scoring_service_changes_nothing_in_mlflow(scoring: Scoring) -> None:
    call = lambda method, path, **body: mlflow_call(scoring.stack, method, path, "SCORING", **body)  # noqa: E731
    assert call("GET", f"registered-models/get?name={MODEL}").ok
    attempts: list[Callable[[], requests.Response]] = [
        lambda: call("POST", "runs/create", experiment_id="0"),
        lambda: call("POST", "experiments/create", name="planted"),
        lambda: call("POST", "registered-models/create", name="planted"),
        lambda: call("POST", "registered-models/alias", name=MODEL, alias="champion", version="2"),
        lambda: call("POST", "model-versions/set-tag", name=MODEL, version="1", key="a", value="b"),
        lambda: call("POST", "model-versions/set-tag", name=MODEL, version="1", key="a.mlstack.scoring.", value="b"),
        lambda: call("POST", "model-versions/set-tag", name=MODEL, version="1", value="mlstack.scoring."),
        lambda: call("DELETE", "model-versions/delete-tag", name=MODEL, version="1", key="a"),
        lambda: call("POST", "registered-models/set-tag", name=MODEL, key="mlstack.scoring.a", value="b"),
        lambda: call("DELETE", "registered-models/delete", name=MODEL),
        lambda: call("PATCH", "users/update-password", username=scoring.stack.values["SCORING_USERNAME"], password="a" * 20),
        lambda: call("POST", "runs/log-metric", run_id="0" * 32, key="a", value="1", timestamp="1"),
    ]
    assert [attempt().status_code for attempt in attempts] == [403] * len(attempts)
    assert call("POST", "model-versions/set-tag", name=MODEL, version="3", key="mlstack.scoring.tests", value="b").ok
    assert tags(scoring, "3")["mlstack.scoring.tests"] == "b"


@pytest.mark.refusal
def test_key_scores_and_reads_and_changes_nothing_else(scoring: Scoring) -> None:
    reading = ("/decisions", f"/policies/{MODEL}", f"/deployments/{MODEL}")
    changing = ("/labels", *(f"/deployments/{MODEL}/{verb}" for verb in ("promote", "rollback", "traffic")),
                f"/policies/{MODEL}", f"/policies/{MODEL}/activate")  # fmt: skip
    assert [scoring.get(path).status_code for path in reading] == [403] * len(reading)
    assert [scoring.post(path, {"reason": "a"}).status_code for path in changing] == [403] * len(changing)
    of_models = scoring.stack.values["SCORING_USERNAME"], scoring.stack.values["SCORING_PASSWORD"]
    for account in (of_models, ("nobody", "wrong"), (scoring.stack.values["MLFLOW_TRACKING_USERNAME"], "wrong")):
        assert requests.get(f"{scoring.url}/decisions", auth=account, timeout=60).status_code == 401


# ---- decisions ----------------------------------------------------------------------------------------


def test_each_scored_row_is_in_the_log_before_its_answer(scoring: Scoring) -> None:
    rows = [{**GOOD_ROW, "x": 3.0, "name": "a\0b"}, GOOD_ROW, {**GOOD_ROW, "x": None}]
    answer = scoring.post("/invocations", {"dataframe_records": rows}, **{"X-Mlstack-Entity": "customer 7"})
    assert answer.json() == {"predictions": [3.0, 2.0, None]}
    logged = scoring.decisions(request=answer.headers["X-Mlstack-Decision"])
    assert [(row["row"], row["features"], row["score"]) for row in logged] == [
        (0, {**GOOD_ROW, "x": 3.0, "name": "a\ufffdb"}, 3.0),
        (1, GOOD_ROW, 2.0),
        (2, {**GOOD_ROW, "x": None}, None),
    ]
    same = {name: {row[name] for row in logged} for name in ("model", "version", "role", "client", "entity", "policy_version")}
    assert same == {
        "model": {MODEL}, "version": {"1"}, "role": {"champion"}, "client": {"tests"}, "entity": {"customer 7"},
        "policy_version": {None},
    }  # fmt: skip
    assert all(row["latency_ms"] > 0 and row["deployment"] for row in logged)
    v2 = scoring.post(f"/v2/models/{MODEL}/infer", V2).json()
    assert [row["score"] for row in scoring.decisions(request=v2["parameters"]["decision_id"])] == [2.0]
    rejected = scoring.post("/invocations", records(count="4"), **{"X-Mlstack-Entity": "rejected"})
    assert rejected.status_code == 422
    assert scoring.decisions(entity="rejected") == []


def test_log_has_exactly_the_answers_that_were_given(scoring: Scoring) -> None:
    load = Load(scoring, entity="exactly")
    clients = [threading.Thread(target=load.run) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    wait_until(lambda: load.count >= 200)
    load.stopped.set()
    for client in clients:
        client.join()
    assert load.failed == []
    assert len(scoring.decisions(entity="exactly")) == load.count


def test_notebook_reads_decisions_labels_them_and_manages_policies(scoring: Scoring) -> None:
    assert scoring.score(*[GOOD_ROW] * 6_000).ok  # more than a page of the log
    scored = scoring.post("/invocations", records(x=20.0), **{"X-Mlstack-Entity": "notebook"})
    scoring.stack.in_container("jupyter", "python3", "-c", NOTEBOOK, MODEL, scored.headers["X-Mlstack-Decision"])
    answer = scoring.post("/invocations", records(x=20.0))
    assert (answer.json(), answer.headers["X-Mlstack-Policy"]) == ({"predictions": [20.0], "decisions": ["large"]}, "1")
    v2 = scoring.post(f"/v2/models/{MODEL}/infer", V2).json()
    assert v2["outputs"][1] == {"name": "decision", "datatype": "BYTES", "shape": [1], "data": ["small"]}
    (logged,) = scoring.decisions(request=answer.headers["X-Mlstack-Decision"])
    assert (logged["decision"], logged["policy_version"]) == ("large", 1)


def test_policy_that_cannot_decide_is_rejected_and_the_one_before_decides_on(scoring: Scoring, subtests: pytest.Subtests) -> None:
    broken = {
        "not total": {"rules": [{"when": "features.missing > 1.0", "decision": "a"}], "otherwise": "b"},
        "no CEL": {"rules": [{"when": "score >", "decision": "a"}], "otherwise": "b"},
        "nothing otherwise": {"thresholds": [{"below": 1, "decision": "a"}]},
    }
    for name, definition in broken.items():
        with subtests.test(name=name):
            answer = scoring.manage("POST", f"/policies/{MODEL}", definition)
            assert (answer.status_code, "The policy cannot be used" in answer.text) == (422, True)
    assert scoring.manage("POST", f"/policies/{MODEL}/activate", {"version": 99, "reason": "tests"}).status_code == 404
    assert scoring.manage("POST", f"/policies/{MODEL}/activate", {"version": 1}).status_code == 400
    assert scoring.score(GOOD_ROW).json()["decisions"] == ["small"]
    assert scoring.manage("POST", f"/policies/{MODEL}/activate", {"version": None, "reason": "tests"}).ok
    assert scoring.score(GOOD_ROW).json() == {"predictions": [2.0]}


# ---- champion and challenger ---------------------------------------------------------------------------


def test_challenger_shadows_answers_a_share_is_promoted_and_rolled_back(scoring: Scoring) -> None:
    scoring.set_alias("2", "challenger")
    wait_until(lambda: scoring.served("challenger") == ["2"])
    shadowed = scoring.post("/invocations", records(x=5.0), **{"X-Mlstack-Entity": "shadow"})
    assert (shadowed.json(), shadowed.headers["X-Mlstack-Version"]) == ({"predictions": [5.0]}, "1")
    wait_until(lambda: len(scoring.decisions(entity="shadow")) == 2)
    logged = {row["role"]: (row["version"], row["score"], row["request"]) for row in scoring.decisions(entity="shadow")}
    request = shadowed.headers["X-Mlstack-Decision"]
    assert logged == {"champion": ("1", 5.0, request), "shadow": ("2", 10.0, request)}
    name = "mlstack_scoring_challenger_rows_total"
    wait_until(lambda: scoring.metric(name, model=MODEL, version="2", result="differ") >= 1)

    assert scoring.manage("POST", f"/deployments/{MODEL}/traffic", {"mode": "canary", "weight": 0.5, "reason": "tests"}).ok
    entities = [f"customer {number}" for number in range(40)]
    first, second = ([version_for(scoring, entity) for entity in entities] for _ in range(2))
    assert first == second
    assert 5 < first.count("2") < 35

    promoted = scoring.manage("POST", f"/deployments/{MODEL}/promote", {"reason": "it is better"})
    assert promoted.ok, promoted.text
    wait_until(lambda: (scoring.served(), scoring.served("challenger")) == (["2"], []))
    assert {version_for(scoring, entity) for entity in entities} == {"2"}
    assert scoring.manage("POST", f"/deployments/{MODEL}/promote", {"reason": "again"}).status_code == 409
    rolled_back = scoring.manage("POST", f"/deployments/{MODEL}/rollback", {"reason": "it is not"})
    assert rolled_back.ok, rolled_back.text
    wait_until(lambda: scoring.served() == ["1"])
    newest = scoring.manage("GET", f"/deployments/{MODEL}").json()["deployments"][:2]
    account = scoring.stack.values["MLFLOW_TRACKING_USERNAME"]
    assert [(row["version"], row["previous"], row["set_by"], row["reason"]) for row in newest] == [
        ("1", "2", account, "it is not"),
        ("2", "1", account, "it is better"),
    ]
    wait_until(lambda: deployment_of(scoring, scoring.score(GOOD_ROW)) == newest[0]["id"])


def test_promotion_without_the_right_to_delete_aliases_is_complete_and_is_not_repeated(scoring: Scoring) -> None:
    (password,) = re.findall(r"MLFLOW_TRACKING_PASSWORD=(\S+)", scoring.stack.make("user", NAME="ada", YES="1").stdout)
    scoring.set_alias("2", "challenger")
    wait_until(lambda: scoring.served("challenger") == ["2"])
    url, reason = f"{scoring.url}/deployments/{MODEL}/promote", {"reason": "it is better"}
    first = requests.post(url, json=reason, auth=("ada", password), timeout=60).json()
    assert (first["version"], first["previous"]) == ("2", "1")
    assert first.pop("remaining").startswith(
        "The alias challenger still names the new champion. MLflow answers: Permission denied"
    )
    wait_until(lambda: (scoring.served(), scoring.served("challenger")) == (["2"], ["2"]))
    # A challenger that is the champion answers nothing as a canary, whatever its share.
    assert scoring.manage("POST", f"/deployments/{MODEL}/traffic", {"mode": "canary", "weight": 1, "reason": "tests"}).ok
    answer = scoring.score(GOOD_ROW)
    assert [row["role"] for row in scoring.decisions(request=answer.headers["X-Mlstack-Decision"])] == ["champion"]

    assert scoring.manage("POST", f"/deployments/{MODEL}/promote", {"reason": "again"}).json() == first
    wait_until(lambda: scoring.served("challenger") == [])
    assert scoring.manage("POST", f"/deployments/{MODEL}/rollback", {"reason": "it is not"}).json()["version"] == "1"
    wait_until(lambda: scoring.served() == ["1"])
    newest = scoring.manage("GET", f"/deployments/{MODEL}").json()["deployments"][:2]
    assert [(row["version"], row["previous"], row["set_by"]) for row in newest] == [
        ("1", "2", scoring.stack.values["MLFLOW_TRACKING_USERNAME"]),
        ("2", "1", "ada"),
    ]


# In the service's container: two replicas have both read the newest deployment before either records one.
SEEN_TWICE = """
import asyncio
from functools import partial
from threading import Barrier
from mlstack import settings
from mlstack.scoring.catalogue import Champion
from mlstack.scoring.deployments import seen
from mlstack.scoring.store import Store
barrier = Barrier(2, timeout=60)
stores = [Store(settings.scoring_login(), f"replica {number}") for number in (1, 2)]

def is_named(model, version):
    barrier.wait()
    return True

async def look(version):
    work = partial(seen, {"seen twice": Champion(version, is_named=True)}, "scoring", is_named)
    return await asyncio.gather(*(store.run(work) for store in stores))

for version in ("1", "2", "1"):
    first, second = asyncio.run(look(version))
    print(first == second)
"""


def test_move_that_two_replicas_see_at_the_same_time_is_recorded_once(scoring: Scoring) -> None:
    assert scoring.stack.in_container("scoring", "python3", "-c", SEEN_TWICE).split() == ["True"] * 3
    recorded = scoring.manage("GET", "/deployments/seen twice").json()["deployments"]
    assert [(row["version"], row["previous"]) for row in recorded] == [("1", "2"), ("2", "1"), ("1", None)]


# The connection is lost while a deployment is committed.
LOST = """
CREATE FUNCTION serving.lose() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
AS 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER lose AFTER INSERT ON serving.deployments DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION serving.lose()
"""


def test_promotion_whose_record_is_lost_says_so_and_is_recorded_once(scoring: Scoring) -> None:
    scoring.set_alias("2", "challenger")
    promote = lambda: scoring.manage("POST", f"/deployments/{MODEL}/promote", {"reason": "it is better"})  # noqa: E731
    listed = lambda: scoring.manage("GET", f"/deployments/{MODEL}").json()["deployments"]  # noqa: E731
    before = listed()
    with connected(Stack.of(scoring.stack.folder).owner, 30) as connection, connection.cursor() as cursor:
        cursor.execute(LOST)
        try:
            promoted = promote()
        finally:
            cursor.execute("DROP FUNCTION serving.lose() CASCADE")
    assert promoted.status_code == 503
    assert promoted.json()["message"].startswith("Version 2 is the champion, but Postgres did not confirm")
    wait_until(lambda: len(listed()) == len(before) + 1)
    newest, *others = listed()
    assert ((newest["version"], newest["previous"], newest["reason"]), others) == (
        ("2", "1", "the alias was moved in MLflow"),
        before,
    )
    assert promote().json() == {"deployment": newest["id"], "version": "2", "previous": "1"}
    assert listed() == [newest, *others]
    scoring.set_alias("1")
    wait_until(lambda: (scoring.served(), scoring.served("challenger")) == (["1"], []))


def deployment_of(scoring: Scoring, answer: requests.Response) -> str | None:
    (decision,) = scoring.decisions(request=answer.headers["X-Mlstack-Decision"])
    deployment: str | None = decision["deployment"]
    return deployment


def version_for(scoring: Scoring, entity: str) -> str:
    return scoring.post("/invocations", records(), **{"X-Mlstack-Entity": entity}).headers["X-Mlstack-Version"]


# ---- operations ----------------------------------------------------------------------------------------


def test_backup_has_decisions_policies_and_keys_and_restore_brings_them_back(scoring: Scoring) -> None:
    before = scoring.decisions(entity="customer 7")
    assert before
    taken = scoring.stack.make("backup")
    assert taken.returncode == 0, taken.stderr
    assert scoring.stack.make("key-remove", NAME="tests").returncode == 0
    scoring.manage("POST", "/invocations", records())
    restored = scoring.stack.make("restore", BACKUP="latest", YES="1")
    assert restored.returncode == 0, restored.stderr
    wait_until(lambda: scoring.get("/models").status_code == 200)  # with the key that is there again
    assert scoring.decisions(entity="customer 7") == before
    assert scoring.manage("GET", f"/policies/{MODEL}").json()["versions"]
    wait_until(lambda: scoring.score(GOOD_ROW).status_code == 200)  # the service's role has its rights again


def test_doctor_finds_the_part_healthy_and_reports_a_version_that_is_not_served(scoring: Scoring) -> None:
    checks = {result["name"]: result for result in doctor(scoring)}
    mine = {name: result["state"] for name, result in checks.items() if result["reach"] == "scoring"}
    assert mine.keys() >= {"it serves what the aliases name", "decisions can be stored, and not changed"}
    assert set(mine.values()) == {"ok"}, checks
    broken = next(version for version, kind in scoring.versions.items() if kind == "crash")
    scoring.set_alias(broken)
    wait_until(lambda: broken in scoring.rejected())
    follows = next(result for result in doctor(scoring) if result["name"] == "it serves what the aliases name")
    assert follows["state"] == "warning"
    assert "it crashes while it is loaded" in follows["cause"]
    scoring.set_alias("1")
    wait_until(lambda: scoring.rejected() == {})


def doctor(scoring: Scoring) -> list[dict[str, str]]:
    results: list[dict[str, str]] = json.loads(scoring.stack.make("doctor", JSON="1").stdout)["checks"]
    return results


# ---- without the others --------------------------------------------------------------------------------


def test_service_starts_and_answers_while_mlflow_and_minio_are_down(scoring: Scoring) -> None:
    scoring.stack.compose("stop", "--timeout", "5", "mlflow", "minio")
    try:
        assert scoring.score(GOOD_ROW).json() == {"predictions": [2.0]}
        scoring.stack.compose("restart", "--no-deps", "scoring")
        wait_until(lambda: is_up(scoring))
        assert scoring.score(GOOD_ROW).json() == {"predictions": [2.0]}
    finally:
        scoring.stack.compose("start", "minio", "mlflow")
    scoring.stack.compose("up", "--detach", "--wait", "--no-build")
    scoring.set_alias("2")
    wait_until(lambda: scoring.served() == ["2"])
    scoring.set_alias("1")
    wait_until(lambda: scoring.served() == ["1"])


def test_no_decision_is_answered_without_its_row_while_postgres_is_down(scoring: Scoring) -> None:
    scoring.stack.compose("stop", "--timeout", "5", "postgres")
    try:
        started = time.monotonic()
        answers = [scoring.post("/invocations", records(), **{"X-Mlstack-Entity": "down"}) for _ in range(2)]
        assert [(answer.status_code, answer.headers["Retry-After"]) for answer in answers] == [(503, "1")] * 2
        assert time.monotonic() - started < 30  # bounded; a client's own limit is 60
    finally:
        scoring.stack.compose("start", "postgres")
    wait_until(lambda: scoring.post("/invocations", records(), **{"X-Mlstack-Entity": "up"}).ok)
    wait_until(lambda: scoring.manage("GET", "/decisions?entity=up").ok)
    assert (len(scoring.decisions(entity="down")), len(scoring.decisions(entity="up"))) == (0, 1)


def test_log_after_the_answer_keeps_rows_while_postgres_is_down_and_counts_those_it_drops(scoring: Scoring) -> None:
    set_values(scoring.stack.folder, DECISION_LOG="after")
    scoring.stack.compose("up", "--detach", "--wait", "--no-build", "scoring")
    wait_until(lambda: is_up(scoring) and scoring.served() == ["1"])
    scoring.stack.compose("stop", "--timeout", "5", "postgres")
    try:
        assert scoring.post("/invocations", records(), **{"X-Mlstack-Entity": "later"}).json() == {"predictions": [2.0]}
        for _ in range(3):
            assert scoring.score(*[GOOD_ROW] * 8_000).ok
        assert scoring.metric("mlstack_scoring_decisions_total", result="dropped") == 8_000
    finally:
        scoring.stack.compose("start", "postgres")
    wait_until(lambda: scoring.metric("mlstack_scoring_decisions_total", result="committed") == 16_001)
    wait_until(lambda: scoring.manage("GET", "/decisions?entity=later").ok)
    assert len(scoring.decisions(entity="later")) == 1
    set_values(scoring.stack.folder, DECISION_LOG="before")
    scoring.stack.compose("up", "--detach", "--wait", "--no-build")


def is_up(scoring: Scoring) -> bool:
    try:
        return requests.get(f"{scoring.url}/ping", timeout=5).ok
    except requests.ConnectionError:
        return False


def test_image_alone_speaks_the_inference_protocol_as_documented(scoring: Scoring, tmp_path: Path) -> None:
    section = (ROOT / "docs/scoring.md").read_text(encoding="utf-8").partition("## One container")[2]
    command, ask = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[:2]
    (given,) = re.findall(r"```text\n(.*?)```", section, re.DOTALL)[:1]
    values, port = scoring.stack.values, free_ports(1)[0]
    filled = re.sub(r"(\w+)=…", lambda line: f"{line[1]}={values[line[1]]}", given)
    (tmp_path / "scoring.env").write_text(filled.replace("8101", str(port)))
    (tmp_path / "request.json").write_text(json.dumps(V2))
    name = f"{scoring.stack.name}-alone"
    replaced = {"scoring-alone": name, "mlstack_": f"{scoring.stack.name}_", "mlstack-scoring": scoring.stack.image("scoring"),
                "8101": str(port), "models/delays": f"models/{MODEL}", "curl": "curl --fail --silent --show-error"}  # fmt: skip
    for old, new in replaced.items():
        command, ask = command.replace(old, new), ask.replace(old, new)
    ready, infer = ask.splitlines()
    url = f"http://127.0.0.1:{port}"
    host = lambda name: requests.get(f"{url}/v2/health/ready", headers={"Host": name}, timeout=60).status_code  # noqa: E731
    try:
        shell(command, tmp_path)
        wait_until(lambda: shell(ready, tmp_path, check=False).returncode == 0)
        wait_until(lambda: shell(infer, tmp_path, check=False, **values).returncode == 0)
        answer = json.loads(shell(infer, tmp_path, **values).stdout)
        assert (answer["model_version"], answer["outputs"][0]["data"]) == ("1", [2.0])
        assert (host("models.example.com"), host("other.example.com")) == (200, 403)
    finally:
        shell(f"docker logs {name}; docker rm --force {name}; docker volume rm {name}", tmp_path, check=False)


def shell(command: str, folder: Path, *, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    env = users_environment() | environment
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done


@pytest.mark.refusal
def test_client_beyond_its_rate_waits_and_slows_no_other(scoring: Scoring) -> None:
    set_values(scoring.stack.folder, SCORING_RATE="5")
    scoring.stack.compose("up", "--detach", "--wait", "--no-build", "scoring")
    wait_until(lambda: scoring.score(GOOD_ROW).status_code == 200)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: scoring.score(GOOD_ROW), range(40)))
    rejected = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert {answer.headers["Retry-After"] for answer in rejected} == {"1"}
    assert scoring.manage("POST", "/invocations", records()).status_code == 200
    # mlstack's own functions wait and ask again.
    program = f"from mlstack import deployments\nfor _ in range(20): deployments.table('{MODEL}')"
    scoring.stack.in_container("jupyter", "python3", "-W", "ignore", "-c", program)
    set_values(scoring.stack.folder, SCORING_RATE="0")
    scoring.stack.compose("up", "--detach", "--wait", "--no-build", "scoring")


def test_every_command_of_the_readme_works_as_written(scoring: Scoring) -> None:
    for command in readme.of_parts():
        readme.at_a_terminal(scoring.stack, command)


def test_removed_part_has_no_container_and_keeps_its_volume(scoring: Scoring) -> None:
    unknown = scoring.stack.make("remove", PART="nonsense")
    assert unknown.returncode != 0
    assert "'nonsense' is no part of this stack." in unknown.stderr
    assert "name one of: scoring, gateway" in unknown.stderr
    for _ in range(2):
        removed = scoring.stack.make("remove", PART="scoring")
        assert removed.returncode == 0, removed.stderr
    assert scoring.stack.values.get("COMPOSE_PROFILES", "") == ""
    assert "scoring" not in scoring.stack.compose("ps", "--all", "--services")
    listed = json.loads(scoring.stack.make("status", JSON="1").stdout)
    assert not [service for service in listed["services"] if "scoring" in service["name"]]
    assert "SCORING" not in scoring.stack.make("urls").stdout
