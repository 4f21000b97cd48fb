"""The part `ray`: Ray's own libraries, a lost head, a foreign node, new secrets, and the figures of docs/scale.md.

make test-slow REPORT=1 TESTS="-k test_ray" writes the page's table.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from statistics import median

import pytest
from mlflow import MlflowClient

from benchmarks import report
from benchmarks.figures import number
from benchmarks.stacks import used_memory
from mlstack.host.compose import docker
from mlstack.host.engine import connect
from tests.support import searches
from tests.support.clone import ROOT, Clone, make_clone
from tests.support.pages import begin, write_block
from tests.support.searches import Search, containers
from tests.support.service import wait_until

PAGE = ROOT / "docs/scale.md"
TRIALS, WAITING = 8, 8  # trials of a search, and the seconds that each waits
TASKS, REPETITIONS = 1000, 5
REST = 60  # seconds
MIB, NANOSECONDS = 2**20, 1e9

JOB = """
import time
from ray.job_submission import JobSubmissionClient
client = JobSubmissionClient()
job = client.submit_job(entrypoint="python3 -c 'import ray; print(ray.get(ray.remote(lambda: 6 * 7).remote()))'")
while not client.get_job_status(job).is_terminal():
    time.sleep(0.5)
print(client.get_job_status(job), client.get_job_logs(job).split()[-1])
"""
DATA = """
import ray
ray.init(log_to_driver=False)

@ray.remote(num_cpus=0)
def total():
    import ray.data
    return ray.data.range(1000).map_batches(lambda batch: dict(id=batch["id"] * 2)).sum("id")

print(ray.get(total.remote()))
"""
TUNE = """
import ray
from ray import tune
ray.init(log_to_driver=False)

def trainable(config):
    tune.report(dict(score=config["x"] ** 2))

chosen = tune.TuneConfig(reuse_actors=True, metric="score", mode="max")
best = tune.Tuner(trainable, param_space=dict(x=tune.grid_search([1, 2, 3])), tune_config=chosen).fit().get_best_result()
print(best.config, best.metrics["score"])
"""
# LightGBM on two nodes, whose rows differ by 100: its model is between them. What stays is in MLflow, not in a checkpoint.
TRAIN = """
import mlflow, ray
ray.init(log_to_driver=False)
mlflow.set_experiment("trained")

def train():
    import lightgbm, mlflow, numpy
    import ray.train, ray.train.lightgbm
    rank = ray.train.get_context().get_world_rank()
    x = numpy.arange(rank, 400.0, 2).reshape(-1, 1)
    parameters = dict(objective="regression", tree_learner="data", pre_partition=True, num_threads=1, verbose=-1)
    rows = lightgbm.Dataset(x, x.ravel() + 100 * rank)
    booster = lightgbm.train(parameters | ray.train.lightgbm.get_network_params(), rows, 60)
    if rank == 0:
        mlflow.set_experiment("trained")
        with mlflow.start_run():
            mlflow.lightgbm.log_model(booster, name="model", pip_requirements=["lightgbm"])

@ray.remote(num_cpus=0.5)
def fit():
    from ray.train import ScalingConfig
    from ray.train.lightgbm import LightGBMTrainer
    two = ScalingConfig(num_workers=2, resources_per_worker=dict(CPU=0.5), placement_strategy="STRICT_SPREAD")
    LightGBMTrainer(train, scaling_config=two).fit()

ray.get(fit.remote())
(logged,) = mlflow.search_logged_models(output_format="list")
model = mlflow.lightgbm.load_model(logged.model_uri)
print([bool(abs(model.predict([[x]])[0] - x - 50) < 20) for x in (50.0, 350.0)])
"""
# Its connection is lost while it waits for a line of input.
IDLE = """
import mlflow, optuna
from mlstack import tune

mlflow.set_experiment("searches")
tune.connect()
print("connected", flush=True)
input()
study = tune.search("idle", lambda params: params["x"], dict(x=optuna.distributions.FloatDistribution(0, 1)), trials=2)
print("ended", len(study.trials))
"""
FIGURES = f"""
import json, sys, time, mlflow, optuna, ray
from mlstack import tune

def objective(params):
    time.sleep({WAITING})
    return params["x"]

