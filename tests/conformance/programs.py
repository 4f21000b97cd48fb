"""Small programs as users write them, run with our client and with MLflow's own: `python programs.py NAME`.

The last line that is printed is JSON: what was returned and raised, and which runs to look at. Nothing of this project is
imported. It is a file of its own because multiprocessing's spawn imports it again.
"""

import asyncio
import concurrent.futures
import json
import math
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from decimal import Decimal
from typing import Any

EXPERIMENT = "programs"  # an account deletes runs of its own experiments only
POINTS = 20  # of each worker
WORKERS = 2
BEFORE = 5  # right points before and after a wrong one


def report(**values: Any) -> None:
    print(json.dumps(values), flush=True)  # noqa: T201


def outcome(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call returned or raised. An exception counts as MlflowException or as the nearest of Python's own."""
    try:
        result = call()
    except Exception as error:  # noqa: BLE001 (any exception is a result to compare)
        names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
        is_mlflows = any(kind.__name__ == "MlflowException" for kind in type(error).__mro__)
        return {"raised": "MlflowException" if is_mlflows else names[0], "error_code": getattr(error, "error_code", None)}
    return {"returned": result if isinstance(result, str | int | float | bool | None) else type(result).__name__}


# ---- values: right and wrong ones, in one process --------------------------------------------------

HUGE = 10**400
METRICS: dict[str, dict[str, Any]] = {
    **{f"value {value!r:.20}": {"value": value} for value in (
        1, 0, True, 1.5, "1", " 2 ", "x", "", None, math.nan, math.inf, -math.inf, "nan", HUGE, Decimal("1.5"), 1j, [1], b"1",
        5e-324,
    )},
    **{f"step {step!r:.25}": {"step": step} for step in (
        0, -1, 1.0, 1.5, True, "1", "x", 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, math.nan, math.inf, [1], HUGE,
    )},
    **{f"timestamp {when!r:.25}": {"timestamp": when} for when in (
        0, 1, -1, 1.0, 1.5, True, "1", "x", 2**63 - 1, 2**63, math.nan, [1], HUGE,
    )},
    **{f"key {key!r:.25}": {"key": key} for key in (
        "a b", "a!", "", None, 1, "a/../b", "é", "/a", "a//b", "./a", "a\0b", "\ud800", "a:b", "a.b-c_d/e", b"a",
    )},
    "key of 250": {"key": "x" * 250},
    "key of 251": {"key": "x" * 251},
}  # fmt: skip


def values() -> None:
    """A wrong point among valid ones, each case in a run of its own: the valid ones must be stored."""
    import mlflow

    cases = {}
    for name, wrong in METRICS.items():
        with Run() as run:
            for step in range(BEFORE):
                mlflow.log_metric("right", step, step=step)
            run.record("call", lambda wrong=wrong: mlflow.log_metric(**{"key": "wrong", "value": 1.0, **wrong}))
            for step in range(BEFORE, 2 * BEFORE):
                mlflow.log_metric("right", step, step=step)
        cases[name] = run.outcomes
    report(cases=cases)


class Run:
    """A run, and what its calls returned and raised. Its end is an outcome as well."""

    def __enter__(self) -> "Run":
        import mlflow

        self.outcomes: dict[str, Any] = {"run_id": mlflow.start_run().info.run_id}
        return self

    def record(self, name: str, call: Callable[[], Any]) -> None:
        self.outcomes[name] = outcome(call)

    def __exit__(self, *_: object) -> None:
        import mlflow

        self.record("end", mlflow.end_run)
        while mlflow.active_run():
            outcome(mlflow.end_run)


def calls() -> None:
    """What every logging call returns and raises."""
    import mlflow
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client = MlflowClient()
    now = 1_000

    def points(count: int) -> list[Any]:
        return [Metric("many", float(step), now, step) for step in range(count)]

    def id_() -> str:
        run = mlflow.active_run()
        assert run
        return str(run.info.run_id)

    def found_by_search() -> float:
        table = mlflow.search_runs(search_all_experiments=True, filter_string=f"run_id = '{id_()}'")
        return float(table["metrics.a"][0])

    tried: dict[str, list[Callable[[], Any]]] = {
        "log_param": [lambda: mlflow.log_param("p", 1), lambda: mlflow.log_param("p", 1)],
        "log_param changed": [lambda: mlflow.log_param("p", 1), lambda: mlflow.log_param("p", 2)],
        "log_param None": [lambda: mlflow.log_param("p", None)],
        "log_param empty": [lambda: mlflow.log_param("p", "")],
        "log_param list": [lambda: mlflow.log_param("p", [1, 2])],
        "log_param long": [lambda: mlflow.log_param("p", "x" * 6001)],
        "log_param wrong key": [lambda: mlflow.log_param("a!", 1)],
        "log_param NUL": [lambda: mlflow.log_param("p", "a\0b")],
        "log_param surrogate": [lambda: mlflow.log_param("p", "\ud800")],
        "log_params": [lambda: mlflow.log_params({"a": 1, "b": "x"})],
        "log_params one wrong": [lambda: mlflow.log_params({"a": 1, "b!": "x"})],
        "log_params changed": [lambda: mlflow.log_params({"a": 1}), lambda: mlflow.log_params({"b": 1, "a": 2})],
        "log_params of 101": [lambda: mlflow.log_params({f"p{n}": n for n in range(101)})],
        "log_param asynchronous": [lambda: mlflow.log_param("p", 1, synchronous=False).wait()],
        "log_param synchronous": [lambda: mlflow.log_param("p", 1, synchronous=True)],
        "set_tag": [lambda: mlflow.set_tag("t", 1), lambda: mlflow.set_tag("t", 2)],
        "set_tag None": [lambda: mlflow.set_tag("t", None)],
        "set_tag long": [lambda: mlflow.set_tag("t", "x" * 8001)],
        "set_tags": [lambda: mlflow.set_tags({"a": 1, "b": 2})],
        "delete_tag": [lambda: mlflow.set_tag("t", 1), lambda: mlflow.delete_tag("t"), lambda: mlflow.delete_tag("t")],
        "log_metrics": [lambda: mlflow.log_metrics({"a": 1, "b": 2.5}, step=3)],
        "log_metrics one wrong": [lambda: mlflow.log_metrics({"a": 1, "b!": 2.5}, step=3)],
        "log_metrics one of another type": [lambda: mlflow.log_metrics({"a": 1, "b": "x"}, step=3)],
        "log_metrics empty": [lambda: mlflow.log_metrics({})],
        "log_metric synchronous": [lambda: mlflow.log_metric("a", 1, synchronous=True)],
        "log_metric asynchronous": [lambda: mlflow.log_metric("a", 1, synchronous=False).wait()],
        "log_batch": [lambda: client.log_batch(id_(), points(3), [Param("p", "1")], [RunTag("t", "1")])],
        "log_batch of 1000": [lambda: client.log_batch(id_(), points(1000))],
        "log_batch of 1001": [lambda: client.log_batch(id_(), points(1001))],
        "log_batch of 2500": [lambda: client.log_batch(id_(), points(2500))],
        "log_batch one wrong": [lambda: client.log_batch(id_(), [*points(3), Metric("a!", 1.0, now, 0)])],
        "log_batch wrong step": [lambda: client.log_batch(id_(), [*points(3), Metric("a", 1.0, now, 1.5)])],
        "log_batch param changed": [
            lambda: client.log_batch(id_(), params=[Param("p", "1")]),
            lambda: client.log_batch(id_(), points(3), [Param("p", "2")]),
        ],
        "log_batch synchronous": [lambda: client.log_batch(id_(), points(3), synchronous=True)],
        "client.log_metric": [lambda: client.log_metric(id_(), "a", 1)],
        "client.log_param": [lambda: client.log_param(id_(), "p", 1)],
        "client.set_tag": [lambda: client.set_tag(id_(), "t", 1)],
        "unknown run": [lambda: client.log_param("0" * 32, "p", 1)],
        "flush": [lambda: mlflow.log_metric("a", 1), mlflow.flush_async_logging],
        "read after write": [
            lambda: mlflow.log_metric("a", 1),
            lambda: client.get_run(id_()).data.metrics["a"],
            lambda: mlflow.log_metric("a", 2, step=1),
            lambda: len(client.get_metric_history(id_(), "a")),
            lambda: mlflow.log_metric("a", 3, step=2),
            found_by_search,
        ],
        "wrong run status": [lambda: client.set_terminated(id_(), "NONSENSE")],
    }  # fmt: skip
    cases = {}
    for name, steps in tried.items():
        with Run() as run:
            for number, step in enumerate(steps):
                run.record(f"call {number}", step)
        cases[name] = run.outcomes
    report(cases=cases)


def runs() -> None:
    """What happens to a run when another run fails, and to points of a run that is deleted or has ended."""
    import mlflow
    from mlflow import MlflowClient

    client = MlflowClient()
    cases = {}

    def case(name: str, run_id: str, *steps: Callable[[], Any]) -> None:
        cases[name] = {"run_id": run_id} | {f"call {number}": outcome(step) for number, step in enumerate(steps)}

    experiment = mlflow.set_experiment(EXPERIMENT).experiment_id

    def new() -> str:
        return str(client.create_run(experiment).info.run_id)

    deleted, other = new(), new()
    client.delete_run(deleted)
    outcome(lambda: client.log_metric(deleted, "a", 1))  # raises here, or later
    case(
        "another run fails", other,
        lambda: mlflow.start_run(run_id=other).info.run_id == other,
        lambda: mlflow.log_metric("right", 1) and None,
        mlflow.end_run,
        lambda: client.get_run(other).info.status,
    )  # fmt: skip
    outcome(mlflow.flush_async_logging)
    ended = new()
    client.set_terminated(ended)
    case(
        "a run that has ended",
        ended,
        lambda: client.log_metric(ended, "late", 1) and None,
        lambda: client.get_run(ended).data.metrics,
    )
    failed = new()

    def raising() -> None:
        with mlflow.start_run(run_id=failed):
            mlflow.log_metric("right", 1)
            raise KeyError("of the user")

    case("the user's error", failed, raising, lambda: client.get_run(failed).info.status)
    parent = mlflow.start_run().info.run_id
    child = mlflow.start_run(nested=True).info.run_id
    mlflow.log_metric("right", 1)
    mlflow.end_run()
    mlflow.log_metric("right", 2)
    mlflow.end_run()
    case("a nested run: the outer", parent, lambda: client.get_run(parent).data.metrics.get("right"))
    case("a nested run: the inner", child, lambda: client.get_run(child).data.metrics.get("right"))
    report(cases=cases)


# ---- artifacts: names ------------------------------------------------------------------------------

NAMES = (
    "plain.txt", "a#b", "a?b", "a b", " a", "a ", "a%20b", "a%2fb", "a%b", "C:\\x", "C:x", "a\\b", "é", "日本", "a+b&c=d",
    "a;b", "a:b", "a*b", "~", "~a", ".hidden", "a..b", "..a", "...", "x" * 200, "a\nb", "a\tb", "'", '"', "<a>", "{a}",
    "a|b", "a@b", "$a", "a,b", "-a", "🙂",
)  # fmt: skip
PATHS = (
    None, "d", "d/e", "./d", "d/", "/d", "../d", "d/../e", "d//e", ".", "", "d#e", "d?e", "d e", "d%20e", "é", "C:\\d", "a\\b",
    "..", "d/.",
)  # fmt: skip


def artifacts() -> None:
    """Uploads, lists and downloads files with odd names."""
    from mlflow import MlflowClient

    client = MlflowClient()

    def listed(run_id: str, path: str | None = None) -> list[str]:
        names = []
        for item in client.list_artifacts(run_id, path):
            names.append(f"{item.path}{'/' if item.is_dir else f' {item.file_size}'}")
            if item.is_dir and len(names) < 50:
                names += listed(run_id, item.path)
        return sorted(names)

    def back(run_id: str, path: str | None) -> str:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(client.download_artifacts(run_id, path or "", folder))
            files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
            return ", ".join(f"{file.relative_to(folder)}={file.read_text()}" for file in files)

    cases = {}

    def case(name: str, put: Callable[[str], Any], path: str | None) -> None:
        with Run() as run:
            run_id = run.outcomes["run_id"]
            run.record("put", lambda: put(run_id))
            run.record("list", lambda: json.dumps(listed(run_id)))
            run.record("get", lambda: back(run_id, path))
            run.record("get all", lambda: back(run_id, None))
        cases[name] = run.outcomes

    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, name)
            file.write_text(f"content of {name[:9]}")
            case(f"file {name[:30]!r}", lambda run_id, file=file: client.log_artifact(run_id, str(file)), name)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "f.txt")
        file.write_text("content")
        for path in PATHS:
            inside = f"{path}/f.txt" if path else "f.txt"
            case(f"path {path!r}", lambda run_id, path=path: client.log_artifact(run_id, str(file), path), inside)
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            below = pathlib.Path(folder, "sub")
            below.mkdir(exist_ok=True)
            (below / name).write_text(f"content of {name[:9]}")
        pathlib.Path(folder, "empty").mkdir()
        case("folder", lambda run_id: client.log_artifacts(run_id, folder), "sub")
        case("folder below a path", lambda run_id: client.log_artifacts(run_id, folder, "top"), "top/sub")
    for name in ("t.txt", "d/t.txt", "a#b.txt", "a b.txt", "../t.txt", "/t.txt", "d//t.txt", "./t.txt", ""):
        case(f"text {name!r}", lambda run_id, name=name: client.log_text(run_id, "content", name), name)
        case(f"dict {name!r}", lambda run_id, name=name: client.log_dict(run_id, {"a": 1}, f"{name}.json"), f"{name}.json")
    case("nothing", lambda run_id: None, "missing")
    case("a missing file", lambda run_id: client.log_artifact(run_id, "/nowhere"), "nowhere")
    case("a folder as a file", lambda run_id: client.log_artifact(run_id, tempfile.gettempdir()[:1] + "etc/pip"), "pip")
    report(cases=cases)


