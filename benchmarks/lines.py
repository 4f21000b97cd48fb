"""What is measured: each line of the table, its goal, and how its value is measured on a stack and for the raw limit."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any

from benchmarks.figures import Against, Better, Goal, Line, Values, percentile
from benchmarks.stacks import Client, Stack, make_down, make_up
from mlstack.errors import MlstackError

MIB = 2**20
MS = 1000.0
WORKERS = 4  # forked processes that log into one run
SMALL_FILES = "files of 10 KB"


@dataclass(frozen=True)
class Size:
    """The amounts of work. The defaults get less where they are slow and the line is a rate."""

    repetitions: int = 3
    points: int = 10_000
    points_of_defaults: int = 300
    calls: int = 150
    clients: int = 16
    calls_of_each: int = 40
    batches: int = 20
    fits: int = 2
    megabytes: int = 300
    files: int = 1_000
    files_of_defaults: int = 200
    loads: int = 5
    scores: int = 200  # requests of each client
    moves: int = 100  # of an alias
    rest: float = 30.0
    runs: int = 10_000
    growth: tuple[int, ...] = (1_000, 10_000, 100_000)
    keys: int = 20
    searches: int = 5

    def times(self, factor: float) -> "Size":
        """All amounts times this factor, at least two of each; the number of repetitions is kept."""
        kept = {"repetitions", "growth"}
        scaled = {
            size_field.name: type(getattr(self, size_field.name))(max(2, getattr(self, size_field.name) * factor))
            for size_field in fields(self)
            if size_field.name not in kept
        }
        return replace(self, **scaled, growth=tuple(max(2, int(runs * factor)) for runs in self.growth))


QUICK = replace(Size().times(0.02), repetitions=2, megabytes=10, rest=1.0)


@dataclass
class Bench:
    """Both stacks with a client in each, and the password for the raw limits."""

    size: Size
    stacks: dict[str, Stack]
    clients: dict[str, Client]
    password: str

    def of(self, stack: Stack, many: int, few: int) -> int:
        """`many` for us, `few` for the defaults."""
        return few if stack.account is None else many


OfStack = Callable[[Bench, Stack, Client], Values]
OfRaw = Callable[[Bench, Client], Values]


@dataclass(frozen=True)
class Measurement:
    """A measurement that runs once in each repetition, and the lines that it fills."""

    name: str
    lines: tuple[Line, ...]
    of_stack: OfStack
    of_raw: OfRaw | None = None
    once: bool = False


def at_least(factor: float) -> Goal:
    return Goal(Against.DEFAULTS, factor)


def share(part: float) -> Goal:
    return Goal(Against.RAW, part)


def no_more_than(value: float) -> Goal:
    return Goal(Against.VALUE, value)


# ---- logging -----------------------------------------------------------------------------------


def _loop(bench: Bench, stack: Stack, client: Client) -> Values:
    points = bench.of(stack, bench.size.points, bench.size.points_of_defaults)
    answer = client.ask("loop", calls=points)
    _expect(stack, answer["run_id"], points)
    return {"loop": points / answer["total"], "overhead": answer["loop"] / points * 1e6}


def _forked(bench: Bench, stack: Stack, _: Client) -> Values:
    calls = bench.of(stack, bench.size.points, bench.size.points_of_defaults) // WORKERS
    with stack.client() as fresh:  # as in _many
        answer = fresh.ask("forked", workers=WORKERS, calls=calls)
    _expect(stack, answer["run_id"], WORKERS * calls)
    return {"forked": WORKERS * calls / answer["total"]}


def _expect(stack: Stack, run_id: str, points: int) -> None:
    stored = int(stack.sql(f"SELECT count(DISTINCT step) FROM metrics WHERE run_uuid = '{run_id}'"))  # noqa: S608
    if stored != points:
        raise MlstackError(f"{points - stored} of {points} points were lost.", "A fast way to lose points is none.", "make logs")


def _raw_loop(bench: Bench, client: Client) -> Values:
    return {"loop": bench.size.points / client.ask("raw_copy", rows=bench.size.points, password=bench.password)["time"]}


def _latencies(prefix: str, latencies: list[float]) -> Values:
    return {f"{prefix}_p50": median(latencies) * MS, f"{prefix}_p99": percentile(latencies, 0.99) * MS}


def _single(bench: Bench, stack: Stack, client: Client) -> Values:
    return _latencies("single", client.ask("synchronous", clients=1, calls=bench.size.calls)["latencies"])


def _raw_single(bench: Bench, client: Client) -> Values:
    return _latencies("single", client.ask("raw_insert", clients=1, calls=bench.size.calls, password=bench.password)["latencies"])


def _many(bench: Bench, stack: Stack, _: Client) -> Values:
    with stack.client() as fresh:  # it forks, which is safe only before it has threads
        return _latencies(
            "many", fresh.ask("synchronous", clients=bench.size.clients, calls=bench.size.calls_of_each)["latencies"]
        )


def _raw_many(bench: Bench, client: Client) -> Values:
    size = bench.size
    return _latencies(
        "many", client.ask("raw_insert", clients=size.clients, calls=size.calls_of_each, password=bench.password)["latencies"]
    )


def _batches(bench: Bench, stack: Stack, client: Client) -> Values:
    return {"log_batch": median(client.ask("batches", calls=bench.size.batches, size=100)["times"]) * MS}


def _params(bench: Bench, stack: Stack, client: Client) -> Values:
    return {"log_params": median(client.ask("params", calls=bench.size.batches, size=20)["times"]) * MS}


def _autolog(bench: Bench, stack: Stack, client: Client) -> Values:
    return {"autolog": median(client.ask("autolog", fits=bench.size.fits)["times"])}


# ---- files -------------------------------------------------------------------------------------


def _file(prefix: str) -> OfStack:
    def measure(bench: Bench, stack: Stack, client: Client) -> Values:
        answer = client.ask("file", megabytes=bench.size.megabytes)
        return {f"{prefix}_{way}": bench.size.megabytes / answer[way] for way in ("up", "down")}

    return measure


def _files(prefix: str) -> OfStack:
    def measure(bench: Bench, stack: Stack, client: Client) -> Values:
        count = bench.of(stack, bench.size.files, bench.size.files_of_defaults)
        answer = client.ask("files", count=count)
        return {f"{prefix}_{way}": count / answer[way] for way in ("up", "down")}

    return measure


def _on_host(measure: OfStack) -> OfStack:
    def on_host(bench: Bench, stack: Stack, _: Client) -> Values:
        with stack.host_client() as client:
            client.ask("hello")
            return measure(bench, stack, client)

    return on_host


def _raw_file(bench: Bench, client: Client) -> Values:
    answer = client.ask("raw_storage", megabytes=bench.size.megabytes, count=2, password=bench.password)
    disk = client.ask("raw_disk", megabytes=bench.size.megabytes)
    return {
        **{f"file_{way}": bench.size.megabytes / answer[way] for way in ("up", "down")},
        "disk": bench.size.megabytes / disk["time"],
    }


def _raw_files(bench: Bench, client: Client) -> Values:
    answer = client.ask("raw_storage", megabytes=1, count=bench.size.files, password=bench.password)
    return {f"files_{way}": bench.size.files / answer[f"many_{way}"] for way in ("up", "down")}


def _load(bench: Bench, stack: Stack, client: Client) -> Values:
    name = f"benchmark-{time.monotonic_ns()}"
    client.ask("register", name=name)
    return {"load_model": median(client.ask("load", name=name, loads=bench.size.loads)["times"]) * MS}


# ---- the machine ---------------------------------------------------------------------------------


def _start(bench: Bench, stack: Stack, _: Client) -> Values:
    return {"start": stack.restart_mlflow()}


def _up(bench: Bench, stack: Stack, _: Client) -> Values:
    if stack.account is None:
        return {"up": stack.restart_mlflow()}  # compared with the goal: MLflow alone
    make_down(stack)
    return {"up": make_up(stack)}


def transfers(
    prefix: str, where: str, file: tuple[Goal, ...], back: tuple[Goal, ...], small: tuple[Goal, ...]
) -> tuple[Line, ...]:
    """The four lines for files of one place."""
    return (
        Line(f"{prefix}file_up", f"artifact of 300 MB up, from {where}", "MB/s", Better.MORE, file),
        Line(f"{prefix}file_down", f"artifact of 300 MB down, to {where}", "MB/s", Better.MORE, back),
        Line(f"{prefix}files_up", f"1,000 {SMALL_FILES} up, from {where}", "files/s", Better.MORE, small),
        Line(f"{prefix}files_down", f"1,000 {SMALL_FILES} down, to {where}", "files/s", Better.MORE, small),
    )


NOTEBOOK = transfers("", "the notebook", (share(0.9),), (share(0.8),), (at_least(5),))
HOST = transfers("host_", "the host", (at_least(1.5),), (at_least(1.5),), (at_least(1.5),))

DISK = Line("disk", "300 MB written and synced: the disk alone", "MB/s", Better.MORE)
BATCH = Line("log_batch", "log_batch of 100 metrics, stored", "ms", Better.LESS, (at_least(2),))
AUTOLOG = Line("autolog", "scikit-learn fit with autologging, with its model", "s", Better.LESS, (at_least(2),))

IN_CLIENTS = (
    Measurement(
        "loop",
        (
            Line("loop", "log_metric in a loop, flushed at its end", "calls/s", Better.MORE, (at_least(50),)),
            Line("overhead", "what one such call takes of the loop", "µs", Better.LESS),
        ),
        _loop,
        _raw_loop,
    ),
    Measurement(
        "forked",
        (Line("forked", f"log_metric in a loop in {WORKERS} forked processes at once", "calls/s", Better.MORE, (at_least(50),)),),
        _forked,
    ),
    Measurement(
        "single",
        (
            Line("single_p50", "synchronous log_metric, 1 client, p50", "ms", Better.LESS, (at_least(5),)),
            Line("single_p99", "synchronous log_metric, 1 client, p99", "ms", Better.LESS, (at_least(5),)),
        ),
        _single,
        _raw_single,
    ),
    Measurement(
        "many",
        (
            Line("many_p50", "synchronous log_metric, 16 client processes, p50", "ms", Better.LESS, (at_least(5),)),
            Line("many_p99", "synchronous log_metric, 16 client processes, p99", "ms", Better.LESS, (at_least(5),)),
        ),
        _many,
        _raw_many,
    ),
    Measurement("log_batch", (BATCH,), _batches),
    Measurement("log_params", (Line("log_params", "log_params of 20, stored", "ms", Better.LESS, (at_least(2),)),), _params),
    Measurement("autolog", (AUTOLOG,), _autolog),
    Measurement("file", (*NOTEBOOK[:2], DISK), _file("file"), _raw_file),
    Measurement("files", NOTEBOOK[2:], _files("files"), _raw_files),
    Measurement("host_file", HOST[:2], _on_host(_file("host_file"))),
    Measurement("host_files", HOST[2:], _on_host(_files("host_files"))),
    Measurement("load_model", (Line("load_model", "pyfunc.load_model by alias", "ms", Better.LESS, (at_least(2),)),), _load),
)  # fmt: skip

OF_MACHINE = (
    Measurement(
        "start", (Line("start", "docker start of MLflow to its first answer", "s", Better.LESS, (at_least(3),)),), _start
    ),
    Measurement(
        "up", (Line("up", "warm make up (defaults: docker start of MLflow alone)", "s", Better.LESS, (at_least(2),)),), _up
    ),
)

MEMORY = (
    Line("memory", "MLflow's memory at rest", "MiB", Better.LESS, (no_more_than(350),)),
    Line("memory_all", "the whole stack's memory at rest (defaults: without Jupyter)", "MiB", Better.LESS, (no_more_than(900),)),
)


def memory(stack: Stack) -> Values:
    """The memory of MLflow and of all services."""
    held = {service: size for service, size in stack.memory().items() if service != "client"}
    return {"memory": held["mlflow"] / MIB, "memory_all": sum(held.values()) / MIB}


FRAME = Line(
    "frame",
    "all of 10,000 runs as a DataFrame (defaults: mlflow.search_runs)",
    "s",
    Better.LESS,
    (no_more_than(1), at_least(20)),
)
# jupyter/scipy-notebook alone is 4.19 GB unpacked (Unidata/science-gateway#867); MLflow, Postgres and MinIO come on top of it.
IMAGES = Line("images", "all images, what they share counted once", "MB", Better.LESS, (no_more_than(4190),))


def chosen(names: Iterable[str], everything: tuple[Measurement, ...]) -> list[Measurement]:
    """The named measurements; without names, all."""
    wanted = set(names)
    return [measurement for measurement in everything if not wanted or measurement.name in wanted]


def described(size: Size) -> dict[str, Any]:
    """The amounts, for the record."""
    return {size_field.name: getattr(size, size_field.name) for size_field in fields(size)}
