"""docs/recipes.md: every block is run as it stands, in Jupyter's container or in one with Java and R."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlstack.host.compose import docker
from tests.support.clone import ROOT, Clone

# The first block below each heading.
BLOCKS = {
    section.partition("\n")[0]: block[1]
    for section in (ROOT / "docs/recipes.md").read_text(encoding="utf-8").split("\n## ")
    if (block := re.search(r"```(?:python|sh|java|r)\n(.*?)```", section, re.DOTALL))
}
PACKAGES = ("optuna", "opentelemetry-exporter-otlp-proto-http", "polars")
# dpkg installs Java only where the folder of manual pages exists.
LANGUAGES = """
FROM debian:trixie-slim
RUN mkdir -p /usr/share/man/man1 && apt-get update -qq && apt-get install -y -qq --no-install-recommends \\
    openjdk-21-jdk-headless r-cran-httr2 r-cran-jsonlite >/dev/null
"""
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


def test_data_set_is_put_and_opened_by_polars(stack: Clone) -> None:
    """Polars is in no image (docs/adr/0025)."""
    program = """
import polars
from mlstack import datasets

frame = polars.DataFrame({"n": range(1000), "text": ["ä"] * 1000})
datasets.put(frame, "of-polars")
print(datasets.open("of-polars", engine="polars").equals(frame), len(datasets.open("of-polars")))
"""
    assert run(stack, program) == "True 1000"


@pytest.mark.parametrize(
    ("heading", "file", "interpreter"), [("Log from Java", "FirstRun.java", "java"), ("Log from R", "first_run.R", "Rscript")]
)
def test_other_language_logs_a_run(stack: Clone, heading: str, file: str, interpreter: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(BLOCKS[heading])
    (tmp_path / "Dockerfile").write_text(LANGUAGES)
    image = docker("build", "--quiet", str(tmp_path)).strip()
    account = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    environment = {name: stack.values[name] for name in account} | {"MLFLOW_TRACKING_URI": stack.values["MLFLOW_TRACKING_URI"]}
    (tmp_path / "env").write_text("".join(f"{name}={value}\n" for name, value in environment.items()))
    logged = docker(
        "run", "--rm", "--network", "host", "--env-file", str(tmp_path / "env"), "--volume", f"{tmp_path}:/program:ro",
        image, interpreter, f"/program/{file}",
    ).split()[-1]  # fmt: skip
    read = f"""
import mlflow

run = mlflow.get_run({logged!r})
print([run.info.status, run.data.params, run.data.metrics])
"""
    assert run(stack, read) == "['FINISHED', {'rate': '0.1'}, {'loss': 0.5}]"
