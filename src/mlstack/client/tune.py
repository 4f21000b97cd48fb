"""A search for the best parameters on the workers of the part `ray`. Every trial is a run of MLflow, a child of the search's run.

from mlstack import tune
study = tune.search("depth", objective, {"depth": optuna.distributions.IntDistribution(2, 12)}, trials=20)

The search creates the runs and tasks resume them by id, so that a trial whose worker was lost is repeated in the same run. A
search that was interrupted leaves no run RUNNING; the same call continues it, without the trials that FINISHED.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import mlflow
import requests
from mlflow.entities import Param, Run

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.logger import get_logger

if TYPE_CHECKING:
    import optuna

log = get_logger("mlstack.tune")

Objective = Callable[[Mapping[str, Any]], float]

SECONDS = 10  # for an answer of the head
ATTEMPTS = 5  # of a trial, whose worker is lost each time
# The metric of a trial with its result, and the tags by which a search finds its runs again.
RESULT = "objective"
SEARCH, PARAMETERS, PARENT = "mlstack.search", "mlstack.parameters", "mlflow.parentRunId"
_WHY = "Trials run on its workers."
_ENDED = ("FINISHED", "FAILED", "KILLED")


def connect() -> None:
    """Connects to the stack's Ray, unless this process is connected. Raises MlstackError within SECONDS if it is not let in."""
    import grpc
    import ray

    if ray.is_initialized():
        return
    _require_access()
    ray.shutdown()  # a connection that was lost while nothing used it: ray.init() would refuse another
    try:
        ray.init(log_to_driver=False)
    except (ConnectionError, grpc.RpcError) as error:
        raise MlstackError(f"Ray accepts no connection: {error}", _WHY, "make logs SERVICE=ray-head; make doctor") from error


def search(  # what a search is
    name: str,
    objective: Objective,
    space: "Mapping[str, optuna.distributions.BaseDistribution]",
    *,
    trials: int,
    direction: str = "minimize",
    parallel: int = 8,
    cpus: float = 1,
    sampler: "optuna.samplers.BaseSampler | None" = None,
) -> "optuna.Study":
    """The study of a search in the active experiment, when `trials` of its trials have ended, those of earlier calls included.

    `objective` gets a trial's parameters and runs on a worker, inside the trial's run, where it may log what it wants. What it
    returns is logged as the metric `objective`. If it raises, the run is FAILED and the search continues. At most `parallel`
    trials run or wait at a time. One process at a time continues a search. Raises MlstackError when Ray is lost.
    """
    import optuna
    import ray

    connect()
    parent = _parent(name)
    study = optuna.create_study(direction=direction, sampler=sampler or optuna.samplers.TPESampler(constant_liar=True))
    _restored(study, parent, space)
    task = ray.remote(num_cpus=cpus, max_retries=ATTEMPTS)(_run_trial)
    waiting: dict[Any, tuple[optuna.Trial, str]] = {}
    with _ended(parent, waiting):
        while len(study.trials) < trials or waiting:
            while len(study.trials) < trials and len(waiting) < parallel:
                trial = study.ask(dict(space))
                child = _child(parent, trial)
                waiting[task.remote(objective, child, trial.params)] = trial, child
            (reference, *_), _ = ray.wait(list(waiting))
            _tell(study, reference, *waiting[reference])
            del waiting[reference]
    return study


def _run_trial(objective: Objective, run_id: str, params: Mapping[str, Any]) -> float:
    """A trial, on a worker. An earlier attempt, whose worker was lost, may have ended the run or left half a model."""
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    if run.info.status == "FINISHED" and RESULT in run.data.metrics:
        return float(run.data.metrics[RESULT])
    for model in client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'"):
        client.delete_logged_model(model.model_id)
    with mlflow.start_run(run_id=run_id) as active:
        if active.outputs:  # deleted models stay among them: MLflow would log metrics to these too, which its server denies
            active.outputs.model_outputs.clear()
        value = float(objective(params))
        mlflow.log_metric(RESULT, value)
    return value


def _tell(study: "optuna.Study", reference: Any, trial: "optuna.Trial", child: str) -> None:
    """Reports a trial that has ended to the study."""
    import optuna
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

    try:
        study.tell(trial, ray.get(reference))
    except (WorkerCrashedError, NodeDiedError, OutOfMemoryError):
        log.warning("trial %d (run %s) lost its worker %d times", trial.number, child, ATTEMPTS + 1)
    except RayTaskError as error:
        log.warning("trial %d (run %s) failed: %s", trial.number, child, error.cause)
    else:
        return
    mlflow.MlflowClient().set_terminated(child, "FAILED")  # the task itself may have failed to
    study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _parent(name: str) -> Run:
    """The run of a search in the active experiment: that of an earlier call, or a new one."""
    runs: list[Run] = mlflow.search_runs(filter_string=f"tags.`{SEARCH}` != ''", output_format="list")
    if earlier := [run for run in runs if run.data.tags[SEARCH] == name]:
        return earlier[0]
    created: Run = mlflow.start_run(run_name=name, tags={SEARCH: name}, nested=True)
    mlflow.end_run()
    return created


