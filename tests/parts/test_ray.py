"""The optional part `ray`: tasks on two workers, who is let in, and searches that lose a process and a worker."""

import io
import json
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support import notebooks, searches
from tests.support.clone import Clone
from tests.support.searches import Search, containers
from tests.support.service import wait_until

HEAD = "http://ray-head.mlstack.internal:8265"

# Two tasks of one CPU that wait for each other end only where two workers run them at the same time.
MEETING = """
import ray
ray.init(log_to_driver=False)

@ray.remote(num_cpus=0)
class Meeting:
    def __init__(self):
        import asyncio
        self.nodes, self.complete = set(), asyncio.Event()
    async def join(self, node):
        self.nodes.add(node)
        if len(self.nodes) == 2:
            self.complete.set()
        await self.complete.wait()
        return len(self.nodes)

@ray.remote
def task(meeting):
    return ray.get(meeting.join.remote(ray.get_runtime_context().get_node_id()))

meeting = Meeting.remote()
print(ray.get([task.remote(meeting) for _ in range(2)]))
"""
# What a task sees of a package that the notebook's user installed, and of the stack's logger and client.
PACKAGE = """
import ray
ray.init(log_to_driver=False)

@ray.remote
def task():
    import mlflow, mlstack.runs, theirs
    return theirs.VALUE, mlflow.get_tracking_uri(), mlflow.search_experiments(max_results=1)[0].name != ""

print(ray.get(task.remote()))
"""
ANSWERS = f"""
import json, requests
headers = (dict(), dict(Authorization="Bearer " + "0" * 32))
print(json.dumps([requests.get("{HEAD}" + path, headers=header, timeout=30).status_code
    for path in ("/api/version", "/api/jobs/", "/nodes?view=summary") for header in headers]))
"""
CONNECT = "from mlstack import tune; tune.connect()"

# A trial that logs a model, and whose process is killed the first time.
KILLED = """
import mlflow, optuna
from mlstack import tune

def objective(params):
    import os, signal
    from sklearn.linear_model import Ridge
    is_repeated = "begun" in mlflow.active_run().data.metrics
    mlflow.log_metric("begun", 1)
    mlflow.sklearn.log_model(Ridge().fit([[0.0], [1.0]], [0.0, 1.0]), name="model", pip_requirements=["scikit-learn"])
    if not is_repeated:
        os.kill(os.getpid(), signal.SIGKILL)
    return params["alpha"]

mlflow.set_experiment("searches")
tune.search("killed", objective, dict(alpha=optuna.distributions.FloatDistribution(0.1, 10)), trials=2)
"""


@pytest.fixture(scope="module")
def ray(stack: Clone) -> Iterator[Clone]:
    """The stack with the part on and two workers."""
    stack.set(RAY_WORKERS="2")
    added = stack.make("add", PART="ray")
    assert added.returncode == 0, added.stdout + added.stderr
    yield stack


@pytest.fixture
def client(ray: Clone, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, ray.values[name])
    return MlflowClient(ray.values["MLFLOW_TRACKING_URI"])


def python(stack: Clone, program: str, *arguments: str, **environment: str) -> str:
    return stack.in_container("jupyter", "python3", "-c", program, *arguments, **environment)


def test_tasks_run_on_both_workers_at_the_same_time(ray: Clone) -> None:
    assert python(ray, MEETING).strip() == "[2, 2]"
    assert len(containers(ray, "ray-worker")) == 2


def test_tasks_have_the_account_and_the_packages_of_notebooks(ray: Clone) -> None:
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("theirs.py", "VALUE = 7\n")
        archive.writestr("theirs-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
        archive.writestr("theirs-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("theirs-1.0.dist-info/RECORD", "")
    name = "theirs-1.0-py3-none-any.whl"
    Path(ray.folder, "notebooks", name).write_bytes(wheel.getvalue())
    ray.in_container("jupyter", "pip", "install", "--quiet", "--no-index", f"notebooks/{name}")
    assert python(ray, PACKAGE).strip() == "(7, 'http://mlflow:5000', True)"


@pytest.mark.refusal
def test_ray_answers_nobody_without_the_token(ray: Clone) -> None:
    assert json.loads(python(ray, ANSWERS)) == [401, 403] * 3


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("token", "message"), [("", "a client without RAY_AUTH_TOKEN (401)"), ("0" * 32, "the token in RAY_AUTH_TOKEN (403)")]
)
def test_wrong_token_is_reported_as_such(ray: Clone, token: str, message: str) -> None:
    attempt = subprocess.run(
        ["docker", "compose", "exec", "--no-TTY", "--env", f"RAY_AUTH_TOKEN={token}", "jupyter", "python3", "-c", CONNECT],
        cwd=ray.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert attempt.returncode == 1
    assert message in attempt.stderr
    assert "Fix: make up" in attempt.stderr


@pytest.mark.refusal
def test_no_process_shows_rays_token(ray: Clone) -> None:
    """Neither in an environment that others read, nor in an argument list, nor in a log."""
    token = ray.values["RAY_TOKEN"]
    for service in ("ray-head", "ray-worker"):
        # Without the token in its own environment, which Docker would give the command again.
        shown = ray.in_container(
            service, "bash", "-c", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; true", RAY_AUTH_TOKEN=""
        )
        assert "RAY_AUTH_MODE" in shown
        assert token not in shown
        logs = "grep -rlFf /dev/shm/secrets/RAY_AUTH_TOKEN /tmp/ray; true"
        assert ray.in_container(service, "bash", "-c", logs).strip() == ""
        assert token not in ray.compose("logs", "--no-color", service)


def test_notebook_of_many_workers_runs(ray: Clone) -> None:
    notebooks.run(ray, "07_many_workers.ipynb")


def assert_trials_are_complete(search: Search, count: int) -> None:
    """All FINISHED, in as many runs, each with its result and one model that can be loaded."""
    assert search.statuses == ["FINISHED"] * count
    assert all(map(search.is_complete, search.trials))


def test_trial_whose_process_was_killed_is_repeated_in_the_same_run(ray: Clone, client: MlflowClient) -> None:
    python(ray, KILLED)
    assert_trials_are_complete(Search(client, "killed"), 2)


def test_search_survives_a_killed_worker(ray: Clone, client: MlflowClient) -> None:
    search = Search(client, "worker")
    searches.close_gate(client)
    with searches.started(ray, "worker", 4) as running:
        wait_until(lambda: search.begun == 2, seconds=240)
        searches.kill(ray, containers(ray, "ray-worker")[0])
        searches.open_gate(client)
        printed, _ = running.communicate(timeout=400)
    assert "ended 4" in printed, printed
    assert_trials_are_complete(search, 4)


def test_number_of_workers_is_kept_by_make_up_and_compose(ray: Clone) -> None:
    ray.set(RAY_WORKERS="1")
    started = ray.make("up")
    assert started.returncode == 0, started.stdout + started.stderr
    assert len(containers(ray, "ray-worker")) == 1
    ray.compose("up", "--detach", "--wait", "--no-build")
    assert len(containers(ray, "ray-worker")) == 1
