"""docs/recipes.md: every block is run in Jupyter's container as it stands."""

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.clone import ROOT, Clone

# The first block below each heading.
BLOCKS = {
    section.partition("\n")[0]: block[1]
    for section in (ROOT / "docs/recipes.md").read_text(encoding="utf-8").split("\n## ")
    if (block := re.search(r"```(?:python|sh)\n(.*?)```", section, re.DOTALL))
}
PACKAGES = ("optuna", "opentelemetry-exporter-otlp-proto-http")
MODEL = """
import mlflow
import numpy
from sklearn.linear_model import LinearRegression

x = numpy.arange(10.0).reshape(-1, 1)
mlflow.sklearn.log_model(LinearRegression().fit(x, 2 * x), name="model", registered_model_name="served")
mlflow.MlflowClient().set_registered_model_alias("served", "champion", 1)
"""


@pytest.fixture(scope="module")
def stack(clone: Clone) -> Iterator[Clone]:
    with clone.started():
        clone.in_container("jupyter", "pip", "install", "--quiet", *PACKAGES)
        yield clone


def run(stack: Clone, program: str, typed: str = "") -> str:
    """What a program printed last, in the notebooks' container. `typed` answers its questions."""
    done = subprocess.run(
        ["docker", "compose", "exec", "--no-TTY", "jupyter", "python", "-c", program],
        cwd=stack.folder, input=typed, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_own_account_owns_what_it_creates(stack: Clone) -> None:
    (password,) = re.findall(r"MLFLOW_TRACKING_PASSWORD=(\S+)", stack.make("user", NAME="ada", YES="1").stdout)
    create = "import mlflow\nprint(mlflow.create_experiment('mine'))"
    experiment = run(stack, BLOCKS["Use your own account in Jupyter"] + create, f"ada\n{password}\n").split()[-1]
    delete = f"""
import mlflow

try:
    mlflow.MlflowClient().delete_experiment("{experiment}")
except mlflow.MlflowException as error:
    print(error)
"""
    assert "Permission denied" in run(stack, delete)


def test_trials_in_threads_are_complete(stack: Clone) -> None:
    count = """
client = mlflow.MlflowClient()
trials = mlflow.search_runs(filter_string=f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
print([len(trials), *set(trials.status), *{len(client.get_metric_history(run, "loss")) for run in trials.run_id}])
"""
    assert run(stack, BLOCKS["Trials in threads"] + count) == "[12, 'FINISHED', 20]"


def test_spans_become_a_trace(stack: Clone) -> None:
    search = """
experiment = mlflow.get_experiment_by_name("spans").experiment_id
print([span.name for trace in mlflow.search_traces(locations=[experiment], return_type="list") for span in trace.data.spans])
"""
    assert run(stack, BLOCKS["Traces by OpenTelemetry"] + search) == "['answer']"


def test_model_is_served(stack: Clone) -> None:
    run(stack, MODEL + "\nprint('registered')")
    ask = f"""
import json, shlex, subprocess, urllib3

server = subprocess.Popen(shlex.split({BLOCKS["Serve a model"]!r}), stderr=subprocess.STDOUT, stdout=open("/tmp/serve.log", "w"))
pool = urllib3.PoolManager(retries=urllib3.Retry(300, backoff_factor=0.5, backoff_max=1))
answer = pool.request("POST", "http://127.0.0.1:5055/invocations", json={{"inputs": [[4.0]]}})
server.terminate()
server.wait()
print(answer.json())
"""
    assert run(stack, ask) == "{'predictions': [[8.0]]}"
