"""A folder `mlruns` as MLflow's file store writes it, with any number of runs: MLflow itself takes hours for ten thousand."""

import random
import uuid
from pathlib import Path

NOW = 1_700_000_000_000
EXPERIMENT = "314159265358979323"


def write(mlruns: Path, runs: int, points: int) -> list[str]:
    """Writes runs with so many points, in four metrics, and one artifact. Returns their ids."""
    chance = random.Random(7)  # noqa: S311 - the same for each call
    folder = mlruns / EXPERIMENT
    folder.mkdir(parents=True)
    (folder / "meta.yaml").write_text(
        f"artifact_location: file://{folder}\ncreation_time: {NOW}\nexperiment_id: '{EXPERIMENT}'\nlast_update_time: {NOW}\n"
        "lifecycle_stage: active\nname: many\n"
    )
    return [_write_run(folder, uuid.UUID(int=chance.getrandbits(128), version=4).hex, points, chance) for _ in range(runs)]


def _write_run(folder: Path, run: str, points: int, chance: random.Random) -> str:
    top = folder / run
    for name in ("metrics", "params", "tags", "artifacts"):
        (top / name).mkdir(parents=True)
    (top / "meta.yaml").write_text(
        f"artifact_uri: file://{top}/artifacts\nend_time: {NOW + 1000}\nentry_point_name: ''\nexperiment_id: '{EXPERIMENT}'\n"
        f"lifecycle_stage: active\nrun_id: {run}\nrun_name: run {run[:4]}\nrun_uuid: {run}\nsource_name: ''\nsource_type: 4\n"
        f"source_version: ''\nstart_time: {NOW}\nstatus: 3\ntags: []\nuser_id: ada\n"
    )
    for number in range(4):
        lines = (f"{NOW + step} {chance.random()!r} {step}\n" for step in range(points // 4))
        (top / "metrics" / f"loss {number}").write_text("".join(lines))
        (top / "params" / f"p{number}").write_text(repr(chance.random()))
    (top / "tags" / "mlflow.runName").write_text(f"run {run[:4]}")
    (top / "artifacts" / "note.txt").write_text(run)
    return run
