"""Our server answers and stores what genuine MLflow does (docs/conformance.md)."""

import json
import random
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from tests.conformance import examples, fuzz, sequences
from tests.conformance.comparison import Comparison, answers_differ
from tests.conformance.deliberate import OF_SERVER, OfServer
from tests.conformance.fuzz import API
from tests.conformance.servers import Answer, Call, Pair, Side, differences, get, normal, post

ODD_CALLS, BATCHES, SEQUENCES, LENGTH = 2000, 300, 100, 8
WRITERS, CALLS, KEYS = 8, 20, 12
PROXY = "/api/2.0/mlflow-artifacts/artifacts"


def summary(lines: list[str]) -> str:
    return f"{len(lines)} differences; the first:\n\n" + "\n\n".join(lines[:5])


# ---- fuzz ------------------------------------------------------------------------------------------


def test_malformed_calls_are_answered_and_stored_as_by_mlflow(comparison: Comparison, chance: random.Random) -> None:
    different = comparison.sequences("odd calls", ([call] for call in fuzz.calls(chance, ODD_CALLS)))
    assert not different, summary(different)


def test_batches_with_valid_and_invalid_parts_are_stored_as_by_mlflow(comparison: Comparison, chance: random.Random) -> None:
    different = comparison.sequences(
        "batches with right and wrong parts", ([call] for call in sequences.batches(chance, BATCHES))
    )
    assert not different, summary(different)


def test_sequences_on_one_run_are_stored_as_by_mlflow(comparison: Comparison, chance: random.Random) -> None:
    chosen = [sequences.sequence(chance, LENGTH) for _ in range(SEQUENCES)]
    different = comparison.sequences("sequences on one run", chosen)
    assert not different, summary(different)


# ---- named cases, each once a difference ---------------------------------------------------------------

RUN = '"run_id": "{run}"'
METRIC = '{"key": "m", "value": 1.5, "timestamp": 1000, "step": 3}'
METRICS = f'"metrics": [{METRIC}]'
POINT = METRIC[1:-1]


def _call(path: str, body: str, **headers: str) -> Call:
    return Call("POST", f"{API}runs/{path}", body.encode(), {"Content-Type": "application/json"} | headers)