mlflow.set_experiment("figures")
tune.connect()
begun = time.monotonic()
space = dict(x=optuna.distributions.FloatDistribution(0, 1))
tune.search(sys.argv[1], objective, space, trials={TRIALS}, parallel={TRIALS})
searched = time.monotonic() - begun

@ray.remote
def empty():
    pass

def tasks(count):
    begun = time.monotonic()
    ray.get([empty.remote() for _ in range(count)])
    return time.monotonic() - begun

tasks(100)
print(json.dumps([searched, [tasks({TASKS}) for _ in range({REPETITIONS})]]))
"""


@pytest.fixture(scope="module")
def ray(clone: Clone) -> Iterator[Clone]:
    """A stack with the part on and two workers."""
    clone.set(COMPOSE_PROFILES="ray", RAY_WORKERS="2")
    with clone.started():
        yield clone
    clone.set(COMPOSE_PROFILES="")


@pytest.fixture
def client(ray: Clone, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, ray.values[name])
    return MlflowClient(ray.values["MLFLOW_TRACKING_URI"])


@pytest.fixture(scope="module")
def measured() -> Iterator[dict[str, str]]:
    """The rows of the page's table. REPORT=1 writes it at the end."""
    rows: dict[str, str] = {}
    yield rows
    if os.environ.get("MLSTACK_REPORT"):
        host = report.machine()
        where = f"{host['cores']} cores ({host['processor']}), {host['memory']:.0f} GiB, Linux {host['kernel']}"
        lines = (f"| {what} | {value} |" for what, value in {"what": "measured", "---": "---", **rows}.items())
        block = "\n".join([f"Measured on {datetime.now(UTC):%Y-%m-%d} with {where}.", "", *lines])
        write_block(PAGE, begin("make test-slow"), block)


def python(stack: Clone, program: str, *arguments: str, **environment: str) -> str:
    """The last line that a program in Jupyter prints."""
    return stack.in_container("jupyter", "python3", "-c", program, *arguments, **environment).splitlines()[-1]


def kill_head(stack: Clone) -> None:
    (head,) = containers(stack, "ray-head")
    searches.kill(stack, head)


@pytest.mark.parametrize(
    ("program", "printed"),
    [(JOB, "SUCCEEDED 42"), (DATA, "999000"), (TUNE, "{'x': 3} 9"), (TRAIN, "[True, True]")],
    ids=["jobs", "data", "tune", "train"],
)
def test_library_of_ray_works_in_a_notebook(ray: Clone, program: str, printed: str) -> None:
    assert python(ray, program) == printed


def test_two_workers_search_faster_than_one_and_cost_little_at_rest(ray: Clone, measured: dict[str, str]) -> None:
    of_two, tasks = json.loads(python(ray, FIGURES, "two"))
    begun, used = time.monotonic(), usage(ray, "ray-head")[0]
    time.sleep(REST)
    head_used, head_memory = usage(ray, "ray-head")
    share = (head_used - used) / (time.monotonic() - begun)
    _, worker_memory = usage(ray, "ray-worker")
    ray.set(RAY_WORKERS="1")
    ray.up()
    of_one, _ = json.loads(python(ray, FIGURES, "one"))
    ray.set(RAY_WORKERS="2")
    ray.up()
    measured |= {
        f"a search with {TRIALS} trials that wait {WAITING} s each, 1 worker": f"{number(of_one)} s",
        "the same, 2 workers": f"{number(of_two)} s, {of_two / of_one:.0%}",
        f"{TASKS:,} empty tasks, median of {REPETITIONS}": f"{number(median(tasks) / TASKS * 1000)} ms each",
        "the head at rest": f"{number(head_memory)} MiB, {share:.0%} of a core",
        "a worker at rest": f"{number(worker_memory)} MiB",
    }
    assert of_two <= 0.75 * of_one
    assert head_memory <= 1.3 * 1024
    assert worker_memory <= 600
    assert share <= 0.15


def usage(stack: Clone, service: str) -> tuple[float, float]:
    """Seconds of CPU time and MiB of memory: the most of a service's containers."""
    stats = [connect().api.stats(container, stream=False, one_shot=True) for container in containers(stack, service)]
    return (
        max(stat["cpu_stats"]["cpu_usage"]["total_usage"] for stat in stats) / NANOSECONDS,
        max(used_memory(stat["memory_stats"]) for stat in stats) / MIB,
    )


