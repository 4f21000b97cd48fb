"""The shipped stack as a user meets it: a clean clone, `make up`, notebooks, restarts, mistakes. The order matters."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from mlstack.host.compose import docker
from mlstack.s3 import client_for
from mlstack.settings import Keys, Login
from tests.stack.conftest import SECRETS, rows
from tests.support import notebooks
from tests.support import transfers as exchanged
from tests.support.clone import ROOT, Clone, users_environment


def objects(keys: Keys) -> dict[str, str]:
    """Every object of the bucket with its checksum."""
    return {item.object_name: item.etag for item in client_for(keys).list_objects(keys.bucket, recursive=True)}


def started(stack: Clone) -> dict[str, str]:
    """When each long-running container was started, by its id."""
    ids = stack.compose("ps", "--quiet").split()
    return dict(line.split() for line in docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", *ids).splitlines())


def test_second_up_after_an_edit_of_a_host_command_changes_nothing(stack: Clone) -> None:
    cli = stack.folder / "src/mlstack/host/cli.py"
    shipped = cli.read_text()
    before, env = started(stack), (stack.folder / ".env").read_bytes()
    cli.write_text(f"{shipped}# edited\n")
    done = stack.make("up")
    cli.write_text(shipped)
    assert done.returncode == 0, done.stderr
    assert started(stack) == before
    assert (stack.folder / ".env").read_bytes() == env
    log = stack.compose("logs", "--no-log-prefix", "bootstrap", "migration")
    outcomes: dict[str, list[str]] = {}
    for step, outcome in re.findall(r"\| INFO \| (.+): (created|changed|already there)$", log, re.MULTILINE):
        outcomes.setdefault(step, []).append(outcome)
    assert {first for first, _ in outcomes.values()} == {"created", "changed", "already there"}
    assert {second for _, second in outcomes.values()} == {"already there"}


def test_plain_docker_compose_starts_the_same_stack(stack: Clone) -> None:
    before = started(stack)
    stack.compose("up", "--detach", "--wait")
    assert started(stack) == before


# These need a part that is on: tests/parts/test_features.py and tests/parts/test_ray.py run them.
OF_PARTS = {"06_features_and_scoring.ipynb", "07_many_workers.ipynb"}
NOTEBOOKS = sorted({path.name for path in Path(ROOT, "examples").glob("*.ipynb")} - OF_PARTS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_in_jupyter_without_a_warning(stack: Clone, name: str) -> None:
    printed = notebooks.run(stack, name)
    assert not [secret for secret in SECRETS if stack.values[secret] in printed]
    shipped = nbformat.read(stack.folder / "notebooks" / name, as_version=4)
    assert not [cell for cell in shipped.cells if cell.cell_type == "code" and cell.outputs]


def test_work_of_the_first_notebook_is_in_postgres_and_minio(stack: Clone, role: Login, keys: Keys) -> None:
    finished = (
        "SELECT count(*) FROM runs r JOIN experiments e USING (experiment_id) WHERE e.name = 'flights' AND status = 'FINISHED'"
    )
    runs = rows(role, finished)
    assert runs == [(2,)]
    losses = dict(
        rows(
            role,
            "SELECT t.value, m.value FROM latest_metrics m JOIN tags t USING (run_uuid)"
            " WHERE m.key = 'test_log_loss' AND t.key = 'mlflow.runName' ORDER BY 1",
        )
    )
    assert 0 < losses["gradient boosting"] < losses["baseline"] < 1  # type: ignore[operator]
    models = "name = 'flight-delay'"  # the fourth notebook registers a prompt
    assert rows(role, f"SELECT alias, version FROM registered_model_aliases WHERE {models}") == [("champion", 1)]  # noqa: S608
    assert rows(role, f"SELECT version FROM model_versions WHERE {models}") == [(1,)]  # noqa: S608
    names = objects(keys)
    assert [name for name in names if name.endswith("learning_and_calibration.png")]
    assert [name for name in names if name.endswith("MLmodel")]


def test_second_notebook_runs_on_the_host(stack: Clone, tmp_path: Path) -> None:
    kernel = tmp_path / "kernels/host/kernel.json"
    kernel.parent.mkdir(parents=True)
    python = str(stack.folder / ".venv/bin/python")  # with the commands' packages alone, as a user's
    argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "host", "language": "python"}))
    program = (
        "import nbformat; from nbclient import NotebookClient;"
        "notebook = nbformat.read('notebooks/02_connect_from_your_machine.ipynb', 4);"
        "NotebookClient(notebook, kernel_name='host', timeout=120).execute();"
        "print(''.join(o.get('text', '') for c in notebook.cells for o in c.get('outputs', [])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=stack.folder, env=users_environment() | {"JUPYTER_PATH": str(tmp_path)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stdout + done.stderr


def test_artifacts_are_equal_directly_and_through_mlflow_in_notebooks_and_on_the_host(stack: Clone) -> None:
    exchanged.assert_equal(
        exchanged.result_of(stack.in_container("jupyter", "python3", "-c", exchanged.PROGRAM)), through_urls=True
    )
    exchanged.assert_equal(exchanged.here(stack.values["MLFLOW_TRACKING_URI"], *exchanged.account(stack)), through_urls=True)


REJECTED = """
import mlflow
client = mlflow.MlflowClient()
run = mlflow.start_run()
client.delete_run(run.info.run_id)
calls = [client.log_metric(run.info.run_id, "a", step, step=step, synchronous=False) for step in range(20)]
raised = 0
for call in calls:
    try:
        call.wait()
    except mlflow.MlflowException:
        raised += 1
