"""Puts, gets and opens data sets as a user's program in the Jupyter container. Prints what it saw as JSON.

A test runs it as text. `KILL` ends this process in the middle of an upload, as a restarted kernel would.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa

from mlstack import datasets, manifests
from mlstack.client import dataset_files
from mlstack.client.dataset_versions import manifest_of
from mlstack.errors import MlstackError

LARGE = 3 * manifests.PART + 1000
KILL = """
import os, signal, sys
from mlstack import datasets
from mlstack.client import dataset_files, transfers
transfers.CONNECTIONS = 1
send, pieces = dataset_files.piece_sender, []
def sender(*arguments):
    pieces.append(arguments)
    if len(pieces) == 3:
        transfer = send(*arguments)
        return lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    return send(*arguments)
dataset_files.piece_sender = sender
datasets.put(sys.argv[1], "large")
"""


def main() -> None:
    frame = pd.DataFrame({"n": np.arange(1000), "x": np.random.default_rng(0).normal(size=1000), "s": ["ä"] * 1000})
    with tempfile.TemporaryDirectory() as folder:
        seen = {
            "frames": frames(frame),
            "csv": csv(frame, Path(folder)),
            "folder": tree(Path(folder)),
            "resumed": resumed(Path(folder)),
            "run": run(frame),
            "versions": versions(),
        }
    json.dump(seen, sys.stdout)


def frames(frame: pd.DataFrame) -> dict[str, bool]:
    """Each kind of frame is read back by each library."""
    sources = {"pandas": frame, "pyarrow": pa.Table.from_pandas(frame), "duckdb": duckdb.from_df(frame)}
    equal = {}
    for kind, source in sources.items():
        name = f"of-{kind}"
        version = datasets.put(source, name)
        assert datasets.put(source, name).digest == version.digest
        equal[kind] = (
            datasets.open(name, version.version).equals(frame)
            and datasets.open(name, engine="pyarrow").to_pandas().equals(frame)
            and datasets.open(name, engine="duckdb").df().equals(frame)
            and datasets.open(name, columns=["x"]).equals(frame[["x"]])
        )
    return equal


def csv(frame: pd.DataFrame, folder: Path) -> bool:
    path = folder / "table.csv"
    frame.to_csv(path, index=False)
    datasets.put(path, "table")
    engines = {"pandas": len(datasets.open("table")), "pyarrow": len(datasets.open("table", engine="pyarrow"))}
    return {**engines, "duckdb": len(datasets.open("table", engine="duckdb"))} == dict.fromkeys(
        ("pandas", "pyarrow", "duckdb"), 1000
    )


def tree(folder: Path) -> bool:
    """A folder with awkward names comes back as it was, from the cache and into another folder."""
    top = folder / "tree"
    for name, content in {"a/ü b?#%.txt": b"1", "a/b/c.bin": os.urandom(100_000), "empty": b"", ".hidden": b"2"}.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content)
    datasets.put(top, "tree")
    copy = datasets.get("tree", to=folder / "copy")
    (copy / "empty").write_bytes(b"changed meanwhile")
    datasets.get("tree", to=copy)
    return files_in(datasets.open("tree")) == files_in(copy) == files_in(top)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resumed(folder: Path) -> dict[str, Any]:
    """A kernel that is killed in the middle of an upload leaves nothing visible; putting it again sends the rest only."""
    path = folder / "large.bin"
    path.write_bytes(os.urandom(LARGE))
    killed = subprocess.run([sys.executable, "-c", KILL, str(path)], check=False).returncode
    visible = (datasets.list()["name"] == "large").any()
    sent = counted("piece_sender", lambda: datasets.put(path, "large"), 2)
    part = dataset_files.cache() / "large" / manifest_of("large", None).digest / ".large.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(path.read_bytes()[: LARGE - 1000])
    received = 0

    def count(size: int) -> None:
        nonlocal received
        received += size

    receiver = dataset_files.rest_receiver
    dataset_files.rest_receiver = lambda part, size, _: receiver(part, size, count)
    same = (datasets.get("large") / "large.bin").read_bytes() == path.read_bytes()
    dataset_files.rest_receiver = receiver
    return {"killed": killed == -signal.SIGKILL, "visible": bool(visible), "sent": sent, "received": received, "same": same}


def counted(name: str, action: Callable[[], Any], index: int) -> list[int]:
    """An argument of each call of a function of dataset_files."""
    function, values = getattr(dataset_files, name), []

    def counting(*arguments: Any) -> Any:
        values.append(arguments[index])
        return function(*arguments)

    setattr(dataset_files, name, counting)
    action()
    setattr(dataset_files, name, function)
    return values


def run(frame: pd.DataFrame) -> bool:
    """A run leads back to the bytes that it used, also after a newer version."""
    version = datasets.put(frame, "inputs")
    with mlflow.start_run() as started:
        mlflow.log_input(datasets.dataset("inputs"), context="training")
    datasets.put(frame.head(), "inputs")
    recorded = mlflow.get_run(started.info.run_id).inputs.dataset_inputs[0].dataset
    folder = mlflow.data.get_source(recorded).load()
    return recorded.digest == version.digest and pd.read_parquet(folder / "data.parquet").equals(frame)


def versions() -> dict[str, Any]:
    """The newest version is the default; one that is put again is the newest again; a deleted one is not listed."""
    first, second = (pd.DataFrame({"n": [number]}) for number in (1, 2))
    old = datasets.put(first, "counted")
    datasets.put(second, "counted")
    newest = int(datasets.open("counted")["n"][0])
    datasets.put(first, "counted")
    again = int(datasets.open("counted")["n"][0])
    datasets.delete("counted", old.version)
    try:
        datasets.get("counted", old.version)
    except MlstackError as error:
        message = str(error)
    listed = datasets.list()
    rows = listed[listed["name"] == "counted"][["files", "size", "by"]]
    return {
        "newest": newest,
        "again": again,
        "deleted": message,
        "left": int(datasets.open("counted")["n"][0]),
        "rows": len(rows),
    }


if __name__ == "__main__":
    main()