def test_killed_head_leaves_no_trial_running_and_the_same_call_continues(
    ray: Clone, client: MlflowClient, measured: dict[str, str]
) -> None:
    search = Search(client, "head")
    searches.close_gate(client)
    with searches.started(ray, "head", 3) as running:
        wait_until(lambda: search.begun == 2, seconds=240)
        kill_head(ray)
        begun = time.monotonic()
        printed, _ = running.communicate(timeout=400)
        lost = time.monotonic() - begun
    assert "mlstack.errors.MlstackError: Ray was lost while 3 trials ran" in printed, printed
    assert search.statuses == ["KILLED"] * 3
    wait_until(lambda: searches.has_workers(ray, 2), seconds=400)
    measured["kill -9 of the head: until the search reports it, until all workers have joined again"] = (
        f"{number(lost)} s, {number(time.monotonic() - begun)} s"
    )
    searches.open_gate(client)
    with searches.started(ray, "head", 3) as running:
        printed, _ = running.communicate(timeout=400)
    assert "ended 3" in printed, printed
    assert search.statuses == ["FINISHED"] * 3 + ["KILLED"] * 3
    with searches.started(ray, "head", 4) as running:
        printed, _ = running.communicate(timeout=400)
    assert search.statuses == ["FINISHED"] * 4 + ["KILLED"] * 3, printed


def test_kernel_that_lost_the_head_while_idle_searches_again(ray: Clone, client: MlflowClient) -> None:
    with searches.program(ray, IDLE) as running:
        assert running.stdout
        while "connected" not in (line := running.stdout.readline()):
            assert line, "it ended early"
        kill_head(ray)
        wait_until(lambda: searches.has_workers(ray, 2), seconds=400)
        printed, _ = running.communicate("\n", timeout=400)
    assert "ended 2" in printed, printed
    assert Search(client, "idle").statuses == ["FINISHED"] * 2


@pytest.mark.refusal
def test_node_without_the_token_does_not_join(ray: Clone) -> None:
    with node(ray, RAY_AUTH_TOKEN="0" * 32) as container:
        wait_until(lambda: "The node of Ray has ended" in docker("logs", container), seconds=240)
        assert searches.joined(ray) == "2"
    with node(ray):
        wait_until(lambda: searches.joined(ray) == "3", seconds=240)


@contextmanager
def node(stack: Clone, **environment: str) -> Iterator[str]:
    """One more worker, as a container by hand: its id."""
    flags = [flag for name, value in environment.items() for flag in ("--env", f"{name}={value}")]
    container = stack.compose("run", "--detach", "--no-deps", *flags, "ray-worker").split()[-1]
    try:
        yield container
    finally:
        docker("stop", container)
        docker("rm", container)


# One task on each node: its address, a file that it has logged and read again, and the size of a large answer.
ON_EACH_NODE = """
import json, sys, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray.init(log_to_driver=False)

@ray.remote(num_cpus=1)
def task(written):
    import mlflow
    mlflow.set_experiment("several hosts")
    with mlflow.start_run() as run:
        mlflow.log_text(written, "written.txt")
    return ray.util.get_node_ip_address(), mlflow.artifacts.load_text(run.info.artifact_uri + "/written.txt"), bytes(2_000_000)

nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
on = [task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)) for node in nodes]
print(json.dumps(sorted([*answer[:2], len(answer[2])] for answer in ray.get([each.remote("seven") for each in on], timeout=200))))
"""
# What `ssh -L` does: connections to a port of one address continue to the same port of another one.
FORWARD = """
import asyncio, sys
here, there, *ports = sys.argv[1:]

async def copied(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def forwarded(port):
    async def connected(reader, writer):
        there_reader, there_writer = await asyncio.open_connection(there, port)
        await asyncio.gather(copied(reader, there_writer), copied(there_reader, writer))
    await (await asyncio.start_server(connected, here, port)).serve_forever()

async def main():
    await asyncio.gather(*map(forwarded, ports))

asyncio.run(main())
"""


@dataclass(frozen=True)
class Hosts:
    """The stack's host and a second one: a container whose network namespace has nothing but the network of both."""

    network: str
    first: str  # their addresses
    second: str


