"""Logs metric points in every kind of process, and counts what is stored as soon as the process has ended.

It runs in the notebooks' container: without arguments all kinds, and prints a line for each.
"""

import asyncio
import concurrent.futures
import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import mlflow

POINTS = 20
WORKERS = 2


def log(run: str, worker: int = 0) -> None:
    client = mlflow.MlflowClient()
    for step in range(POINTS):
        client.log_metric(run, "loss", 0.5, step=worker * POINTS + step)


def log_and_sleep(run: str, worker: int, logged: Any) -> None:
    log(run, worker)
    logged.set()
    time.sleep(600)


def log_and_end_by_c_code(run: str, worker: int, logged: Any) -> None:
    """As in a worker of PyTorch's DataLoader: C code ends it, with status 15 here."""
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGTERM, libc._exit)
    log_and_sleep(run, worker, logged)


def nest(run: str, worker: int) -> None:
    pool(run, "fork", worker * 10)


def processes(run: str, method: str) -> None:
    context = multiprocessing.get_context(method)
    children = [context.Process(target=log, args=(run, worker)) for worker in range(WORKERS)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0


def terminated(run: str, method: str, work: Callable[..., None] = log_and_sleep, code: int = -signal.SIGTERM) -> None:
    context = multiprocessing.get_context(method)
    logged = [context.Event() for _ in range(WORKERS)]
    children = [context.Process(target=work, args=(run, worker, logged[worker])) for worker in range(WORKERS)]
    for child in children:
        child.start()
    for child, event in zip(children, logged, strict=True):
        assert event.wait(120)
        child.terminate()
    for child in children:
        child.join()
        assert child.exitcode == code, child.exitcode


def pool(run: str, method: str, first: int = 0) -> None:
    with multiprocessing.get_context(method).Pool(WORKERS) as workers:  # which terminates them
        workers.starmap(log, [(run, first + worker) for worker in range(WORKERS)], chunksize=1)


def executor(run: str, method: str) -> None:
    with concurrent.futures.ProcessPoolExecutor(WORKERS, multiprocessing.get_context(method)) as workers:
        list(workers.map(log, [run] * WORKERS, range(WORKERS)))


def nested(run: str) -> None:
    with concurrent.futures.ProcessPoolExecutor(WORKERS, multiprocessing.get_context("fork")) as workers:
        list(workers.map(nest, [run] * WORKERS, range(WORKERS)))


def joblib_(run: str, backend: str) -> None:
    import joblib

    joblib.Parallel(WORKERS, backend=backend)(joblib.delayed(log)(run, worker) for worker in range(WORKERS))
    if backend == "loky":
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown()


def bare_fork(run: str, end: Callable[[int], None]) -> None:
    for worker in range(WORKERS):
        child = os.fork()
        if not child:
            log(run, worker)
            end(0)
        os.waitpid(child, 0)


def threads(run: str) -> None:
    workers = [threading.Thread(target=log, args=(run, worker)) for worker in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def tasks(run: str) -> None:
    async def logs(worker: int) -> None:
        log(run, worker)

    async def main() -> None:
        await asyncio.gather(*(logs(worker) for worker in range(WORKERS)))

    asyncio.run(main())


def thread_of_child(run: str) -> None:
    def work() -> None:
        for worker in range(WORKERS):
            threading.Timer(0.2, log, (run, worker)).start()

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()


def program(run: str, end: str) -> None:
    """Separate programs, in parallel."""
    children = [subprocess.Popen([sys.executable, __file__, run, str(worker), end]) for worker in range(WORKERS)]
    assert [child.wait(120) for child in children] == [-signal.SIGTERM if end == "SIGTERM" else 0] * WORKERS


KINDS: dict[str, Callable[[str], None]] = {
    "program that ends by itself": lambda run: program(run, "return"),
    "program that calls `os._exit`": lambda run: program(run, "os._exit"),
    "program that gets SIGTERM": lambda run: program(run, "SIGTERM"),
    "threads": threads,
    "asyncio tasks": tasks,
    "`os.fork`, ended by `os._exit`": lambda run: bare_fork(run, os._exit),
    "`os.fork`, ended by `sys.exit`": lambda run: bare_fork(run, sys.exit),
    "`Process`, fork": lambda run: processes(run, "fork"),
    "`Process`, spawn": lambda run: processes(run, "spawn"),
    "`Process`, forkserver": lambda run: processes(run, "forkserver"),
    "`Process` that gets SIGTERM": lambda run: terminated(run, "fork"),
    "thread that outlives the function of its `Process`": thread_of_child,
    "`Pool`": lambda run: pool(run, "fork"),
    "`ProcessPoolExecutor`": lambda run: executor(run, "fork"),
    "`Pool` in a `ProcessPoolExecutor`": nested,
    "worker of PyTorch's `DataLoader`, ended by its C code": lambda run: terminated(
        run, "fork", log_and_end_by_c_code, signal.SIGTERM
    ),
    "joblib, loky": lambda run: joblib_(run, "loky"),
    "joblib, multiprocessing": lambda run: joblib_(run, "multiprocessing"),
    "joblib, threading": lambda run: joblib_(run, "threading"),
}


def main() -> None:
    client = mlflow.MlflowClient()
    for kind, work in KINDS.items():
        run = client.create_run("0").info.run_id
        client.log_metric(run, "other", 1)  # the parent has points and a thread of its own
        work(run)
        wanted = WORKERS * POINTS * (WORKERS if work is nested else 1)
        stored = len({point.step for point in client.get_metric_history(run, "loss")})
        print("STORED", json.dumps([kind, stored, wanted]), flush=True)  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        log(sys.argv[1], int(sys.argv[2]))
        if sys.argv[3] == "os._exit":
            os._exit(0)
        if sys.argv[3] == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