CASES: dict[str, list[Call]] = {
    **{
        f"{name} is {value} beside metrics": [_call("log-batch", f'{{{RUN}, {METRICS}, "{name}": {value}}}')]
        for name in ("params", "tags")
        for value in ("false", "0", "-0.0", '""', "{}", "null", "[]", "[{}]", "[[]]")
    },
    **{
        f"run_uuid is {value} beside run_id": [_call("log-metric", f'{{"run_uuid": {value}, {RUN}, {POINT}}}')]
        for value in ("0", "1e3", "true", "null", "[1]", "{}", '"x"', '""', '"{run}"')
    },
    "log-metric with the body of a batch": [_call("log-metric", f"{{{RUN}, {METRICS}}}")],
    "log-batch with the body of a point": [_call("log-batch", f"{{{RUN}, {POINT}}}")],
    "log-metric with a point and a batch": [_call("log-metric", f"{{{RUN}, {POINT}, {METRICS}}}")],
    "log-batch with a batch and a point": [_call("log-batch", f"{{{RUN}, {METRICS}, {POINT}}}")],
    **{
        f"ties at one step and time: {first} then {then}": [
            _call("log-batch", "{" + RUN + ', "metrics": [' + ", ".join(
                f'{{"key": "m", "value": {value}, "timestamp": 1, "step": 0}}' for value in (first, then)) + "]}")
        ]
        for first in ('"NaN"', "0", "1", "-1", '"Infinity"', '"-Infinity"')
        for then in ('"NaN"', "0", "-0.0", "1")
    },
    **{
        f"a later call ties with an earlier one: {first} then {then}": [
            _call("log-metric", f'{{{RUN}, "key": "m", "value": {value}, "timestamp": 1, "step": 0}}') for value in (first, then)
        ]
        for first in ('"NaN"', "0", "1", "-1")
        for then in ('"NaN"', "0", "1", "-1")
    },
    **{
        f"content type {content_type!r}": [_call("log-metric", f"{{{RUN}, {POINT}}}", **{"Content-Type": content_type})]
        for content_type in fuzz.CONTENT_TYPES
        if content_type is not None
    },
    **{
        f"{account}: {path} with run_id {value}": [
            replace(_call(path, f'{{"run_id": {value}, {METRICS if path == "log-batch" else POINT}}}'), account=account)
        ]
        for value in ("5", '["{run}"]', "null", "{}", "true", r'"a\u0000b"', r'"\ud800"', '" {run}"', '"{run} "')
        for path in ("log-metric", "log-batch", "set-tag")
        for account in ("admin", "colleague")
    },
    **{
        f"get a run whose id is {value}": [Call("GET", f"{API}runs/get?run_id={value}", b"", {})]
        for value in ("5", "%00", "%ED%A0%80", "")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_case_is_answered_and_stored_as_by_mlflow(comparison: Comparison, name: str) -> None:
    different = comparison.sequences("named cases", [CASES[name]])
    assert not different, summary(different)


# ---- deliberate differences ---------------------------------------------------------------------------


@pytest.mark.parametrize("known", OF_SERVER, ids=lambda known: known.name)
def test_deliberate_difference_still_differs(comparison: Comparison, known: OfServer) -> None:
    pair = comparison.pair
    run, twin = pair.runs(2)
    call = comparison.place.fill(known.example, run)
    ours, genuine = pair.send(call)
    if (words := known.in_mlflows_words(comparison.place.fill(known.example, twin))) is None:
        assert differences(ours.normal(), genuine.normal()), "nothing differs any more: remove it from deliberate.py"
        assert known.is_meant(call, ours, genuine), (ours, genuine)
        return
    in_its_words = pair.genuine.send(words)
    stored, theirs = pair.ours.rows([run])[run], pair.genuine.rows([run, twin])
    assert differences(normal(stored), normal(theirs[run])), "nothing differs any more: remove it from deliberate.py"
    assert not differences(ours.normal(), in_its_words.normal())
    assert not differences(normal(stored), normal(theirs[twin]))


def _write(side: Side, run: str) -> tuple[set[int], list[Any]]:
    """Concurrent writers of the same metrics, each in another order: the statuses, and what is missing or wrong."""
    ready = threading.Barrier(WRITERS)

    def log(writer: int) -> list[int]:
        order = random.Random(writer)  # noqa: S311 (not for secrets)
        ready.wait()
        return [
            side.send(post("runs/log-batch", {"run_id": run, "metrics": batch(writer, call, order)})).status
            for call in range(CALLS)
        ]

    def batch(writer: int, call: int, order: random.Random) -> list[dict[str, Any]]:
        keys = order.sample(range(KEYS), KEYS)
        return [{"key": f"m{key}", "value": writer, "timestamp": 1, "step": CALLS * writer + call} for key in keys]

    with ThreadPoolExecutor(WRITERS) as threads:
        statuses = {status for codes in threads.map(log, range(WRITERS)) for status in codes}
    rows = side.rows([run])[run]
    last = {(row["key"], row["step"]) for row in rows["latest_metrics"]}
    wrong = [WRITERS * CALLS * KEYS - len(rows["metrics"]), last ^ {(f"m{key}", WRITERS * CALLS - 1) for key in range(KEYS)}]
    return statuses, [problem for problem in wrong if problem]


def test_concurrent_writers_are_all_stored(comparison: Comparison) -> None:
    (run,) = comparison.pair.runs(1)
    comparison.answers["concurrent writers"] += WRITERS * CALLS
    comparison.runs["concurrent writers"] += 1
    assert _write(comparison.pair.ours, run) == ({200}, [])


# ---- accounts -------------------------------------------------------------------------------------------

ACCOUNTS = ("admin", "owner", "colleague", "reader", "denied", "removed", "wrong password", "unknown", None)


@pytest.fixture(scope="module")
def guarded(pair: Pair) -> dict[str, str]:
    """An experiment of `owner` with a run, which others may read only or not at all; and a model of theirs."""
    experiment = pair.expect(post("experiments/create", {"name": "guarded"}, "owner"))["experiment_id"]
    for username, permission in (("reader", "READ"), ("denied", "DENY")):
        grant = {"username": username, "resource_type": "experiment", "resource_id": experiment, "permission": permission}
        for side in pair.sides:
            call = post("users/permissions/grant", grant)
            answer = side.send(Call("POST", call.path.replace("2.0", "3.0"), call.body, call.headers))
            assert answer.status == 200, answer
    pair.expect(post("registered-models/create", {"name": "guarded"}, "owner"))
    for side in pair.sides:
        side.accounts["wrong password"] = ("colleague", "not this one, " + secrets.token_hex(4))
        side.accounts["unknown"] = ("nobody", secrets.token_hex(8))
        removed = side.send(Call("DELETE", f"{API}users/delete", json.dumps({"username": "removed"}).encode()))
        assert removed.status == 200, removed
    (run,) = pair.runs(1, experiment)
    return {"run": run, "experiment": experiment, "model": "guarded", "searched": experiment}


@pytest.mark.parametrize("account", ACCOUNTS, ids=str)
def test_account_has_the_permissions_it_has_in_mlflow(
    comparison: Comparison, guarded: dict[str, str], account: str | None
) -> None:
    different = []
    # Our server throttles wrong passwords: a few calls are enough.
    routes = fuzz.ROUTES if account in ACCOUNTS[:5] else fuzz.ROUTES[:3]
    for route in routes:
        call = fuzz.filled(route.call(list(route.fields.items())), **guarded)
        different += comparison.call("accounts", Call(call.method, call.path, call.body, call.headers, account))
        other = fuzz.filled(route.call(list(route.fields.items())), **(guarded | {"run": "0" * 32, "experiment": "99999"}))
        different += comparison.call("accounts", Call(other.method, other.path, other.body, other.headers, account))
    ours, genuine = comparison.pair.both(lambda side: side.rows([guarded["run"]]))
    different += differences(normal(ours), normal(genuine))
    assert not different, summary(different)


def test_granted_or_revoked_permission_applies_to_the_next_call(comparison: Comparison, guarded: dict[str, str]) -> None:
    different = []
    log = {"run_id": guarded["run"], "key": "m", "value": 1, "timestamp": 1}
    for permission in ("DENY", "READ", "EDIT", "MANAGE", None):
        grant = {"username": "colleague", "resource_type": "experiment", "resource_id": guarded["experiment"]}
        path = "users/permissions/grant" if permission else "users/permissions/revoke"
        change = post(path, grant | ({"permission": permission} if permission else {}))
        different += comparison.call("accounts", Call("POST", change.path.replace("2.0", "3.0"), change.body, change.headers))
        different += comparison.call("accounts", post("runs/log-metric", log, "colleague"))
        different += comparison.call("accounts", get(f"runs/get?run_id={guarded['run']}", "colleague"))
        different += comparison.call("accounts", post("runs/delete", {"run_id": guarded["run"]}, "colleague"))
        different += comparison.call("accounts", post("runs/restore", {"run_id": guarded["run"]}))
    assert not different, summary(different)


# ---- artifacts by MLflow's proxy ----------------------------------------------------------------------------

NAMES = (
    "plain.txt", "with space", "a%20b", "a%2fb", "a%2Fb", "a%5Cb", "a#b", "a?b", "a+b", "a&b=c", "é", "日本", "a\\b", "a:b", "~a",
    ".hidden", "a..b", "x" * 200, "d/e/f", "d//e", "./d", "d/./e", "d/../e", "../x", "%2e%2e/x", "/abs", "a\nb", "a;b",
    "a,b", "'", '"', "<a>", "$a", "{a}", "a|b", "d/",
)  # fmt: skip


def test_artifacts_are_stored_by_the_proxy_as_by_mlflow(comparison: Comparison) -> None:
    run = comparison.pair.runs(1, comparison.place.experiment)[0]
    root, different = f"{comparison.place.experiment}/{run}/artifacts", []
    for account in ("admin", "colleague"):
        for name in NAMES:
            for path in {f"{PROXY}/{root}/{quote(name)}", f"{PROXY}/{root}/{quote(name, safe='%')}"}:
                put = Call("PUT", path, b"content of " + name[:9].encode(), {"Content-Type": "application/octet-stream"}, account)
                different += comparison.call("artifacts", put)
                different += comparison.call("artifacts", Call("GET", path, b"", {}, account))
            different += comparison.call(
                "artifacts", Call("GET", f"{PROXY}?{urlencode({'path': f'{root}/{name}'})}", b"", {}, account)
            )
            different += comparison.call("artifacts", get(f"artifacts/list?{urlencode({'run_id': run, 'path': name})}", account))
        different += comparison.call("artifacts", get(f"artifacts/list?run_id={run}", account))
    ours, genuine = comparison.pair.both(lambda side: side.objects(run))
    different += differences(ours, genuine, "objects")
    for name in NAMES[:4]:
        different += comparison.call("artifacts", Call("DELETE", f"{PROXY}/{root}/{quote(name)}", b"", {}))
    ours, genuine = comparison.pair.both(lambda side: sorted(side.objects(run)))
    different += differences(ours, genuine, "objects after deleting")
    assert not different, summary(different)


def test_multipart_upload_is_answered_as_by_mlflow(comparison: Comparison) -> None:
    run = comparison.pair.runs(1, comparison.place.experiment)[0]
    root, different = f"{comparison.place.experiment}/{run}/artifacts", []
    for body in (
        {"path": f"{root}/big", "num_parts": 2},
        {"path": "../x", "num_parts": 1},
        {},
        {"path": f"{root}/big", "num_parts": "x"},
    ):
        call = Call("POST", f"/api/2.0/mlflow-artifacts/mpu/create/{root}/big", json.dumps(body).encode())
        different += comparison.call("artifacts", call)
    assert not different, summary(different)


# ---- the documented API -----------------------------------------------------------------------------------


def test_documented_calls_are_answered_as_by_mlflow(comparison: Comparison) -> None:
    kept: dict[str, dict[str, str]] = {}
    different: list[str] = []
    for number, step in enumerate(examples.STEPS):
        answers = [_step(side, step, kept) for side in comparison.pair.sides]
        comparison.answers["the documented API"] += 1
        call = Call(step.method, step.path, json.dumps(step.fields).encode())
        different += [f"{number} {call}\n    {line}" for line in answers_differ(call, *answers)]
    assert not different, summary(different)


def _step(side: Side, step: examples.Step, kept: dict[str, dict[str, str]]) -> Answer:
    names = kept.setdefault(side.name, {})

    def fill(text: str) -> str:
        for name, value in names.items():
            text = text.replace(f"<{name}>", value)
        return text

    path, body = fill(step.path), fill(json.dumps(step.fields))
    if step.method == "GET":
        call = get(f"{path}?{urlencode(json.loads(body), doseq=True)}")
    else:
        call = Call(step.method, f"{API}{path}", body.encode())
    answer = side.send(call)
    if step.keep and answer.status == 200:
        name, _, place = step.keep.partition("=")
        value = answer.json
        for part in place.split("."):
            value = value[part]
        names[name] = value
    return answer
