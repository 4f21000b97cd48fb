"""The optional part `ray`: tasks on two workers, and who is let in."""

import io
import json
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clone import Clone

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


@pytest.fixture(scope="module")
def ray(stack: Clone) -> Iterator[Clone]:
    """The stack with the part on and two workers."""
    stack.set(RAY_WORKERS="2")
    added = stack.make("add", PART="ray")
    assert added.returncode == 0, added.stdout + added.stderr
    yield stack


def python(stack: Clone, program: str, *arguments: str, **environment: str) -> str:
    return stack.in_container("jupyter", "python3", "-c", program, *arguments, **environment)


def containers(stack: Clone, service: str) -> list[str]:
    return stack.compose("ps", "--quiet", service).split()


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
