"""Malformed calls: odd values in each field of each route, and whole requests that are odd.

All chance comes from a random.Random that the caller seeds: the same seed makes the same calls.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

from tests.conformance.servers import Call

DEEP = 100_000  # brackets; Python's own parser gives up long before
# JSON texts, because json.dumps could not write most of them.
ODD = (
    "null", "true", "false", "0", "1", "-1", "-0.0", "1.0", "1.5", "1e3", "1e400", "-1e400", "5e-324", "1e19",
    "NaN", "Infinity", "-Infinity", '"NaN"', '"nan"', '"Infinity"', '"-Infinity"', '"inf"', '"-inf"',
    "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "1" + "0" * 40,
    '"9223372036854775807"', '"9223372036854775808"', '"1"', '"01"', '"1.5"', '" 1"', '"1e3"', '"true"', '"0x10"', '"١"',
    '""', '" "', '"a b"', '"a!"', '"é"', '"日本"', '"🙂"', r'"\u0000"', r'"a\u0000b"', r'"\ud800"', r'"a\udc00\ud800"', r'"\n"',
    '"/x"', '"../x"', '"x//y"', '"./x"', '"."', '"x/"', r'"a\\b"', '"a#b?c%20"', '"mlflow.user"', '"mlflow.runName"',
    f'"{"x" * 250}"', f'"{"x" * 251}"', f'"{"x" * 6000}"', f'"{"x" * 6001}"', f'"{"x" * 8001}"',
    "[]", "[1]", "[null]", "[[]]", "{}", '{"a": 1}', '[{"key": "a", "value": "b"}]', '{"key": "a", "value": "b"}',
    "[" * 60 + "]" * 60, '{"a":' * 60 + "1" + "}" * 60,
)  # fmt: skip
BODIES = (
    "", " ", "null", "1", '"x"', "[]", "[{}]", "{}", "{", "}", "not json", "{'a': 1}", '{"a": 1,}', "\ufeff{}", "// x\n{}", "NaN",
    '"{\\"run_id\\": 1}"', "[" * DEEP, "[" * DEEP + "]" * DEEP, '{"a":' * DEEP,
)  # fmt: skip
CONTENT_TYPES = (
    "application/json", " application/json", "application/json ", "application/json\t", "application/json;",
    "application/json; charset=utf-8", "application/json ;charset=utf-8", "application/json; charset=latin-1",
    "application/json; charset=nonsense", "Application/JSON", "APPLICATION/JSON;x=y", "application/json, text/plain",
    "application /json", "application/ json", "application/jsonx", "application/vnd.api+json", "text/json", "text/plain",
    "application/x-www-form-urlencoded", "multipart/form-data", "", "x", None,
)  # fmt: skip
UNKNOWN = ("unknown", "runId", "run_uuid", "runUuid", "Key", "model_id", "dataset_name", "dataset_digest", "__proto__", "")


@dataclass(frozen=True)
class Route:
    """A route with fields that make it succeed; `{run}` and the like stand for what a caller puts in."""

    method: str
    path: str
    fields: Mapping[str, str]
    weight: int = 1

    def call(self, fields: Sequence[tuple[str, str]]) -> Call:
        if self.method == "GET":
            query = "&".join(f"{quote(name)}={quote(_plain(value), errors='replace')}" for name, value in fields)
            return Call("GET", f"{self.path}?{query}", b"", {})
        body = "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in fields) + "}"
        return Call(self.method, self.path, body.encode(errors="surrogatepass"))


def _plain(value: str) -> str:
    """A JSON string's content, for a query; any other value as it is written."""
    return str(json.loads(value)) if value.startswith('"') else value