# ---- processes: where points are logged --------------------------------------------------------------


def work(run_id: str, worker: int) -> int:
    """Logs the points of one worker."""
    import mlflow

    for step in range(POINTS):
        mlflow.log_metric(f"w{worker}", step, step=step, run_id=run_id)
    return worker


def work_then(run_id: str, worker: int, end: str) -> None:
    work(run_id, worker)
    if end == "exit":
        os._exit(0)
    if end == "error":
        raise KeyError("of the worker")
    if end == "wait":
        pathlib.Path(f"/tmp/{run_id}.{worker}").touch()  # noqa: S108 (in a container of its own)
        time.sleep(60)


def own_run(worker: int) -> str:
    """A run of the worker's own, begun and ended in it."""
    import mlflow

    with mlflow.start_run() as run:
        work(run.info.run_id, worker)
    return str(run.info.run_id)


def nested(run_id: str, worker: int) -> None:
    processes(run_id, "fork")


def processes(run_id: str, method: str) -> None:
    context = multiprocessing.get_context(method)
    started = [context.Process(target=work, args=(run_id, worker)) for worker in range(WORKERS)]
    for process in started:
        process.start()
    for process in started:
        process.join()


def terminated(run_id: str, method: str) -> None:
    """Workers that have logged everything and are ended by SIGTERM."""
    context = multiprocessing.get_context(method)
    started = [context.Process(target=work_then, args=(run_id, worker, "wait")) for worker in range(WORKERS)]
    for process in started:
        process.start()
    marks = [pathlib.Path(f"/tmp/{run_id}.{worker}") for worker in range(WORKERS)]  # noqa: S108
    while not all(mark.exists() for mark in marks):
        time.sleep(0.02)
    for process in started:
        process.terminate()
        process.join()


