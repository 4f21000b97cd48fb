"""The client's side: a program that runs where a client runs (a container, the host) and does one thing at a time, timed.

It is sent to a Python interpreter as text and imports nothing of this project, so that the same program measures both stacks. A
request is a line of JSON on its input: the name of a task and its arguments. The answer is a line on its output: what was
measured, in seconds unless a name says otherwise, or the error. MLflow's own output goes to the other stream.
"""

import contextlib
import hashlib
import http.client
import io
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
import urllib.parse
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

EXPERIMENT = "benchmark"
MEGABYTE = 1_000_000
SMALL_FILE = 10_000  # bytes
SAME = 1e-9  # between predictions in the notebook and a server's
THREADS = 8  # of the raw transfers of many files
barrier: Any = None  # of forked clients, which inherit it


def hello() -> dict[str, Any]:
    """The server's version, and the client's class (whose module shows whether a plugin is used)."""
    import mlflow

    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run():
        mlflow.log_metric("warm", 1.0)
    store = mlflow.MlflowClient()._tracking_client.store
    return {"mlflow": mlflow.__version__, "store": type(store).__module__, "python": sys.version.split()[0]}


# ---- logging -----------------------------------------------------------------------------------


def loop(calls: int) -> dict[str, Any]:
    """log_metric in a loop and nothing else; `total` ends when the run has ended, with every point stored."""
    import mlflow

    started = time.perf_counter()
    with mlflow.start_run() as run:
        begun = time.perf_counter()
        for step in range(calls):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
        looped = time.perf_counter() - begun
    return {"run_id": run.info.run_id, "loop": looped, "total": time.perf_counter() - started}


def forked(workers: int, calls: int) -> dict[str, Any]:
    """log_metric in a loop in each forked process, all into one run; `total` ends when the run has ended."""
    import mlflow

    context = multiprocessing.get_context("fork")
    started = time.perf_counter()
    with mlflow.start_run() as run:
        children = [context.Process(target=_logs, args=(run.info.run_id, worker * calls, calls)) for worker in range(workers)]
        for child in children:
            child.start()
        for child in children:
            child.join()
    return {"run_id": run.info.run_id, "total": time.perf_counter() - started}


def _logs(run_id: str, first: int, calls: int) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    for step in range(first, first + calls):
        client.log_metric(run_id, "loss", 1 / (step + 1), step=step)


def synchronous(clients: int, calls: int) -> dict[str, Any]:
    """Latencies of log_metric(synchronous=True) from this many processes at once, each with a run of its own."""
    global barrier  # noqa: PLW0603 (what forked processes inherit)
    import mlflow  # noqa: F401 (once, before the fork)

    if clients == 1:
        return {"latencies": _latencies(calls)}
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(clients)
    with context.Pool(clients) as pool:
        lists = pool.map(_latencies, [calls] * clients, chunksize=1)
    return {"latencies": [seconds for latencies in lists for seconds in latencies]}


def _latencies(calls: int) -> list[float]:
    import mlflow

    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run():
        mlflow.log_metric("loss", 0.0, step=0, synchronous=True)
        if barrier:
            barrier.wait(300)
        return [_timed(mlflow.log_metric, "loss", 1.0, step=step, synchronous=True)[0] for step in range(1, calls + 1)]


def batches(calls: int, size: int) -> dict[str, Any]:
    """log_batch of this many metrics, stored when the call returns."""
    import mlflow
    from mlflow.entities import Metric

    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        points = [[Metric(f"m{key}", key / 7, 0, step) for key in range(size)] for step in range(calls + 1)]
        client.log_batch(run.info.run_id, metrics=points[0], synchronous=True)
        times = [_timed(client.log_batch, run.info.run_id, metrics=batch, synchronous=True)[0] for batch in points[1:]]
    return {"times": times}


def params(calls: int, size: int) -> dict[str, Any]:
    """log_params of this many parameters."""
    import mlflow

    with mlflow.start_run():
        groups = [{f"p{call}_{key}": key for key in range(size)} for call in range(calls + 1)]
        mlflow.log_params(groups[0])
        return {"times": [_timed(mlflow.log_params, group)[0] for group in groups[1:]]}


