"""The client in every kind of process, compared with MLflow's own: acknowledged calls are stored, and errors are equal."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration import processes
from tests.support.clone import ROOT
from tests.support.service import Service

WRITE = "import pathlib, sys; path = pathlib.Path(sys.argv[1]); path.parent.mkdir(exist_ok=True); path.write_text(sys.argv[2])"
HERE = Path(__file__).parent
# In a folder of PYTHONPATH: Python runs it first, and MLflow does not find mlstack's plugins.
MASK = """
import importlib.metadata
found = importlib.metadata.entry_points
importlib.metadata.entry_points = lambda **group: [each for each in found(**group) if not each.value.startswith("mlstack")]
"""


def run(jupyter: Service, program: str, **environment: str) -> str:
    """The output of a program that is a file, as children that are spawned need it."""
    jupyter.run("python3", "-c", WRITE, "/tmp/programs/program.py", program)  # noqa: S108 # in the container
    settings = [f"{name}={value}" for name, value in ({"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"} | environment).items()]
    return jupyter.run("env", *settings, "python3", "/tmp/programs/program.py")  # noqa: S108 # in the container


def result_of(printed: str) -> Any:
    """What the program prints after RUN, as JSON."""
    return json.loads(next(line for line in printed.splitlines() if line.startswith("RUN ")).removeprefix("RUN "))


def test_docs_say_for_every_kind_of_process_what_may_be_lost() -> None:
    _, table = (ROOT / "docs/logging.md").read_text().split("<!-- begin: kinds of processes -->")
    rows = [
        line.split(" | ")[0].removeprefix("| ")
        for line in table.split("<!-- end -->")[0].splitlines()
        if line.endswith("| none |")
    ]
    assert rows == [*processes.KINDS]


def test_metrics_of_every_kind_of_process_are_stored_when_it_ends(jupyter: Service) -> None:
    printed = run(jupyter, (HERE / "processes.py").read_text())
    counts = [json.loads(line.removeprefix("STORED ")) for line in printed.splitlines() if line.startswith("STORED ")]
    assert [kind for kind, _, _ in counts] == [*processes.KINDS]
    assert [count for count in counts if count[1] != count[2]] == []


def test_wrong_metric_raises_as_in_mlflow_and_loses_no_other(jupyter: Service) -> None:
    program = (HERE / "odd_metrics.py").read_text()
    ours = result_of(run(jupyter, program))
    jupyter.run("python3", "-c", WRITE, "/tmp/mask/sitecustomize.py", MASK)  # noqa: S108 # in the container
    genuine = result_of(run(jupyter, program, PYTHONPATH="/tmp/mask"))  # noqa: S108 # in the container
    assert ours == genuine
    for said_of, stored in ours.values():
        assert [step for key, _, _, step in stored if key == "good"] == list(range(2 * len(said_of)))


def test_fork_during_request_leaves_no_child_waiting(jupyter: Service) -> None:
    """A child that inherits the lock of an import would wait for it forever."""
    result = result_of(
        run(
            jupyter,
            """
import json, multiprocessing, threading, time, mlflow
client, context = mlflow.MlflowClient(), multiprocessing.get_context("fork")
run = client.create_run("0").info.run_id
def log(step):
    client.log_metric(run, "loss", 1, step=step)
stuck = 0
for step in range(60):
    client.log_metric(run, "other", 1, step=step)
    threading.Thread(target=mlflow.flush_async_logging).start()
    time.sleep(0.0007 * (step % 8))
    child = context.Process(target=log, args=(step,))
    child.start()
    child.join(30)
    if child.is_alive():
        stuck += 1
        child.kill()
        break
print("RUN", json.dumps([stuck, len(client.get_metric_history(run, "loss"))]))
""",
        )
    )
    assert result == [0, 60]


def test_batch_that_is_rejected_for_its_content_is_stored_point_by_point(jupyter: Service) -> None:
    """A metric of a model that does not exist passes every check of a client."""
    result = result_of(
        run(
            jupyter,
            """
import json, mlflow
client = mlflow.MlflowClient()
run = client.create_run("0").info.run_id
client.log_metric(run, "good", 1, step=1000)
for step in range(10):
    client.log_metric(run, "good", 1, step=step)
wrong = client.log_batch(run, metrics=[mlflow.entities.Metric("w" * 250, 1.0, 1, 0, model_id="m-none" * 100)])
told = []
try:
    wrong.wait()
except mlflow.MlflowException as error:
    told.append("wait")
try:
    mlflow.flush_async_logging()
except mlflow.MlflowException as error:
    told.append(str(error).splitlines()[0].split(run)[0])
    print(error)
print("RUN", json.dumps([told, len(client.get_metric_history(run, "good"))]))
""",
        )
    )
    assert result == [["wait", "not every metric that was logged is stored: 1 of run "], 11]


def test_run_reports_its_own_losses_and_flush_those_of_all(jupyter: Service) -> None:
    result = result_of(
        run(
            jupyter,
            """
