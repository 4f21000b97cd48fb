"""The part `scoring` beside `mlflow models serve`: the same model and requests, from clients in containers of one image."""

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any
from urllib.parse import urljoin

import requests
from dotenv import dotenv_values

from benchmarks.figures import DEFAULTS, MLSTACK, Better, Line, Values, percentile
from benchmarks.lines import MIB, MS, Bench, Measurement, OfStack, at_least, no_more_than
from benchmarks.stacks import PATIENCE, Client, Stack, make
from mlstack.errors import MlstackError
from mlstack.host.compose import compose_in, docker
from mlstack.host.engine import connect
from tests.support.projects import set_values
from tests.support.service import wait_until

MODEL = "benchmark-scoring"
PREFIX = "score_"  # of the keys of all lines below, which have a page of their own
NANOSECONDS = 1e9
MANY = 16  # clients
SAME = 1e-9  # between predictions in the notebook and the service's
ROUTES, EVENTS = 200, 50_000  # of the features
RATE = 100  # requests in a second
GOOD, BROKEN_IN = 3, 5  # versions that answer, and moves of which the last is to a broken one
SWAPPING = 8  # clients


@dataclass(frozen=True)
class Scorer:
    """A running scoring server. Its bodies have one row and a hundred."""

    service: str
    inside: str
    outside: str
    headers: Mapping[str, str] = field(repr=False)
    bodies: Mapping[int, str] = field(repr=False)


Scorers = Mapping[str, Scorer]


@contextmanager
def scorers(bench: Bench) -> Iterator[Scorers]:
    """Both servers, answering. Raises MlstackError if one predicts something else than the model in its notebook."""
    trained = {side: client.ask("pipeline", name=MODEL) for side, client in bench.clients.items()}
    bodies = {
        side: {size: json.dumps({"dataframe_records": answer["rows"][:size]}) for size in (1, 100)}
        for side, answer in trained.items()
    }
    ours, defaults = bench.stacks[MLSTACK], bench.stacks[DEFAULTS]
    make(ours, "add", "PART=scoring")
    (key,) = re.findall(r"mls_\S+", make(ours, "key", "NAME=benchmark"))
    compose_in(defaults.folder).output("--profile", "serve", "up", "--detach", "--no-deps", "serve")
    path = f"/endpoints/{MODEL}/invocations"
    servers = {
        MLSTACK: Scorer(
            "scoring", f"http://scoring:8000{path}", f"http://127.0.0.1:{_value(ours, 'SCORING_PORT')}{path}",
            {"Authorization": f"Bearer {key}"}, bodies[MLSTACK],
        ),
        DEFAULTS: Scorer(
            "serve", "http://serve:8000/invocations", f"http://127.0.0.1:{_value(defaults, 'SERVE_PORT')}/invocations",
            {}, bodies[DEFAULTS],
        ),
    }  # fmt: skip
    try:
        for side, server in servers.items():
            predictions = _first_answer(server)["predictions"]
            if abs(predictions[0] - trained[side]["predictions"][0]) > SAME:
                raise MlstackError(f"{server.service} predicts {predictions[0]}.", "Its speed would mean nothing.", "make logs")
        yield servers
    finally:
        compose_in(defaults.folder).output("--profile", "serve", "rm", "--stop", "--force", "serve")
        make(ours, "remove", "PART=scoring")


