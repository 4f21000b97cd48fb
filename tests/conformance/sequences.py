"""Several calls to one run, in any order: batches with right and wrong parts, ties, and a run that is deleted meanwhile."""

import random
from collections.abc import Iterator

from tests.conformance.fuzz import API, ROUTES, odd_call
from tests.conformance.servers import Call

KEYS = ('"a"', '"b"', '"a"', '"loss/x y"')
# Few, so that points tie often.
VALUES = ("0", "1", "-1", "1.5", '"NaN"', '"Infinity"', '"-Infinity"', "1e308", "0.0", "-0.0")
TIMES = ("0", "1", "1", "2")
STEPS = ("0", "0", "1", "-1")
WRONG_POINTS = (
    '{"key": "a"}', '{"value": 1}', "{}", "null", "1", "[]", '{"key": "a b!", "value": 1, "timestamp": 1}',
    '{"key": "a", "value": "x", "timestamp": 1}', '{"key": "a", "value": 1, "timestamp": -1}',
    '{"key": "a", "value": 1, "timestamp": 1, "step": 1.5}', '{"key": "a", "value": true, "timestamp": 1}',
    '{"key": "a", "value": 1, "timestamp": 9223372036854775808}', '{"key": "a", "value": 1, "timestamp": 1, "step": "x"}',
    '{"key": "a", "value": 1, "timestamp": 1, "unknown": 1}', '{"key": "../a", "value": 1, "timestamp": 1}',
    r'{"key": "a\u0000", "value": 1, "timestamp": 1}', r'{"key": "\ud800", "value": 1, "timestamp": 1}',
    '{"key": "a", "value": 1, "timestamp": "5", "step": "2"}', '{"key": "", "value": 1, "timestamp": 1}',
    '{"key": "a", "value": null, "timestamp": 1}', '{"key": "a", "value": 1, "timestamp": null}',
    '{"key": "a", "value": 1, "timestamp": 1, "step": null}', '{"key": null, "value": 1, "timestamp": 1}',
    '{"key": "a", "value": 1e400, "timestamp": 1}', '{"key": "a", "value": 1' + "0" * 400 + ', "timestamp": 1}',
)  # fmt: skip
PAIRS = ('{"key": "a", "value": "1"}', '{"key": "a", "value": "2"}', '{"key": "b", "value": ""}', '{"key": "c", "value": "x y"}')
WRONG_PAIRS = (
    '{"key": "a"}', '{"value": "1"}', "{}", "null", '{"key": "a!", "value": "1"}', '{"key": "a", "value": 1}',
    '{"key": "a", "value": null}',
    r'{"key": "a", "value": "\u0000"}', f'{{"key": "a", "value": "{"x" * 6001}"}}', '{"key": "mlflow.user", "value": "me"}',
)  # fmt: skip
READING = {"get": "runs/get?run_id={run}", "history": "metrics/get-history?run_id={run}&metric_key=a"}
OPERATIONS = (
    "log-metric", "log-metric", "log-metric", "batch", "batch", "log-parameter", "set-tag", "delete", "restore", *READING, "odd",
)  # fmt: skip


def point(chance: random.Random) -> str:
    if chance.random() < 0.12:
        return chance.choice(WRONG_POINTS)
    step = "" if chance.random() < 0.2 else f', "step": {chance.choice(STEPS)}'
    return f'{{"key": {chance.choice(KEYS)}, "value": {chance.choice(VALUES)}, "timestamp": {chance.choice(TIMES)}{step}}}'


def batch(chance: random.Random) -> Call:
    """A log-batch of up to eight points, with params and tags that are mostly right, or not there."""
    fields = ['"run_id": "{run}"', f'"metrics": [{", ".join(point(chance) for _ in range(chance.randrange(9)))}]']
    for name in ("params", "tags"):
        wrong = chance.random() < 0.15
        if chance.random() < 0.4:
            some = ", ".join(chance.choice(WRONG_PAIRS if wrong else PAIRS) for _ in range(chance.randrange(4)))
            fields.append(f'"{name}": [{some}]')
    chance.shuffle(fields)
    return Call("POST", f"{API}runs/log-batch", f"{{{', '.join(fields)}}}".encode())


def batches(chance: random.Random, count: int) -> Iterator[Call]:
    for _ in range(count):
        yield batch(chance)


def sequence(chance: random.Random, length: int) -> list[Call]:
    """Calls to one run."""
    return [_one(chance, chance.choice(OPERATIONS)) for _ in range(length)]


def _one(chance: random.Random, operation: str) -> Call:
    if operation == "batch":
        return batch(chance)
    if operation == "odd":
        return odd_call(chance, chance.choice([route for route in ROUTES if "log-" in route.path]))
    if operation in READING:
        return Call("GET", f"{API}{READING[operation]}".replace("{run}", "%7Brun%7D"), b"", {})
    values = f'"key": {chance.choice(KEYS)}, "value": {chance.choice(VALUES)}, "timestamp": {chance.choice(TIMES)}'
    fields = {
        "log-metric": f'{values}, "step": {chance.choice(STEPS)}',
        "log-parameter": chance.choice(PAIRS)[1:-1],
        "set-tag": chance.choice(PAIRS)[1:-1],
    }
    return _post(operation, fields.get(operation, ""))


def _post(name: str, fields: str = "") -> Call:
    body = '{"run_id": "{run}"' + (f", {fields}" if fields else "") + "}"
    return Call("POST", f"{API}runs/{name}", body.encode())
