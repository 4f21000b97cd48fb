"""Metrics that a notebook logs without waiting (mlstack.client.metric_queue): nothing but the speed differs."""

import json
from typing import Any

from mlstack.postgres import connected
from mlstack.settings import Login
from tests.support.service import Service


def stored(role: Login, run: str) -> list[tuple[Any, ...]]:
    with connected(role) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT status, count(*), count(DISTINCT step)"
            " FROM runs JOIN metrics USING (run_uuid) WHERE run_uuid = %s GROUP BY status",
            (run,),
        )
        return cursor.fetchall()


def run_of(jupyter: Service, program: str) -> Any:
    """What the program prints after RUN, as JSON."""
    printed = jupyter.run("python3", "-c", program)
    return json.loads(next(line for line in printed.splitlines() if line.startswith("RUN ")).removeprefix("RUN "))


def test_script_that_does_not_end_its_run_loses_nothing(jupyter: Service, role: Login) -> None:
    run = run_of(
        jupyter,
        """
import json, mlflow
run = mlflow.start_run()
print("RUN", json.dumps(run.info.run_id))
for step in range(2500):
    mlflow.log_metric("loss", 1 / (step + 1), step=step)
""",
    )
    assert stored(role, run) == [("FINISHED", 2500, 2500)]


def test_script_without_an_active_run_loses_nothing(jupyter: Service, role: Login) -> None:
    run = run_of(
        jupyter,
        """
import json, mlflow
client = mlflow.MlflowClient()
run = client.create_run("0").info.run_id
print("RUN", json.dumps(run))
for step in range(2500):
    client.log_metric(run, "loss", 1 / (step + 1), step=step)
""",
    )
    assert stored(role, run) == [("RUNNING", 2500, 2500)]


def test_script_that_fails_keeps_what_it_logged(jupyter: Service, role: Login) -> None:
    code, output = jupyter.wrapped.exec_run(
        [
            "python3",
            "-c",
            "import mlflow\nrun = mlflow.start_run()\nprint('RUN', run.info.run_id)\nmlflow.log_metric('a', 1)\n1 / 0",
        ]
    )
    text = output.decode()
    assert code == 1 and "ZeroDivisionError" in text
    run = text.split("RUN ")[1].split()[0]
    assert stored(role, run)[0][1] == 1


def test_program_reads_what_it_has_just_logged(jupyter: Service) -> None:
    seen = run_of(
        jupyter,
        """
import json, mlflow
client, seen = mlflow.MlflowClient(), []
with mlflow.start_run() as run:
    for step in range(5):
        mlflow.log_metric("loss", step, step=step)
        seen.append(client.get_run(run.info.run_id).data.metrics["loss"])
    mlflow.log_metric("late", 1)
    seen.append(len(mlflow.search_runs(filter_string="metrics.late = 1 and attributes.run_id = '" + run.info.run_id + "'")))
print("RUN", json.dumps(seen))
""",
    )
    assert seen == [0, 1, 2, 3, 4, 1]


def test_wrong_argument_raises_at_the_call(jupyter: Service) -> None:
    messages = run_of(
        jupyter,
        """
import json, mlflow
told = []
def attempt(call, *arguments):
    try:
        call(*arguments)
    except mlflow.MlflowException as error:
        told.append(error.message[:80])
with mlflow.start_run():
    mlflow.log_param("depth", 1)
    attempt(mlflow.log_param, "depth", 2)
    attempt(mlflow.log_metric, "no such name!", 1)
    mlflow.log_metric("fine", 1)
print("RUN", json.dumps(told))
""",
    )
    assert len(messages) == 2 and "Changing param values" in messages[0] and "Invalid value" in messages[1], messages


def test_loss_is_reported_at_the_end_of_the_run(jupyter: Service) -> None:
    message = run_of(
        jupyter,
        """
import json, mlflow
from mlstack.errors import MlstackError
client = mlflow.MlflowClient()
run = client.create_run("0").info.run_id
client.delete_run(run)
client.log_metric(run, "loss", 1)
client.get_run(run)
try:
    client.set_terminated(run)
except MlstackError as error:
    print("RUN", json.dumps(str(error)))
""",
    )
    assert "1 of run" in message and "must be in the 'active' state" in message