def autolog(fits: int) -> dict[str, Any]:
    """A scikit-learn fit with autologging at its defaults: parameters, metrics, the model. The first is not counted."""
    import mlflow
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    features, target = load_iris(return_X_y=True)

    def fit() -> None:
        with mlflow.start_run():
            LogisticRegression(max_iter=500).fit(features, target)

    mlflow.sklearn.autolog(silent=True)
    try:
        return {"times": [_timed(fit)[0] for _ in range(fits + 1)][1:]}
    finally:
        mlflow.sklearn.autolog(disable=True)


# ---- files -------------------------------------------------------------------------------------


def file(megabytes: int) -> dict[str, Any]:
    """Uploads and downloads one file, which must be equal byte for byte."""
    import mlflow

    with _folder() as folder:
        path = folder / "model.bin"
        digest = _write(path, megabytes)
        with mlflow.start_run() as run:
            up, _ = _timed(mlflow.log_artifact, str(path), "large")
        path.unlink()
        down, content = _timed(
            mlflow.artifacts.download_artifacts, run_id=run.info.run_id, artifact_path="large/model.bin", dst_path=str(folder)
        )
        assert _digest(Path(content)) == digest, "the downloaded file differs"
    return {"up": up, "down": down}


def files(count: int) -> dict[str, Any]:
    """Uploads and downloads many small files, which must be equal byte for byte."""
    import mlflow

    with _folder() as folder:
        expected = _write_many(folder / "out", count)
        with mlflow.start_run() as run:
            up, _ = _timed(mlflow.log_artifacts, str(folder / "out"), "small")
        down, contents = _timed(
            mlflow.artifacts.download_artifacts, run_id=run.info.run_id, artifact_path="small", dst_path=str(folder / "back")
        )
        assert {path.name: path.read_bytes() for path in Path(contents).iterdir()} == expected, "the downloaded files differ"
    return {"up": up, "down": down}


def register(name: str) -> dict[str, Any]:
    """A scikit-learn model with an alias, to be loaded later."""
    import mlflow
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    features, target = load_iris(return_X_y=True)
    with mlflow.start_run():
        logged = mlflow.sklearn.log_model(
            LogisticRegression(max_iter=500).fit(features, target), name="model", registered_model_name=name
        )
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", logged.registered_model_version)
    return {}


def load(name: str, loads: int) -> dict[str, Any]:
    """The model by its alias, ready to predict. The first time, with its imports, is not counted."""
    import mlflow

    return {"times": [_timed(mlflow.pyfunc.load_model, f"models:/{name}@champion")[0] for _ in range(loads + 1)][1:]}


# ---- scoring -----------------------------------------------------------------------------------


def pipeline(name: str, factor: float = 1.0) -> dict[str, Any]:
    """Registers a pipeline of twelve columns, eight numbers and four categories, as `champion`; the rows that it can score."""
    import mlflow
    import numpy as np
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    random = np.random.default_rng(0)
    frame = pd.DataFrame({f"n{column}": random.normal(size=5_000) for column in range(8)})
    categories = {f"c{column}": random.choice(list("abcdefgh"), 5_000) for column in range(4)}
    frame = frame.assign(**{column: pd.Series(values, dtype=object) for column, values in categories.items()})
    encoded = make_column_transformer((OneHotEncoder(sparse_output=False), [*categories]), remainder="passthrough")
    model = make_pipeline(encoded, HistGradientBoostingRegressor(max_iter=100)).fit(
        frame, factor * (frame.n0 * 2 + (frame.c0 == "a"))
    )
    with mlflow.start_run():
        # MLflow's default format, skops, does not load this model's types without a list of them.
        logged = mlflow.sklearn.log_model(
            model, name="model", input_example=frame.head(2), registered_model_name=name, serialization_format="cloudpickle"
        )
    version = str(logged.registered_model_version)
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", version)
    rows = frame.head(100)
    return {"rows": rows.to_dict("records"), "predictions": model.predict(rows).tolist(), "version": version}