print("raised", raised)
for end in (mlflow.flush_async_logging, mlflow.flush_async_logging):
    try:
        end()
        print("fine")
    except Exception as error:
        print(error)
"""


def test_rejected_batch_raises_in_each_of_its_calls_and_in_flush(stack: Clone) -> None:
    """A deleted run takes no metrics; twenty calls leave as one batch."""
    output = stack.in_container("jupyter", "python3", "-c", REJECTED)
    assert "raised 20" in output
    assert "not every metric that was logged is stored: 20 of run" in output
    assert "\nfine\n" in output  # a loss is reported once


def test_files_that_a_notebook_writes_belong_to_the_host_user(stack: Clone) -> None:
    stack.in_container("jupyter", "touch", "notebooks/mine.txt", "/logs/mine.log")
    for path in (stack.folder / "notebooks/mine.txt", stack.folder / "logs/jupyter/mine.log"):
        assert path.stat().st_uid == int(stack.values["HOST_UID"])


def test_every_container_is_healthy_and_its_log_clean(stack: Clone) -> None:
    assert stack.make("status").returncode == 0
    for line in stack.compose("logs", "--no-color").splitlines():
        # MLflow inserts a trace that it evaluates a second time, and merges the two where Postgres says so.
        assert "trace_info_pk" in line or not re.search(r"\b(ERROR|FATAL|PANIC|CRITICAL)\b|Traceback", line), line


def test_no_container_has_a_secret_of_another(stack: Clone) -> None:
    """docs/architecture.md has the same table."""
    own = {
        "postgres": {"POSTGRES_PASSWORD"},
        "minio": {"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"},
        "bootstrap": {
            "POSTGRES_PASSWORD", "MLFLOW_DB_PASSWORD", "ACCOUNTS_DB_PASSWORD", "READER_DB_PASSWORD",
            "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD", "MINIO_CONSOLE_PASSWORD",
            "MLFLOW_S3_ACCESS_KEY_ID", "MLFLOW_S3_SECRET_ACCESS_KEY",
        },
        "migration": {"MLFLOW_DB_PASSWORD", "ACCOUNTS_DB_PASSWORD", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_TRACKING_PASSWORD"},
        "mlflow": {
            "MLFLOW_DB_PASSWORD", "ACCOUNTS_DB_PASSWORD", "READER_DB_PASSWORD",
            "MLFLOW_S3_ACCESS_KEY_ID", "MLFLOW_S3_SECRET_ACCESS_KEY",
            "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", "MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_CRYPTO_KEK_PASSPHRASE",
        },
        "jupyter": {"JUPYTER_TOKEN", "MLFLOW_TRACKING_PASSWORD"},
    }  # fmt: skip
    values = stack.values
    for service, expected in own.items():
        container = stack.compose("ps", "--all", "--quiet", service).strip()
        inspected = docker("inspect", container)
        assert {name for name in SECRETS if values[name] in inspected} == expected, service
        history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", stack.image(service))
        assert not [name for name in SECRETS if values[name] in history]


def test_data_survives_a_restart_and_down_and_up(stack: Clone, role: Login, keys: Keys) -> None:
    everything = "SELECT run_uuid, key, value, step FROM metrics ORDER BY 1, 2, 4"
    metrics, files = rows(role, everything), objects(keys)
    assert metrics and files
    stack.compose("restart")
    stack.compose("up", "--detach", "--wait")
    assert (rows(role, everything), objects(keys)) == (metrics, files)
    done = stack.make("down")
    assert done.returncode == 0, done.stderr
    assert "Your data is in the volumes" in done.stdout
    assert stack.make("status").returncode == 2  # make's exit code for a failed command
    done = stack.make("up")
    assert done.returncode == 0, done.stderr
    assert (rows(role, everything), objects(keys)) == (metrics, files)


def test_reset_asks_and_deletes_only_its_own_stack(stack: Clone) -> None:
    own = docker("volume", "ls", "--quiet", "--filter", f"label=com.docker.compose.project={stack.name}").split()
    assert len(own) >= 5
    foreign = docker("volume", "create", f"{stack.name}-foreign").strip()
    try:
        refused = stack.make("reset")
        assert refused.returncode != 0
        assert "no terminal" in refused.stderr and "make reset YES=1" in refused.stderr
        assert f"{stack.name}_postgres" in refused.stdout and "every run" in refused.stdout
        assert docker("volume", "ls", "--quiet", "--filter", f"label=com.docker.compose.project={stack.name}").split() == own
        done = stack.make("reset", YES="1")
        assert done.returncode == 0, done.stderr
        left = docker("volume", "ls", "--quiet", "--filter", f"name={stack.name}").split()
        assert left == [foreign]
        assert (stack.folder / ".env").exists()
        done = stack.make("reset", YES="1")
        assert done.returncode == 0, done.stderr
    finally:
        docker("volume", "rm", foreign)