ACCOUNTS = ("admin", "admin", "colleague")  # MLflow looks up no permission of an admin
API = "/api/2.0/mlflow/"
METRIC = '{"key": "m", "value": 1.5, "timestamp": 1000, "step": 3}'
ROUTES = (
    Route("POST", f"{API}runs/log-metric",
          {"run_id": '"{run}"', "key": '"m"', "value": "1.5", "timestamp": "1000", "step": "3"}, weight=8),
    Route("POST", f"{API}runs/log-batch",
          {"run_id": '"{run}"', "metrics": f"[{METRIC}]", "params": "[]", "tags": "[]"}, weight=6),
    Route("POST", f"{API}runs/log-batch",
          {"run_id": '"{run}"', "metrics": f"[{METRIC}]", "params": '[{"key": "p", "value": "1"}]',
           "tags": '[{"key": "t", "value": "1"}]'}, weight=2),
    Route("POST", f"{API}runs/log-batch", {"run_id": '"{run}"', "metrics": f"[{METRIC}]"}, weight=2),
    Route("POST", f"{API}runs/log-parameter", {"run_id": '"{run}"', "key": '"p"', "value": '"1"'}, weight=2),
    Route("POST", f"{API}runs/set-tag", {"run_id": '"{run}"', "key": '"t"', "value": '"1"'}, weight=2),
    Route("POST", f"{API}runs/delete-tag", {"run_id": '"{run}"', "key": '"t"'}),
    Route("POST", f"{API}runs/update", {"run_id": '"{run}"', "status": '"FINISHED"', "end_time": "5", "run_name": '"name"'}),
    Route("POST", f"{API}runs/log-inputs",
          {"run_id": '"{run}"', "datasets": '[{"dataset": {"name": "d", "digest": "1", "source_type": "s", "source": "x"}}]'}),
    Route("GET", f"{API}runs/get", {"run_id": '"{run}"'}, weight=2),
    Route("GET", f"{API}metrics/get-history", {"run_id": '"{run}"', "metric_key": '"m"', "max_results": "10"}, weight=2),
    Route("GET", f"{API}artifacts/list", {"run_id": '"{run}"', "path": '"a"'}, weight=2),
    Route("POST", f"{API}runs/search",
          {"experiment_ids": '["{searched}"]', "filter": '"metrics.m > 1"', "run_view_type": '"ALL"', "max_results": "3",
           "order_by": '["metrics.m DESC"]'}, weight=3),
    Route("POST", f"{API}runs/delete", {"run_id": '"{run}"'}),
    Route("POST", f"{API}runs/restore", {"run_id": '"{run}"'}),
    Route("GET", f"{API}experiments/get", {"experiment_id": '"{experiment}"'}),
    Route("POST", f"{API}experiments/search", {"max_results": "2", "filter": "\"name = 'Default'\"", "view_type": '"ALL"'}),
    Route("POST", f"{API}model-versions/create",
          {"name": '"{model}"', "source": '"mlflow-artifacts:/{experiment}/{run}/artifacts/m"', "run_id": '"{run}"'}, weight=2),
    Route("GET", f"{API}model-versions/get", {"name": '"{model}"', "version": '"1"'}),
    Route("GET", f"{API}model-versions/search", {"filter": "\"name = '{model}'\"", "max_results": "3"}),
    Route("GET", f"{API}registered-models/get", {"name": '"{model}"'}),
)  # fmt: skip


def calls(chance: random.Random, count: int) -> Iterator[Call]:
    """Odd calls, in which `{run}`, `{experiment}` and `{model}` are to be filled in."""
    weights = [route.weight for route in ROUTES]
    for _ in range(count):
        yield replace(odd_call(chance, *chance.choices(ROUTES, weights)), account=chance.choice(ACCOUNTS))


def odd_call(chance: random.Random, route: Route) -> Call:
    """A call of this route with one or two errors."""
    fields = list(route.fields.items())
    for _ in range(chance.choice((1, 1, 1, 2))):
        chance.choices(FIELD_CHANGES, (8, 2, 2, 1, 1))[0](chance, fields)
    call = route.call(fields)
    if chance.random() < 0.15:
        call = chance.choice(REQUEST_CHANGES)(chance, call)
    return call