def broken(name: str) -> dict[str, Any]:
    """Registers a version that crashes while the scoring service loads it."""
    import mlflow
    import pandas as pd

    class Broken(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
        def load_context(self, context: Any) -> None:
            if "SCORING_PORT" in os.environ:
                os.abort()

        def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> list[float]:
            return [0.0] * len(model_input)

    with mlflow.start_run():
        logged = mlflow.pyfunc.log_model(
            name="model", python_model=Broken(), input_example=pd.DataFrame({"n0": [1.0]}), registered_model_name=name
        )
    return {"version": str(logged.registered_model_version)}


def of_entities(name: str, routes: int, events: int) -> dict[str, Any]:
    """Registers a model of the features of routes as `champion`, with a policy. The entities that it can score."""
    import mlflow
    import numpy as np
    import pandas as pd
    from sklearn.ensemble import HistGradientBoostingRegressor

    from mlstack import features, policies

    random = np.random.default_rng(0)
    ages = pd.to_timedelta(np.sort(random.uniform(3_600, 90 * 86_400, events))[::-1], unit="s")
    past = pd.DataFrame({"route": [f"r{number}" for number in random.integers(0, routes, events)]})
    past = past.assign(event_time=pd.Timestamp.now("UTC") - ages, late=random.integers(0, 2, events))
    past = past.assign(known_at=past.event_time, minutes=random.integers(0, 60, events))
    route = features.Entity("benchmark_route", keys=("route",))
    delays = features.Totals("benchmark_delays", route, columns=("late", "minutes"))
    view = features.FeatureView("benchmark_route", delays, windows=("1d", "7d", "30d"))
    features.apply(view)
    features.backfill(delays, past)
    spine = pd.DataFrame({"route": past.route, "at": past.event_time, "distance": random.uniform(100, 3_000, events)}).tail(2_000)
    training = features.training_set(spine, [view], "benchmark_delays")
    frame = training.frame.drop(columns=["route", "at"])
    model = HistGradientBoostingRegressor(max_iter=100).fit(frame, frame.distance / 100)
    with mlflow.start_run():
        logged = mlflow.sklearn.log_model(
            model, name="model", input_example=frame.head(2), registered_model_name=name, metadata={"features": training.views}
        )
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", logged.registered_model_version)
    policies.put(name, {"thresholds": [{"below": 15, "decision": "on time"}], "otherwise": "late"})
    policies.activate(name, 1, reason="benchmark")
    return {"entities": [{"route": f"r{number}", "distance": 1_400.0} for number in range(routes)]}


def score(
    url: str, headers: dict[str, str], body: str, clients: int, calls: int, *, expected: dict[str, float] | None = None
) -> dict[str, Any]:
    """Latencies of requests from this many processes at once, each over one connection, and the seconds that all took.

    `expected` has the first prediction of each version that may answer. Raises RuntimeError for any other answer.
    """
    global barrier  # noqa: PLW0603 (what forked processes inherit)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(clients)
    with context.Pool(clients) as pool:
        parts = pool.starmap(_scores, [(url, headers, body, calls, expected)] * clients, chunksize=1)
    begun, ended = min(part[0] for part in parts), max(part[1] for part in parts)
    return {"latencies": [seconds for part in parts for seconds in part[2]], "total": ended - begun}


def _scores(
    url: str, headers: dict[str, str], body: str, calls: int, expected: dict[str, float] | None
) -> tuple[float, float, list[float]]:
    ask = _asks(url, headers)

    def checked() -> None:
        version, answer = ask(body)
        if expected and abs(answer["predictions"][0] - expected[version]) > SAME:
            raise RuntimeError(f"version {version} answered {answer['predictions'][0]} instead of {expected[version]}")

    checked()
    barrier.wait(300)
    begun = time.perf_counter()
    latencies = [_timed(checked)[0] for _ in range(calls)]
    return begun, time.perf_counter(), latencies


def paced(url: str, headers: dict[str, str], bodies: list[str], *, clients: int, rate: float, calls: int) -> dict[str, Any]:
    """Latencies of requests that are due at a steady rate, each from when it was due. Raises RuntimeError without a decision."""
    global barrier  # noqa: PLW0603 (what forked processes inherit)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(clients)
    with context.Pool(clients) as pool:
        jobs = [(url, headers, bodies[client::clients], (client / rate, clients / rate), calls) for client in range(clients)]
        lists = pool.starmap(_paces, jobs, chunksize=1)
    return {"latencies": [seconds for latencies in lists for seconds in latencies]}


def _paces(url: str, headers: dict[str, str], bodies: list[str], times: tuple[float, float], calls: int) -> list[float]:
    first, pause = times
    ask = _asks(url, headers)
    ask(bodies[0])
    barrier.wait(300)
    begun, latencies = time.perf_counter() + first, []
    for call in range(calls):
        due = begun + call * pause
        time.sleep(max(0.0, due - time.perf_counter()))
        _, answer = ask(bodies[call % len(bodies)])
        latencies.append(time.perf_counter() - due)
        if len(answer["decisions"]) != 1:
            raise RuntimeError(f"no decision: {answer}")
    return latencies


def _asks(url: str, headers: dict[str, str]) -> Callable[[str], tuple[str, dict[str, Any]]]:
    """Sends a body over one connection: the version that answers, and the answer. Raises RuntimeError if it is none."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=120)

    def ask(body: str) -> tuple[str, dict[str, Any]]:
        connection.request("POST", parts.path, body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{answer.status}: {content[:500]!r}")
        return answer.headers.get("X-Mlstack-Version", ""), json.loads(content)

    return ask


# ---- reading -----------------------------------------------------------------------------------


def experiment(name: str) -> dict[str, Any]:
    """A new experiment for the runs."""
    import mlflow

    created = mlflow.get_experiment(mlflow.create_experiment(name))
    return {"id": created.experiment_id, "location": created.artifact_location}


def search(name: str, searches: int) -> dict[str, Any]:
    """The first hundred of the runs that a metric selects, ordered by another."""
    import mlflow

    client = mlflow.MlflowClient()
    found_experiment = mlflow.get_experiment_by_name(name)
    assert found_experiment
    ids = [found_experiment.experiment_id]
    found_runs = [
        _timed(client.search_runs, ids, "metrics.m0 > 0.5", order_by=["metrics.m1 DESC"], max_results=100)
        for _ in range(searches + 1)
    ]
    return {"times": [seconds for seconds, _ in found_runs][1:], "run_ids": [run.info.run_id for run in found_runs[0][1]]}


def frame_by_search(name: str, runs: int) -> dict[str, Any]:
    """All runs as a DataFrame by mlflow.search_runs."""
    import mlflow

    seconds, frame = _timed(mlflow.search_runs, experiment_names=[name], max_results=runs + 1)
    return {"time": seconds, "rows": len(frame)}


def frame_by_reader(name: str) -> dict[str, Any]:
    """All runs as a DataFrame by the stack's own reader. The first time, with its imports, is not counted."""
    from mlstack.client import runs

    runs.dataframe(experiment_names=[EXPERIMENT], filter_string="")
    seconds, frame = _timed(runs.dataframe, experiment_names=[name], filter_string="")
    return {"time": seconds, "rows": len(frame)}


def frames_are_equal(name: str, runs: int) -> dict[str, Any]:
    """Raises AssertionError if the two results differ in a cell."""
    import mlflow
    from pandas.testing import assert_frame_equal

    from mlstack.client import runs as reader

    seconds, expected = _timed(mlflow.search_runs, experiment_names=[name], max_results=runs + 1)
    frame = reader.dataframe(experiment_names=[name], filter_string="")
    order = ["start_time", "run_id"]
    sides = [frame.sort_values(order, ignore_index=True).sort_index(axis=1) for frame in (frame, expected)]
    assert_frame_equal(*sides, check_dtype=False, check_exact=True)
    return {"cells": int(frame.size), "search": seconds}


# ---- raw limits: nothing of MLflow in between ----------------------------------------------------


def raw_storage(megabytes: int, count: int, password: str) -> dict[str, Any]:
    """The same files by MinIO's own client; the small ones by several threads."""
    from minio import Minio

    client = Minio("minio:9000", "mlflow", password, secure=False)
    with _folder() as folder:
        path = folder / "model.bin"
        _write(path, megabytes)
        up, _ = _timed(client.fput_object, "mlflow", "raw/model.bin", str(path))
        down, _ = _timed(client.fget_object, "mlflow", "raw/model.bin", str(folder / "back.bin"))
        _write_many(folder / "out", count)
        (folder / "back").mkdir()
        with ThreadPoolExecutor(THREADS) as pool:

            def put(path: Path) -> Any:
                return client.fput_object("mlflow", f"raw/{path.name}", str(path))

            def get(path: Path) -> Any:
                return client.fget_object("mlflow", f"raw/{path.name}", str(folder / "back" / path.name))

            paths = [*(folder / "out").iterdir()]
            many_up, _ = _timed(lambda: list(pool.map(put, paths)))
            many_down, _ = _timed(lambda: list(pool.map(get, paths)))
    return {"up": up, "down": down, "many_up": many_up, "many_down": many_down}


def raw_copy(rows: int, password: str) -> dict[str, Any]:
    """Points into a table like MLflow's, by COPY."""
    with _database(password) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS raw_points (LIKE metrics INCLUDING ALL); TRUNCATE raw_points")
        connection.commit()
        lines = "".join(f"loss\t{1 / (row + 1)!r}\t1760000000000\t{'0' * 32}\t{row}\tf\n" for row in range(rows))
        copy = "COPY raw_points (key, value, timestamp, run_uuid, step, is_nan) FROM STDIN"
        seconds, _ = _timed(lambda: (cursor.copy_expert(copy, io.StringIO(lines)), connection.commit()))
    return {"time": seconds}


def raw_insert(clients: int, calls: int, password: str) -> dict[str, Any]:
    """Latencies of one point and its commit, from this many connections at once."""
    with _database(password) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS raw_points (LIKE metrics INCLUDING ALL); TRUNCATE raw_points")

    def insert(number: int) -> list[float]:
        with _database(password) as connection, connection.cursor() as cursor:
            statement = (
                "INSERT INTO raw_points (key, value, timestamp, run_uuid, step, is_nan) VALUES ('loss', 1, 0, %s, %s, false)"
            )
            return [
                _timed(lambda step=step: (cursor.execute(statement, (f"{number:032}", step)), connection.commit()))[0]
                for step in range(calls)
            ]

    with ThreadPoolExecutor(clients) as pool:
        return {"latencies": [seconds for latencies in pool.map(insert, range(clients)) for seconds in latencies]}


def raw_disk(megabytes: int) -> dict[str, Any]:
    """A plain file, written and synced to disk."""
    block = os.urandom(MEGABYTE)
    with _folder() as folder, (folder / "file").open("wb") as out:
        begun = time.perf_counter()
        for _ in range(megabytes):
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
        return {"time": time.perf_counter() - begun}


@contextlib.contextmanager
def _database(password: str) -> Any:
    import psycopg2

    connection = psycopg2.connect(host="postgres", user="mlflow", dbname="mlflow", password=password)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


# ---- what they share -----------------------------------------------------------------------------


def _timed(function: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = function(*arguments, **named)
    return time.perf_counter() - begun, result


@contextlib.contextmanager
def _folder() -> Any:
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _write(path: Path, megabytes: int) -> str:
    """Random bytes, which no layer can compress; synced before anything is timed."""
    with path.open("wb") as out:
        for _ in range(megabytes):
            out.write(os.urandom(MEGABYTE))
        out.flush()
        os.fsync(out.fileno())
    return _digest(path)


def _write_many(folder: Path, count: int) -> dict[str, bytes]:
    folder.mkdir()
    contents = {f"{number:06}.bin": os.urandom(SMALL_FILE) for number in range(count)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return contents


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


TASKS = {
    task.__name__: task
    for task in (
        hello, loop, forked, synchronous, batches, params, autolog, file, files, register, load,
        pipeline, broken, of_entities, score, paced,
        experiment, search, frame_by_search, frame_by_reader, frames_are_equal, raw_storage, raw_copy, raw_insert, raw_disk,
    )
}  # fmt: skip


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = TASKS[request.pop("task")](**request)
        except Exception:  # noqa: BLE001 (any error: the other side reports it and stops)
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