def _child(parent: Run, trial: "optuna.Trial") -> str:
    """A new run for a trial: it exists before the task does, which may be started more than once."""
    tags = {PARENT: parent.info.run_id, PARAMETERS: json.dumps(trial.params)}
    client = mlflow.MlflowClient()
    run = client.create_run(parent.info.experiment_id, tags=tags, run_name=f"{parent.info.run_name}-{trial.number}")
    client.log_batch(run.info.run_id, params=[Param(key, str(value)) for key, value in trial.params.items()])
    return str(run.info.run_id)


def _restored(study: "optuna.Study", parent: Run, space: "Mapping[str, optuna.distributions.BaseDistribution]") -> None:
    """Adds the FINISHED trials of earlier calls to the study, and ends those that an interrupted call left RUNNING."""
    import optuna

    children = list(_children(parent))
    _end_running(children)
    for run in children:
        if run.info.status == "FINISHED" and RESULT in run.data.metrics:
            params = json.loads(run.data.tags[PARAMETERS])
            try:
                restored = optuna.trial.create_trial(params=params, distributions=dict(space), value=run.data.metrics[RESULT])
            except ValueError as error:
                raise MlstackError(
                    f"the search {parent.info.run_name} has a trial with {params}, which is not in this space.",
                    "It would continue with results of another search.",
                    "give the search another name, or delete its run in MLflow",
                ) from error
            study.add_trial(restored)


def _end_running(trials: Iterable[Run]) -> None:
    """Ends those that run, also one whose task Ray never got."""
    for run in trials:
        if run.info.status not in _ENDED:
            mlflow.MlflowClient().set_terminated(run.info.run_id, "KILLED")


def _children(parent: Run) -> Iterator[Run]:
    token = None
    while True:
        page = mlflow.MlflowClient().search_runs(
            [parent.info.experiment_id],
            f"tags.`{PARENT}` = '{parent.info.run_id}'",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def _ended(parent: Run, waiting: Mapping[Any, tuple["optuna.Trial", str]]) -> Iterator[None]:
    """The search's run is active inside. Whatever ends it early, no trial stays RUNNING. Raises MlstackError if Ray was lost."""
    import grpc
    import ray

    try:
        with mlflow.start_run(run_id=parent.info.run_id, nested=True):
            yield
    except BaseException as error:
        is_lost = isinstance(error, (ConnectionError, grpc.RpcError, ray.exceptions.RaySystemError))
        try:
            if not is_lost:
                for reference in waiting:
                    ray.cancel(reference, force=True)
        finally:
            _end_running(_children(parent))
        if is_lost:
            ray.shutdown()  # this connection does not return: the next call makes another
            raise MlstackError(
                f"Ray was lost while {len(waiting)} trials ran: {error}",
                "They are ended as KILLED; those that FINISHED are kept.",
                "the same call again continues the search; make doctor",
            ) from error
        raise


def _require_access() -> None:
    """Asks the head over HTTP before Ray does: Ray reports a wrong token of its client late, and not as such."""
    address = settings.of_shell("RAY_API_SERVER_ADDRESS")
    if not address:
        raise MlstackError("this notebook has no Ray.", _WHY, "make add PART=ray on the host")
    token = settings.of_shell("RAY_AUTH_TOKEN")
    try:
        status = requests.get(
            f"{address}/api/version", headers={"Authorization": f"Bearer {token}"} if token else {}, timeout=SECONDS
        ).status_code
    except requests.RequestException as error:
        raise MlstackError(
            f"Ray at {address} does not answer: {type(error).__name__}.", _WHY, "make add PART=ray, or make up if the part is on"
        ) from error
    if status in (401, 403):
        raise MlstackError(
            f"Ray rejects {'the token in RAY_AUTH_TOKEN' if token else 'a client without RAY_AUTH_TOKEN'} ({status}).",
            _WHY,
            "make up gives Jupyter the RAY_TOKEN of .env; then restart the kernel",
        )
    if status != 200:  # noqa: PLR2004
        raise MlstackError(f"Ray at {address} answers {status}.", _WHY, "make logs SERVICE=ray-head")
