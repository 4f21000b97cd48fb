"""A training client under load. Runs inside the Jupyter container, as a notebook would: python3 client.py FOLDER.

It appends to FOLDER/ledger.jsonl what it is about to write and what was acknowledged, one JSON object a line, each
`stored` on disk before the next call. Every kind of write has a thread of its own. It ends when FOLDER/stop exists.

What counts as acknowledged: a synchronous call, `log_artifact` or a registry call returned; for an asynchronous call
`RunOperations.wait()` returned. The environment is the container's own: whatever keeps the writes safe was set for every user.
"""

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any

import mlflow
from mlflow.entities import Metric

KILOBYTE, MEGABYTE = 1024, 1024**2
PACE = 0.1  # seconds from one step of a thread to the next
LATER = 40  # points of an asynchronous step: 400 a second
AT_ONCE = 200  # points of a synchronous step, which takes as long as its answer: 200 a second, if that is a second
SMALL = (KILOBYTE, 30 * KILOBYTE, MEGABYTE, 10 * MEGABYTE)
LARGE = 300 * MEGABYTE
BETWEEN_LARGE = 10  # seconds


class Ledger:
    """An append-only file that several threads write; a line that says `stored` is on disk when `add` returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._lock = threading.Lock()
        self._last = 0

    def number(self) -> int:
        with self._lock:
            self._last += 1
            return self._last

    def add(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, "at": time.time(), **fields}) + "\n"
        os.write(self._file, line.encode())
        if event == "stored":
            os.fsync(self._file)


class Client:
    """The threads of one training run."""

    def __init__(self, folder: Path, large: int) -> None:
        self.folder, self.large = folder, large
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.mlflow = mlflow.MlflowClient()
        mlflow.set_experiment("faults")
        self.run = mlflow.start_run()
        self.run_id = self.run.info.run_id
        self.model = f"faults-{self.run_id}"
        self.mlflow.create_registered_model(self.model)
        self.waiting: Queue[tuple[int, float, list[Any]] | None] = Queue()
        self.ledger.add("started", pid=os.getpid(), run=self.run_id, artifacts=self.run.info.artifact_uri, model=self.model)

    def work(self) -> None:
        """Everything at once, until FOLDER/stop exists."""
        writers = [threading.Thread(target=self.repeat, args=args) for args in (
            (self.log_points, PACE), (self.log_points_later, PACE), (self.log_small, PACE), (self.log_large, BETWEEN_LARGE),
            (self.register, 4 * PACE),
        )]  # fmt: skip
        waiter = threading.Thread(target=self.wait_for_points)
        for thread in (*writers, waiter):
            thread.start()
        for thread in writers:
            thread.join()
        self.waiting.put(None)
        waiter.join()
        # As at the end of any training: what is still queued is written, and losses are reported.
        self.attempt("end", mlflow.end_run, [])
        self.ledger.add("ended")

    def repeat(self, write: Callable[[int], None], pause: float) -> None:
        step = 0
        while not (self.folder / "stop").exists():
            begun = time.monotonic()
            write(step)
            step += 1
            time.sleep(max(0.0, pause - (time.monotonic() - begun)))

    def attempt(self, kind: str, call: Callable[[], Any], items: list[Any]) -> Any:
        """One call, with what came of it. A failed call is what a user would see: its message is kept."""
        number, begun = self.ledger.number(), time.monotonic()
        self.ledger.add("tried", kind=kind, number=number, items=items)
        try:
            result = call()
        except Exception as error:  # noqa: BLE001 # whatever reaches a user is what is to be shown
            self.ledger.add("failed", kind=kind, number=number, message=str(error), seconds=time.monotonic() - begun)
            return None
        answer = result if isinstance(result, str) else ""
        self.ledger.add("stored", kind=kind, number=number, answer=answer, seconds=time.monotonic() - begun)
        return result

    def log_points(self, step: int) -> None:
        points = self.points("sync", step, AT_ONCE)
        metrics = [Metric(*point) for point in points]
        self.attempt("sync", lambda: self.mlflow.log_batch(self.run_id, metrics=metrics, synchronous=True), points)

    def log_points_later(self, step: int) -> None:
        points = self.points("async", step, LATER)
        number, begun = self.ledger.number(), time.monotonic()
        self.ledger.add("tried", kind="async", number=number, items=points)
        try:
            calls = [
                self.mlflow.log_metric(self.run_id, key, value, timestamp, at, synchronous=False)
                for key, value, timestamp, at in points
            ]
        except Exception as error:  # noqa: BLE001 # as above
            self.ledger.add("failed", kind="async", number=number, message=str(error), seconds=time.monotonic() - begun)
        else:
            self.waiting.put((number, begun, calls))

    def wait_for_points(self) -> None:
        while entry := self.waiting.get():
            number, begun, calls = entry
            try:
                for call in calls:
                    call.wait()
            except Exception as error:  # noqa: BLE001 # as above
                self.ledger.add("failed", kind="async", number=number, message=str(error), seconds=time.monotonic() - begun)
            else:
                self.ledger.add("stored", kind="async", number=number, answer="", seconds=time.monotonic() - begun)

    def points(self, kind: str, step: int, count: int) -> list[tuple[str, float, int, int]]:
        """Key, value, timestamp and step: no two alike, and each value needs all its digits."""
        now = int(time.time() * 1000)
        return [(f"{kind}_{key}", (step + 1) / (key + 3), now, step) for key in range(count)]

    def log_small(self, step: int) -> None:
        self.log_file(f"small-{step}.bin", os.urandom(SMALL[step % len(SMALL)]))

    def log_large(self, step: int) -> None:
        if self.large:
            self.log_file(f"large-{step}.bin", os.urandom(MEGABYTE) * (self.large // MEGABYTE))

    def log_file(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.write_bytes(content)
        item = {"path": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        self.attempt("artifact", lambda: self.mlflow.log_artifact(self.run_id, str(path)), [item])
        path.unlink()

    def register(self, step: int) -> None:
        tag = f"{self.run_id}-{step}"
        source = f"{self.run.info.artifact_uri}/model"
        version = self.attempt(
            "version",
            lambda: str(self.mlflow.create_model_version(self.model, source, self.run_id, tags={"ledger": tag}).version),
            [tag],
        )
        if version:
            alias = f"step-{step}"
            self.attempt("alias", lambda: self.mlflow.set_registered_model_alias(self.model, alias, version), [[alias, version]])


if __name__ == "__main__":
    Client(Path(sys.argv[1]), LARGE if len(sys.argv) < 3 else int(sys.argv[2]) * MEGABYTE).work()
