"""Deletes runs, models, experiments and traces permanently, as MLflow does, and exactly what was confirmed."""

import os
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from mlstack import settings

# MLflow notes the days whose sums a deletion changes, whether or not TRACE_ROLLUPS is on in the server too.
ROLLUPS = {"MLFLOW_SQL_TRACE_ROLLUPS_ENABLED": "true"}


def delete(runs: list[str], models: list[str], experiments: list[str]) -> None:
    """Removes rows and artifacts of what is already in MLflow's trash. Raises MlflowException for anything else.

    `mlflow gc` on a command line takes an empty list for "all of them", so its function is called, which does not.
    """
    settings.publish_secrets()  # libpq reads the environment
    settings.publish(ROLLUPS)
    account = settings.admin_account()
    settings.publish({"MLFLOW_TRACKING_USERNAME": account.username, "MLFLOW_TRACKING_PASSWORD": account.password})
    import mlflow
    from mlflow.cli import _gc_tracking_resources
    from mlflow.server.handlers import _get_tracking_store

    from mlstack.jobs.bootstrap.mlflow import URI

    store = _get_tracking_store(URI, os.curdir)
    mlflow.set_tracking_uri("http://mlflow:5000")  # after the store, which sets its own URI: the server deletes the artifacts
    _gc_tracking_resources(
        backend_store=store,
        run_ids=runs,
        experiment_ids=experiments,
        logged_model_ids=models,
        older_than=None,
        time_delta=0,
        skip_experiments=not experiments,
        skip_logged_models=not models,
        ignore_not_found=True,
    )


def delete_traces(traces: Iterable[tuple[str, str]]) -> int:
    """Removes traces, given by experiment and id, with their spans and assessments. Returns how many.

    Their files stay, archived spans too: `purge` removes the folder of a trace once it has no row.
    """
    settings.publish_secrets()  # libpq reads the environment
    settings.publish(ROLLUPS)
    from mlflow.server.handlers import _get_tracking_store

    from mlstack.jobs.bootstrap.mlflow import URI

    store: Any = _get_tracking_store(URI, os.curdir)
    store._delete_archived_trace_payloads = lambda traces: [trace.trace_id for trace in traces]  # no key of the bucket is here
    ids = defaultdict(list)
    for experiment, trace in traces:
        ids[experiment].append(trace)
    return sum(store.delete_traces(experiment, trace_ids=trace_ids) for experiment, trace_ids in ids.items())