def _odd_value(chance: random.Random, fields: list[tuple[str, str]]) -> None:
    if not fields:
        return
    place = chance.randrange(len(fields))
    name, value = fields[place]
    fields[place] = name, _odd_inside(chance, value) if value.startswith("[{") and chance.random() < 0.7 else chance.choice(ODD)


def _odd_inside(chance: random.Random, value: str) -> str:
    """The same list with an odd value in its first object."""
    (inner, *_) = json.loads(value)
    parts = [(name, chance.choice(ODD) if chance.random() < 0.4 else json.dumps(value)) for name, value in inner.items()]
    if chance.random() < 0.2:
        parts.append((chance.choice(UNKNOWN), chance.choice(ODD)))
    odd = "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in parts) + "}"
    return f"[{odd}]" if chance.random() < 0.5 else f"[{json.dumps(inner)}, {odd}]"


def _without_field(chance: random.Random, fields: list[tuple[str, str]]) -> None:
    if fields:
        fields.pop(chance.randrange(len(fields)))


def _unknown_field(chance: random.Random, fields: list[tuple[str, str]]) -> None:
    fields.insert(chance.randrange(len(fields) + 1), (chance.choice(UNKNOWN), chance.choice(ODD)))


def _other_spelling(chance: random.Random, fields: list[tuple[str, str]]) -> None:
    """runId for run_id, or both."""
    place = chance.randrange(len(fields)) if fields else 0
    for name, value in fields[place : place + 1]:
        head, *tail = name.split("_")
        other = head + "".join(part.title() for part in tail)
        fields.insert(place, (other, chance.choice((value, chance.choice(ODD)))))
        if chance.random() < 0.5:
            fields.remove((name, value))


def _field_twice(chance: random.Random, fields: list[tuple[str, str]]) -> None:
    if fields:
        name, value = chance.choice(fields)
        fields.append((name, chance.choice((value, chance.choice(ODD)))))


FIELD_CHANGES: tuple[Callable[[random.Random, list[tuple[str, str]]], None], ...] = (
    _odd_value, _without_field, _unknown_field, _other_spelling, _field_twice,
)  # fmt: skip


def _content_type(chance: random.Random, call: Call) -> Call:
    chosen = chance.choice(CONTENT_TYPES)
    return replace(call, headers={} if chosen is None else {"Content-Type": chosen})


def _body(chance: random.Random, call: Call) -> Call:
    return replace(call, body=chance.choice(BODIES).encode())


def _broken_text(chance: random.Random, call: Call) -> Call:
    """A byte of the body is another one: not UTF-8, mostly."""
    if not call.body:
        return call
    place = chance.randrange(len(call.body))
    return replace(call, body=call.body[:place] + bytes([chance.randrange(256)]) + call.body[place + 1 :])


def _path(chance: random.Random, call: Call) -> Call:
    path = call.path
    others = (
        path.replace("/api/", "/ajax-api/"), path.replace("2.0", "3.0"), path.replace("2.0", "2"), f"{path}/",
        path.replace("/runs/", "/runs//"), path.replace("runs", "Runs"), f"{path}?run_id=x", path.replace("-", "_"), f"/{path}",
        path.replace("log", "%6cog"),
    )  # fmt: skip
    return replace(call, path=chance.choice(others))


def _method(chance: random.Random, call: Call) -> Call:
    return replace(call, method=chance.choice(("GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "POST")))


REQUEST_CHANGES: tuple[Callable[[random.Random, Call], Call], ...] = (
    _content_type, _content_type, _body, _broken_text, _path, _method,
)  # fmt: skip


def filled(call: Call, **values: str) -> Call:
    """The call with what stands for runs and the like replaced."""
    path, body = call.path, call.body
    for name, value in values.items():
        path = path.replace(quote(f"{{{name}}}"), value)
        body = body.replace(f"{{{name}}}".encode(), value.encode())
    return replace(call, path=path, body=body)
