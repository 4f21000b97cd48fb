"""Uploads files through presigned URLs and through MLflow's proxy, downloads each the other way, prints differences as JSON.

A program of its own: it runs on the host and, as text, in the Jupyter container. It uses both clients: ours, which MLflow
loads as a plugin, and MLflow's own, by its class.
"""

import gzip
import hashlib
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

# Names that are awkward in a URL, on a file system, or for code that guesses types from them.
FILES: dict[str, bytes] = {
    "model.pkl": os.urandom(300_000),
    "with space.txt": b"a",
    "plus+and&=;,@!$'()~.txt": b"b",
    "50%.txt": b"c",
    "ümlaut-日本-⚗.txt": "é".encode(),
    ".hidden": b"e",
    "a" * 200 + ".bin": b"f",
    "table.csv.gz": gzip.compress(b"1,2\n" * 1000),
    "empty": b"",
    "deep/er/and deeper/+.bin": os.urandom(5_000_000),
    "deep/er/empty": b"",
    "deep.er/x": b"g",
}


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    run = mlflow.MlflowClient().create_run("0")
    ours: Any = get_artifact_repository(run.info.artifact_uri)
    plain: Any = MlflowArtifactsRepository(run.info.artifact_uri)
    with tempfile.TemporaryDirectory() as folder:
        by_way = {name: exchanged(name, up, down, Path(folder, name)) for name, up, down in (
            ("links up, proxy down", ours, plain), ("proxy up, links down", plain, ours), ("links up and down", ours, ours),
        )}  # fmt: skip
        json.dump({"client": type(ours).__module__, "through_urls": ours.gives_links(), "differences": by_way}, sys.stdout)


def exchanged(name: str, up: Any, down: Any, folder: Path) -> list[str]:
    """Differences after an upload and a download: whole trees, a folder in a tree, a single file."""
    tree = folder / "tree"
    for file, content in FILES.items():
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).write_bytes(content)
    (tree / "nothing in it").mkdir()
    up.log_artifacts(str(tree), name)
    up.log_artifacts(str(tree / "nothing in it"), f"{name} nothing")
    up.log_artifact(str(tree / "model.pkl"), f"{name} alone/in a folder")
    stored = {file.replace("%20", " "): content for file, content in FILES.items()}  # as MLflow's server names it
    part = {file.removeprefix("deep/"): content for file, content in stored.items() if file.startswith("deep/")}
    single = {f"{name} alone/in a folder/model.pkl": FILES["model.pkl"]}
    return [
        *differences({f"{name}/{file}": content for file, content in stored.items()}, down, name),
        *differences({f"{name}/deep/{file}": content for file, content in part.items()}, down, f"{name}/deep"),
        *differences(single, down, next(iter(single))),
        *differences(single, down, f"{name} alone/"),
        *differences({f"{name}/with space.txt": b"a"}, down, f"{name}/with space.txt"),
    ]


def differences(expected: dict[str, bytes], down: Any, path: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(down.download_artifacts(path, folder))
        got = {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}
        wrong = [] if place == Path(folder, path) and place.exists() else [f"{path}: returned {place}"]
    names = sorted(expected.keys() | got.keys())
    return wrong + [
        f"{path}: {name}: {shown(expected, name)} → {shown(got, name)}" for name in names if expected.get(name) != got.get(name)
    ]


def shown(files: dict[str, bytes], name: str) -> str:
    return f"{len(files[name])} bytes, {hashlib.sha256(files[name]).hexdigest()[:8]}" if name in files else "none"


if __name__ == "__main__":
    main()