def ending(run_id: str, end: str) -> None:
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=work_then, args=(run_id, worker, end)) for worker in range(WORKERS)]
    for process in started:
        process.start()
    for process in started:
        process.join()


def pool(run_id: str, method: str) -> None:
    with multiprocessing.get_context(method).Pool(WORKERS) as workers:
        workers.starmap(work, [(run_id, worker) for worker in range(WORKERS)])


def executor(run_id: str, method: str) -> None:
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context) as workers:
        list(workers.map(work, [run_id] * WORKERS, range(WORKERS)))


def threads(run_id: str) -> None:
    started = [threading.Thread(target=work, args=(run_id, worker)) for worker in range(WORKERS)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def thread_pool(run_id: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(work, [run_id] * WORKERS, range(WORKERS)))


def daemon_thread(run_id: str) -> None:
    thread = threading.Thread(target=work, args=(run_id, 0), daemon=True)
    thread.start()
    thread.join()


def asynchronous(run_id: str) -> None:
    async def main() -> None:
        await asyncio.gather(*(asyncio.to_thread(work, run_id, worker) for worker in range(WORKERS)))

    asyncio.run(main())


def joblib(run_id: str) -> None:
    from joblib import Parallel, delayed

    Parallel(n_jobs=2)(delayed(work)(run_id, worker) for worker in range(WORKERS))


def raw_fork(run_id: str) -> None:
    for worker in range(WORKERS):
        child = os.fork()
        if child == 0:
            work(run_id, worker)
            os._exit(0)
        os.waitpid(child, 0)


def fork_then_log(run_id: str) -> None:
    """The parent logs before, during and after."""
    work(run_id, 10)
    child = os.fork()
    if child == 0:
        work(run_id, 0)
        os._exit(0)
    work(run_id, 11)
    os.waitpid(child, 0)
    work(run_id, 12)


def nested_pools(run_id: str) -> None:
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as outer:
        outer.submit(nested, run_id, 0).result()


def subprocesses(run_id: str) -> None:
    for worker in range(2):
        subprocess.run([sys.executable, __file__, "worker", run_id, str(worker)], check=True)


def own_runs(method: str) -> list[str]:
    with concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context(method)) as workers:
        return list(workers.map(own_run, range(WORKERS)))


