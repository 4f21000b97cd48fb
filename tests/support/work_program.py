"""Work as users do it, through MLflow's own client: `python work.py fill …` creates it, `… read` prints all of it.

A program of its own, so that any version of MLflow can run it: an old one fills, the new one reads.
"""

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

# Names that are awkward on some file system or in some URL.
NAMES = ("model.pkl", "Model.pkl", "with space.txt", "plus+and&.txt", "a" * 200 + ".bin", "ümlaut-日本.txt")
CHUNK = 1024 * 1024
BATCH = 1000  # MLflow's limit for one call


def fill(client: MlflowClient, runs: int, points: int, megabytes: int, models: int, seed: int, awkward: int) -> None:
    """Runs with metrics, parameters, tags and artifacts of all sizes, and models with versions and aliases."""
    chance = random.Random(seed)  # noqa: S311 - the same work for the same seed
    experiment = client.create_experiment(f"work {seed}", tags={"team": "ours"})
    ids = [one_run(client, experiment, number, points // runs, chance) for number in range(runs)]
    names = NAMES if awkward else NAMES[:3]
    sizes = spread(megabytes * 10**6, chance)
    with tempfile.TemporaryDirectory() as folder:
        for number, size in enumerate(sizes):
            path = Path(folder) / names[number % len(names)]
            write(path, size, chance)
            client.log_artifact(ids[number % len(ids)], str(path), f"files/{number // len(ids)}")
            path.unlink()
        (Path(folder) / "empty").touch()
        client.log_artifact(ids[0], f"{folder}/empty", "deep/er/and/deeper")
    for number in range(models):
        name = f"model {seed}-{number}"
        client.create_registered_model(name, tags={"kind": "test"}, description="a model")
        for run in ids[: 2 + number]:
            source = f"{client.get_run(run).info.artifact_uri}/files/0"
            client.create_model_version(name, source, run, tags={"checked": "yes"})
        client.set_registered_model_alias(name, "champion", "1")
        client.set_registered_model_alias(name, "challenger", "2")
    client.delete_run(ids[-1])


def one_run(client: MlflowClient, experiment: str, number: int, points: int, chance: random.Random) -> str:
    run: str = client.create_run(experiment, run_name=f"run {number}", tags={"quote": 'it\'s "ünïcode" \\ ⚗'}).info.run_id
    now = int(time.time() * 1000)
    metrics = [
        Metric(f"loss/{step % 5}", chance.choice([chance.random(), 1e-300 * chance.random(), -1.5e300]), now + step, step)
        for step in range(points)
    ]
    metrics += [Metric("odd", float(value), now, step) for step, value in enumerate(("nan", "inf", "-inf"))]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run, metrics=metrics[start : start + BATCH])
    client.log_batch(run, params=[Param(f"p{i}", str(chance.random())) for i in range(8)], tags=[RunTag("number", str(number))])
    client.set_terminated(run, "FAILED" if number % 7 == 3 else "FINISHED")
    return run


def write(path: Path, size: int, chance: random.Random) -> None:
    with path.open("wb") as file:
        for start in range(0, size, CHUNK):
            file.write(chance.randbytes(min(CHUNK, size - start)))


def spread(total: int, chance: random.Random) -> list[int]:
    """Sizes from some bytes to a third of the total."""
    sizes = [total // 3, total // 6, total // 6] if total else []
    left, largest = total - sum(sizes), 6 if total < 10**8 else 6.7
    while left > 0:
        size = min(left, int(10 ** chance.uniform(0, largest)))
        sizes.append(size)
        left -= size
    return sizes


def read(client: MlflowClient) -> dict[str, Any]:
    """Everything that the client can see."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            "experiments": [experiment(client, entity, folder) for entity in pages(client.search_experiments, view_type=3)]
        } | {"models": [model(client, entity) for entity in pages(client.search_registered_models)]}


def experiment(client: MlflowClient, entity: Any, folder: str) -> dict[str, Any]:
    runs = pages(lambda **page: client.search_runs([entity.experiment_id], run_view_type=3, **page))
    return {
        "name": entity.name,
        "tags": dict(entity.tags),
        "location": entity.artifact_location,
        "stage": entity.lifecycle_stage,
        "runs": sorted((a_run(client, run, folder) for run in runs), key=lambda run: str(run["id"])),
    }


def a_run(client: MlflowClient, run: Any, folder: str) -> dict[str, Any]:
    return {
        "id": run.info.run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "stage": run.info.lifecycle_stage,
        "times": [run.info.start_time, run.info.end_time],
        "params": dict(run.data.params),
        "tags": dict(run.data.tags),
        "metrics": {
            key: sorted((m.step, m.timestamp, repr(m.value)) for m in client.get_metric_history(run.info.run_id, key))
            for key in sorted(run.data.metrics)
        },
        "artifacts": artifacts(client, run.info.run_id, folder) if run.info.lifecycle_stage == "active" else None,
    }


def artifacts(client: MlflowClient, run: str, folder: str, path: str = "") -> dict[str, str]:
    checksums = {}
    for item in client.list_artifacts(run, path or None):
        if item.is_dir:
            checksums |= artifacts(client, run, folder, item.path)
        else:
            local = Path(client.download_artifacts(run, item.path, folder))
            checksums[item.path] = hashlib.sha256(local.read_bytes()).hexdigest()
            local.unlink()
    return checksums


def model(client: MlflowClient, entity: Any) -> dict[str, Any]:
    versions = pages(lambda **page: client.search_model_versions(f"name='{entity.name}'", **page))
    return {
        "name": entity.name,
        "description": entity.description,
        "tags": dict(entity.tags),
        "aliases": {alias: str(version) for alias, version in entity.aliases.items()},
        "versions": sorted([int(v.version), v.source, v.run_id, v.status, dict(v.tags)] for v in versions),
    }


def pages(search: Any, **arguments: Any) -> list[Any]:
    items, token = [], None
    while True:
        page = search(page_token=token, **arguments)
        items += page
        token = page.token
        if not token:
            return items


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["fill", "read"])
    for name, default in (("runs", 12), ("points", 3000), ("megabytes", 12), ("models", 2), ("seed", 1), ("awkward", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = vars(parser.parse_args())
    client = MlflowClient()  # MLFLOW_TRACKING_URI, _USERNAME, _PASSWORD
    if chosen.pop("what") == "fill":
        fill(client, **chosen)
    else:
        json.dump(read(client), sys.stdout, sort_keys=True, indent=1)


if __name__ == "__main__":
    main()