def measurements(bench: Bench, servers: Scorers) -> tuple[Measurement, ...]:
    """What is measured of both servers; the last changes how ours logs decisions."""
    size = bench.size

    def load(clients: int, rows: int, calls: int, values: Callable[[dict[str, Any], float], Values]) -> OfStack:
        def measure(_: Bench, stack: Stack, client: Client) -> Values:
            server = servers[stack.side]
            logged, used = _logged(stack), _cpu(stack, server)
            answer = client.ask(
                "score", url=server.inside, headers=server.headers, body=server.bodies[rows], clients=clients, calls=calls
            )
            spent, answered = _cpu(stack, server) - used, clients * (calls + 1)
            if stack.side == MLSTACK:
                _expect(stack, logged + answered * rows)
            return values(answer, spent / answered)

        return measure

    def many(answer: dict[str, Any], cpu: float) -> Values:
        return {
            "score_rate": len(answer["latencies"]) / answer["total"],
            "score_p99": percentile(answer["latencies"], 0.99) * MS,
            "score_cpu": cpu * MS,
        }

    def batch(answer: dict[str, Any], _: float) -> Values:
        return {"score_rows": 100 * len(answer["latencies"]) / answer["total"]}

    def single(answer: dict[str, Any], _: float) -> Values:
        return {"score_one": median(answer["latencies"]) * MS}

    def after(answer: dict[str, Any], _: float) -> Values:
        return {"score_after": len(answer["latencies"]) / answer["total"]}

    def rest(_: Bench, stack: Stack, __: Client) -> Values:
        used, begun = _cpu(stack, servers[stack.side]), time.monotonic()
        time.sleep(size.rest)
        share = (_cpu(stack, servers[stack.side]) - used) / (time.monotonic() - begun)
        return {"score_idle": share * 100, "score_memory": stack.memory()[servers[stack.side].service] / MIB}

    def ready(_: Bench, stack: Stack, __: Client) -> Values:
        container = stack.container(servers[stack.side].service)
        docker("stop", container)
        begun = time.monotonic()
        docker("start", container)
        _first_answer(servers[stack.side])
        return {"score_ready": time.monotonic() - begun}

    calls = size.scores
    return (
        Measurement("scoring at rest", (
            Line("score_memory", "scoring: memory at rest", "MiB", Better.LESS, (no_more_than(300),)),
            Line("score_idle", "scoring: CPU at rest", "% of a core", Better.LESS, (no_more_than(1),)),
        ), rest),
        Measurement("scoring ready", (
            Line("score_ready", "scoring: docker start to the first answer", "s", Better.LESS, (at_least(1.25),)),
        ), ready),
        Measurement("scoring, one client", (
            Line("score_one", "scoring: 1 client, one row, p50", "ms", Better.LESS, (at_least(4 / 3),)),
        ), load(1, 1, calls, single)),
        Measurement("scoring, many clients", (
            Line("score_rate", "scoring: 16 clients, one row each", "answers/s", Better.MORE, (at_least(6),)),
            Line("score_p99", "scoring: 16 clients, one row each, p99", "ms", Better.LESS, (at_least(2),)),
            Line("score_cpu", "scoring: CPU time of such a request", "ms", Better.LESS),
        ), load(MANY, 1, calls, many)),
        Measurement("scoring, many rows", (
            Line("score_rows", "scoring: 16 clients, 100 rows each", "rows/s", Better.MORE, (at_least(3),)),
        ), load(MANY, 100, max(2, calls // 4), batch)),
        Measurement("scoring, logged after", (
            Line("score_after", "scoring: 16 clients, logged after the answer", "answers/s", Better.MORE, (at_least(8),)),
        ), load(MANY, 1, calls, after)),
    )  # fmt: skip


def of_entities(bench: Bench, servers: Scorers) -> Measurement:
    """Features, model and decision of a request that names an entity. Raises MlstackError if the model is not served."""
    name = f"{MODEL}-entities"
    entities = bench.clients[MLSTACK].ask("of_entities", name=name, routes=ROUTES, events=EVENTS)["entities"]
    server = servers[MLSTACK]
    bodies = {number: json.dumps({"entities": [entity]}) for number, entity in enumerate(entities, start=1)}
    path = f"/endpoints/{name}/entities"
    inside, outside = (urljoin(url, path) for url in (server.inside, server.outside))
    asked = replace(server, inside=inside, outside=outside, bodies=bodies)
    _first_answer(asked)

    def measure(_: Bench, stack: Stack, client: Client) -> Values:
        if stack.side != MLSTACK:
            return {}
        logged = _logged(stack)
        answer = client.ask(
            "paced",
            url=inside,
            headers=asked.headers,
            bodies=[*bodies.values()],
            clients=MANY,
            rate=RATE,
            calls=bench.size.scores,
        )
        _expect(stack, logged + MANY * (bench.size.scores + 1))
        return {
            "score_entity_p50": median(answer["latencies"]) * MS,
            "score_entity_p99": percentile(answer["latencies"], 0.99) * MS,
        }

    label = f"scoring: features, model and decision, {RATE} requests/s"
    return Measurement("scoring of entities", (
        Line("score_entity_p50", f"{label}, p50", "ms", Better.LESS, (no_more_than(15),)),
        Line("score_entity_p99", f"{label}, p99", "ms", Better.LESS, (no_more_than(60),)),
    ), measure)  # fmt: skip


def swaps(bench: Bench, servers: Scorers) -> Measurement:
    """The alias moves from version to version while clients score. Raises MlstackError for a wrong, failed or unlogged answer."""
    server, moves = servers[MLSTACK], bench.size.moves
    good = [bench.clients[MLSTACK].ask("pipeline", name=MODEL, factor=float(factor)) for factor in range(1, GOOD + 1)]
    expected = {answer["version"]: answer["predictions"][0] for answer in good}
    broken = bench.clients[MLSTACK].ask("broken", name=MODEL)["version"]
    versions = [broken if move % BROKEN_IN == BROKEN_IN - 1 else good[move % GOOD]["version"] for move in range(moves)]

    def measure(_: Bench, stack: Stack, client: Client) -> Values:
        if stack.side != MLSTACK:
            return {}
        for version in expected:  # the alias is at the last of them
            _move(stack, server, version)
        logged, answered = _logged(stack), 0

        def p99(is_going: Callable[[], bool]) -> float:
            nonlocal answered
            latencies: list[float] = []
            while not latencies or is_going():
                latencies += client.ask(
                    "score", url=server.inside, headers=server.headers, body=server.bodies[1], clients=SWAPPING,
                    calls=bench.size.scores, expected=expected,
                )["latencies"]  # fmt: skip
                answered += SWAPPING * (bench.size.scores + 1)
            return percentile(latencies, 0.99)

        calm = p99(lambda: False)
        with ThreadPoolExecutor(1) as thread:
            moving = thread.submit(lambda: [_move(stack, server, version) for version in versions])
            during = p99(lambda: not moving.done())
            moving.result()
        _expect(stack, logged + answered)
        return {"score_swaps": during / calm}

    label = f"scoring: p99 during {moves} exchanges, {moves // BROKEN_IN} of them broken"
    return Measurement("scoring, exchanges", (
        Line("score_swaps", label, "× that without", Better.LESS, (no_more_than(2),)),
    ), measure)  # fmt: skip


def _move(stack: Stack, server: Scorer, version: str) -> None:
    """Moves the alias and waits until the service serves or rejects the version."""
    account, password = _value(stack, "MLFLOW_TRACKING_USERNAME"), _value(stack, "MLFLOW_TRACKING_PASSWORD")
    moved = requests.post(
        f"http://127.0.0.1:{_value(stack, 'MLFLOW_PORT')}/api/2.0/mlflow/registered-models/alias",
        json={"name": MODEL, "alias": "champion", "version": version}, auth=(account, password), timeout=PATIENCE,
    )  # fmt: skip
    moved.raise_for_status()

    def is_decided() -> bool:
        listed = requests.get(urljoin(server.outside, "/models"), headers=server.headers, timeout=PATIENCE).json()
        return any((row["model"], row["version"]) == (MODEL, version) for row in (*listed["served"], *listed["rejected"]))

    wait_until(is_decided, PATIENCE)


def log_after(stack: Stack, server: Scorer) -> None:
    """Restarts our service so that it answers before decisions are committed."""
    set_values(stack.folder, DECISION_LOG="after")
    make(stack, "up")
    _first_answer(server)


def _logged(stack: Stack) -> int:
    """The rows of the decision log; MLflow's own server has none."""
    return int(stack.sql("SELECT count(*) FROM serving.decisions")) if stack.side == MLSTACK else 0


def _expect(stack: Stack, rows: int) -> None:
    """Waits for rows that are committed after their answers. Raises MlstackError if there are not exactly so many."""
    with suppress(TimeoutError):  # reported below
        wait_until(lambda: _logged(stack) >= rows, seconds=30)
    if (logged := _logged(stack)) != rows:
        raise MlstackError(
            f"{logged} decisions are logged instead of {rows}.", "A fast way to lose decisions is none.", "make logs"
        )


def _value(stack: Stack, name: str) -> str:
    return str(dotenv_values(stack.folder / ".env", interpolate=False)[name])


def _first_answer(server: Scorer) -> dict[str, Any]:
    """The first answer with predictions. Raises MlstackError if there is none in time."""
    request = urllib.request.Request(  # noqa: S310
        server.outside, server.bodies[1].encode(), {"Content-Type": "application/json", **server.headers}
    )
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
                predictions: dict[str, Any] = json.load(answer)
                return predictions
        except OSError as error:  # not started yet, the model is being loaded, or the key is not known yet
            if time.monotonic() > deadline:
                raise MlstackError(
                    f"{server.service} does not answer: {error}", "Nothing can be measured.", "docker ps -a"
                ) from error
        time.sleep(0.02)


def _cpu(stack: Stack, server: Scorer) -> float:
    """Seconds of CPU time that a server has used."""
    stats = connect().api.stats(stack.container(server.service), stream=False, one_shot=True)
    return float(stats["cpu_stats"]["cpu_usage"]["total_usage"]) / NANOSECONDS