@pytest.fixture
def hosts(ray: Clone) -> Iterator[Hosts]:
    network = f"{ray.name}-hosts"
    docker("network", "create", network)
    (config,) = json.loads(docker("network", "inspect", network))[0]["IPAM"]["Config"]
    first = ip_address(config["Gateway"])
    ray.set(RAY_HOST=str(first))
    try:
        ray.up()
        yield Hosts(network, str(first), str(first + 1))
    finally:
        ray.set(RAY_HOST="")
        docker("network", "rm", network)
        ray.up()


@contextmanager
def second_host(stack: Clone, hosts: Hosts, folder: Path) -> Iterator[Clone]:
    """A clone with the settings of docs/scale.md, without its worker. Its host's network is that of a container."""
    clone = make_clone(folder, f"{stack.name}-second")
    of_the_first = {
        name: stack.values[name] for name in ("RAY_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_PORT", "MINIO_PORT")
    } | {"RAY_HOST": hosts.second, "RAY_HEAD": hosts.first, "RAY_NOTEBOOKS": "on"}
    clone.set(**of_the_first, JUPYTER_IMAGE=stack.image("jupyter"))
    path = clone.folder / "compose/ray-network.yml"
    path.write_text(path.read_text().replace("network_mode: host", f"network_mode: {hosts.network}"))
    try:
        yield clone
    finally:
        clone.erase()


@contextmanager
def forwarding(stack: Clone, hosts: Hosts, worker: str) -> Iterator[None]:
    """The ports of MLflow and MinIO on 127.0.0.1 of the second host, as `ssh -L` would forward them."""
    ports = [stack.values[name] for name in ("MLFLOW_PORT", "MINIO_PORT")]
    with subprocess.Popen([sys.executable, "-c", FORWARD, hosts.first, "127.0.0.1", *ports]) as here:
        try:
            docker("exec", "--detach", worker, "python3", "-c", FORWARD, "127.0.0.1", hosts.first, *ports)
            yield
        finally:
            here.kill()


@pytest.mark.refusal
def test_worker_of_a_second_host_joins_with_the_token_and_logs_to_mlflow(ray: Clone, hosts: Hosts, tmp_path: Path) -> None:
    with second_host(ray, hosts, tmp_path) as second:
        second.set(RAY_TOKEN="0" * 32)
        second.compose("up", "--detach", "--no-deps", "ray-worker")
        wait_until(lambda: "The node of Ray has ended" in second.compose("logs", "ray-worker"), seconds=240)
        assert searches.joined(ray) == "1"
        second.set(RAY_TOKEN=ray.values["RAY_TOKEN"])
        second.compose("up", "--detach", "--no-deps", "--wait", "ray-worker")
        wait_until(lambda: searches.joined(ray) == "2", seconds=240)
        with forwarding(ray, hosts, second.compose("ps", "--quiet", "ray-worker").strip()):
            answers = json.loads(python(ray, ON_EACH_NODE))
    assert answers == [[address, "seven", 2_000_000] for address in sorted((hosts.first, hosts.second))]


def test_rotate_makes_the_old_token_invalid_and_workers_return(ray: Clone) -> None:
    old = ray.values["RAY_TOKEN"]
    rotated = ray.make("rotate", YES="1")
    assert rotated.returncode == 0, rotated.stdout + rotated.stderr
    assert searches.joined(ray, RAY_AUTH_TOKEN=old) == "403"
    wait_until(lambda: searches.has_workers(ray, 2), seconds=400)
    examined = ray.make("doctor")
    assert examined.returncode == 0, examined.stdout + examined.stderr


def test_removed_part_leaves_nothing(ray: Clone) -> None:
    token = ray.values["RAY_TOKEN"]
    removed = ray.make("remove", PART="ray")
    assert removed.returncode == 0, removed.stdout + removed.stderr
    ray.up()
    label = f"label=com.docker.compose.project={ray.name}"
    names = docker("ps", "--all", "--format", "{{.Names}}", "--filter", label).split()
    assert names and not [name for name in names if "ray" in name.removeprefix(ray.name)]
    assert not [name for name in names if token in docker("inspect", name)]
    program = "import importlib.util; print(importlib.util.find_spec('ray'))"
    assert python(ray, program) == "None"
