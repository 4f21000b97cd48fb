"""`make import` of a file store: what arrives, what is damaged or taken, and what an interruption leaves."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlstack.s3 import client_for
from mlstack.settings import Keys, Login
from tests.stack.conftest import rows
from tests.support.clone import Clone
from tests.support.confirmation import decline
from tests.support.many_runs import EXPERIMENT, write
from tests.support.service import wait_until

RUNS, POINTS = 40, 200
READ = """
import mlflow, sys
run = mlflow.get_run(sys.argv[1])
client = mlflow.MlflowClient()
history = client.get_metric_history(run.info.run_id, "loss 0")
print(run.info.run_name, run.info.user_id, run.info.status, len(history), history[-1].value == run.data.metrics["loss 0"])
print(client.get_experiment(run.info.experiment_id).name, mlflow.artifacts.load_text(run.info.artifact_uri + "/note.txt"))
client.log_metric(run.info.run_id, "later", 1)
client.delete_experiment(client.create_experiment("of the notebook"))
"""


@pytest.fixture(scope="module")
def mlruns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "mlruns"
    folder.parent.chmod(0o755)
    write(folder, RUNS, POINTS)
    return folder


@pytest.fixture(scope="module")
def runs(mlruns: Path) -> list[str]:
    return sorted(path.parent.name for path in (mlruns / EXPERIMENT).glob("*/meta.yaml"))


@pytest.fixture
def damaged(mlruns: Path, tmp_path: Path) -> Iterator[Path]:
    """A moved copy: a run without meta.yaml, one with a line that MLflow did not write, one with a link to a file of the host."""
    tmp_path.chmod(0o755)
    copy = Path(shutil.copytree(mlruns, tmp_path / "mlruns"))
    first, second, third, *_ = sorted((copy / EXPERIMENT).glob("*/"))
    (first / "meta.yaml").unlink()
    (second / "metrics" / "loss 1").write_text("no number\n")
    (third / "artifacts" / "hosts").symlink_to("/etc/hosts")
    yield copy


def counts(role: Login) -> list[tuple[object, ...]]:
    return rows(
        role,
        "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM metrics WHERE key <> 'later'), (SELECT count(*) FROM params),"
        " (SELECT count(*) FROM experiments WHERE name = 'many'), (SELECT count(*) FROM pg_class WHERE relname ~ 'incoming')",
    )


@pytest.mark.parametrize("answer", [b"n\n", None])
def test_declined_import_changes_nothing(stack: Clone, mlruns: Path, role: Login, answer: bytes | None) -> None:
    decline(lambda its_end: stack.start("import", f"--from={mlruns}", stdin=its_end), answer, "Nothing was imported.")
    assert counts(role) == [(0, 0, 0, 0, 0)]


def test_killed_import_leaves_no_rows_and_the_next_one_completes_it(
    stack: Clone, mlruns: Path, runs: list[str], role: Login, keys: Keys
) -> None:
    client = client_for(keys)
    with stack.start("import", f"--from={mlruns}", "--yes") as process:
        wait_until(lambda: any(client.list_objects(keys.bucket, recursive=True)) or process.poll() is not None)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
    assert counts(role)[0][4] == 0
    done = stack.make("import", FROM=str(mlruns), YES="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert counts(role) == [(RUNS, RUNS * POINTS, RUNS * 4, 1, 0)]
    objects = {item.object_name for item in client.list_objects(keys.bucket, recursive=True)}
    assert {name.rpartition("/artifacts/")[0].rpartition("/")[2] for name in objects if name} == set(runs)
    assert not (stack.folder / ".import").exists()


def test_imported_run_is_like_one_of_the_stack(stack: Clone, runs: list[str]) -> None:
    name, experiment = stack.in_container("jupyter", "python3", "-W", "ignore", "-c", READ, runs[0]).splitlines()[-2:]
    assert name == f"run {runs[0][:4]} ada FINISHED {POINTS // 4} True"
    assert experiment == f"many {runs[0]}"


def test_second_import_changes_nothing(stack: Clone, mlruns: Path, role: Login, keys: Keys) -> None:
    before = counts(role), versions(keys)
    done = stack.make("import", FROM=str(mlruns), YES="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (counts(role), versions(keys)) == before


def versions(keys: Keys) -> list[str | None]:
    items = client_for(keys).list_objects(keys.bucket, recursive=True, include_version=True)
    return sorted(item.version_id for item in items)


def test_changed_run_is_reported_and_kept(stack: Clone, mlruns: Path, runs: list[str], role: Login) -> None:
    changed = f"run_uuid = '{runs[1]}' AND key = 'p0'"
    rows(role, f"UPDATE params SET value = 'changed here' WHERE {changed} RETURNING 1")  # noqa: S608
    done = stack.make("import", FROM=str(mlruns), YES="1")
    assert done.returncode != 0
    assert "the stack does not have everything that is in the source" in done.stderr
    assert runs[1] in done.stdout
    assert rows(role, f"SELECT value FROM params WHERE {changed}") == [("changed here",)]  # noqa: S608


def test_name_of_another_experiment_is_rejected_and_a_prefix_imports(
    stack: Clone, damaged: Path, role: Login, subtests: pytest.Subtests
) -> None:
    rows(role, "UPDATE experiments SET creation_time = 1 WHERE name = 'many' RETURNING 1")
    with subtests.test("the name is taken"):
        done = stack.make("import", FROM=str(damaged), YES="1")
        assert done.returncode != 0
        assert "the stack has these already, from elsewhere: experiment many." in done.stderr
        assert "PREFIX=" in done.stderr
    with subtests.test("the runs are in another experiment"):
        done = stack.make("import", FROM=str(damaged), PREFIX="old/", YES="1")
        assert done.returncode != 0
        assert "is in the stack already, in the experiment many" in done.stderr
        assert counts(role)[0][:1] == (RUNS,)


def test_damage_is_named_and_the_rest_imported(stack: Clone, damaged: Path, role: Login, keys: Keys) -> None:
    folder = damaged / EXPERIMENT
    first, second, third, *_ = sorted(path.name for path in folder.glob("*/"))
    rows(role, "TRUNCATE runs, experiments CASCADE; SELECT 1")
    done = stack.make("import", FROM=str(damaged), PREFIX="old/", YES="1")
    assert done.returncode != 0
    assert "the stack does not have everything that is in the source" in done.stderr
    for name in (first, second, third):
        assert name in done.stdout.replace("\n", "")
    imported = {run for (run,) in rows(role, "SELECT run_uuid FROM runs")}
    assert imported == {path.name for path in folder.glob("*/")} - {first, second}
    names = [item.object_name or "" for item in client_for(keys).list_objects(keys.bucket, recursive=True)]
    assert not [name for name in names if name.endswith("/hosts")]
    assert rows(role, "SELECT name FROM experiments") == [("old/many",)]