import json, mlflow
client, told = mlflow.MlflowClient(), {}
def attempt(name, call):
    try:
        call()
        told[name] = ""
    except mlflow.MlflowException as error:
        told[name] = str(error).splitlines()[0]
def loses():
    run = client.create_run("0").info.run_id
    client.delete_run(run)
    for step in range(3):
        client.log_metric(run, "loss", 1, step=step, synchronous=False)
    return run
lost, lost_too = loses(), loses()
with mlflow.start_run() as good:
    mlflow.log_metric("loss", 1)
attempt("its end", lambda: client.set_terminated(lost))
attempt("the flush", mlflow.flush_async_logging)
attempt("a second flush", mlflow.flush_async_logging)
print("RUN", json.dumps([client.get_run(good.info.run_id).info.status, lost, lost_too, told]))
""",
        )
    )
    status, lost, lost_too, messages = result
    assert status == "FINISHED"
    assert f"3 of run {lost}" in messages["its end"] and lost_too not in messages["its end"]
    assert f"3 of run {lost_too}" in messages["the flush"] and lost not in messages["the flush"].split("could not")[0]
    assert messages["a second flush"] == ""


@pytest.mark.parametrize("environment", [{}, {"MLFLOW_ENABLE_ASYNC_LOGGING": "false"}])
def test_calls_return_what_mlflow_returns(jupyter: Service, environment: dict[str, str]) -> None:
    result = result_of(
        run(
            jupyter,
            """
import io, json, sys, contextlib, mlflow
from IPython.core.interactiveshell import InteractiveShell
value = mlflow.log_param("depth", 3)
found = [value, mlflow.log_params({"a": 1}), mlflow.set_tag("b", 2), mlflow.set_tags({"c": 3})]
try:
    mlflow.log_param("depth", 4)
except mlflow.MlflowException as error:
    found.append(str(error).replace(mlflow.active_run().info.run_id, "RUN"))
shown = io.StringIO()
with contextlib.redirect_stdout(shown):
    shell = InteractiveShell.instance()
    shell.run_cell("import mlflow")
    shell.run_cell("mlflow.log_metric('a', 1)")
    shell.run_cell("mlflow.log_metrics({f'm{n}': n for n in range(2500)})")
found.append(shown.getvalue().replace("Out[0]: ", ""))  # the prompts
mlflow.end_run()
found.append(len(mlflow.last_active_run().data.metrics))
print("RUN", json.dumps(found))
""",
            **environment,
        )
    )
    assert result[:4] == [3, None, None, None]
    assert result[4].startswith(
        "INVALID_PARAMETER_VALUE: Changing param values is not allowed. Param with key='depth' was already logged with value='3'"
        " for run ID='RUN'. Attempted logging new value '4'."
    )
    assert result[5:] == ["", 2501]


NAMES = """
import json, tempfile, mlflow
from pathlib import Path
from mlstack.client import artifact_repository
if not LINKS:
    artifact_repository.minio.is_reached = lambda _: False
client, found = mlflow.MlflowClient(), {}
def files(run, path=None):
    for file in client.list_artifacts(run, path):
        yield from files(run, file.path) if file.is_dir else [file.path]
def outcome(name, path=None):
    run = client.create_run("0").info.run_id
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as down:
        file = Path(folder, name)
        file.write_text(name)
        try:
            client.log_artifact(run, str(file), path)
        except mlflow.MlflowException as error:
            return [str(error).splitlines()[0], *files(run)]
        stored = f"{path}/{name}" if path else name
        assert [*files(run)] == [stored], [*files(run)]
        assert Path(client.download_artifacts(run, stored, down)).read_text() == name
        client.download_artifacts(run, path or "", down)
        assert Path(down, stored).read_text() == name
        return ["kept"]
for name in [KEPT, REFUSED]:
    found[name] = outcome(name)
for path in ["d e", "./d", "d/../e", "C:\\\\x", "d#e", "d%20e"]:
    found["path " + path] = outcome("f", path)
print("RUN", json.dumps(found))
"""
KEPT = ["plain.txt", "a b", "a ", "a+b", "a&b=c", "a;b", "100%", "é", "日本", "..a", "~", "a'b\"c", "a*", ".hidden", "a\\b"]
REFUSED = ["a#b", "a?b", " a", "C:\\x", "C:x", "a%20b", "a%2Fb", "a%23b", "a\nb", "\x01a"]


@pytest.mark.parametrize("through_urls", [True, False])
def test_artifact_name_is_kept_or_rejected(jupyter: Service, through_urls: bool) -> None:
    kept, refused = KEPT, REFUSED
    program = NAMES.replace("LINKS", str(through_urls)).replace("[KEPT, REFUSED]", repr([*kept, *refused]))
    result = result_of(run(jupyter, program))
    assert {name: result[name] for name in kept} == {name: ["kept"] for name in kept}
    for name in [*refused, "path C:\\x", "path d#e", "path d%20e"]:
        (message,) = result[name]
        assert "cannot be kept" in message, name
    assert result["path d e"] == ["kept"]
    for path in ("./d", "d/../e"):
        (message,) = result[f"path {path}"]
        assert message.startswith(f"Invalid artifact path: '{path}'")