def signalled(run_id: str, number: int) -> None:
    work(run_id, 0)
    os.kill(os.getpid(), number)
    time.sleep(10)


def failing(run_id: str) -> None:
    work(run_id, 0)
    raise KeyError("of the program")


KINDS: dict[str, Callable[[str], Any]] = {
    "the main process": lambda run_id: work(run_id, 0),
    "threads": threads,
    "a daemon thread": daemon_thread,
    "ThreadPoolExecutor": thread_pool,
    "asyncio.to_thread": asynchronous,
    "Process by fork": lambda run_id: processes(run_id, "fork"),
    "Process by spawn": lambda run_id: processes(run_id, "spawn"),
    "Process by forkserver": lambda run_id: processes(run_id, "forkserver"),
    "Pool by fork": lambda run_id: pool(run_id, "fork"),
    "Pool by spawn": lambda run_id: pool(run_id, "spawn"),
    "ProcessPoolExecutor by fork": lambda run_id: executor(run_id, "fork"),
    "ProcessPoolExecutor by spawn": lambda run_id: executor(run_id, "spawn"),
    "joblib": joblib,
    "os.fork and os._exit": raw_fork,
    "os.fork while the parent logs": fork_then_log,
    "a pool in a pool": nested_pools,
    "subprocesses": subprocesses,
    "workers that end by os._exit": lambda run_id: ending(run_id, "exit"),
    "workers that raise": lambda run_id: ending(run_id, "error"),
    "workers ended by SIGTERM": lambda run_id: terminated(run_id, "fork"),
    "os._exit": lambda run_id: (work(run_id, 0), os._exit(3)),
    "sys.exit": lambda run_id: (work(run_id, 0), sys.exit(4)),
    "an error of the program": failing,
    "SIGTERM": lambda run_id: signalled(run_id, signal.SIGTERM),
    "SIGINT": lambda run_id: signalled(run_id, signal.SIGINT),
    "SIGHUP": lambda run_id: signalled(run_id, signal.SIGHUP),
}


def process(kind: str) -> None:
    """One kind of process, inside a run that ends when it is over."""
    import mlflow

    with mlflow.start_run() as run:
        report(run_id=run.info.run_id)
        KINDS[kind](run.info.run_id)


def kinds() -> None:
    report(kinds=list(KINDS))


def worker(run_id: str, number: str) -> None:
    work(run_id, int(number))


def runs_of_workers(method: str) -> None:
    """Each worker has a run of its own."""
    run_ids = own_runs(method)
    import mlflow

    client = mlflow.MlflowClient()
    report(
        cases={
            f"run {number}": {"run_id": run_id, "status": client.get_run(run_id).info.status}
            for number, run_id in enumerate(run_ids)
        }
    )


PROGRAMS: dict[str, Callable[..., None]] = {
    program.__name__: program for program in (values, calls, runs, artifacts, process, kinds, worker, runs_of_workers)
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ["MLFLOW_EXPERIMENT_NAME"] = EXPERIMENT
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
