"""Traces that were read from a server, stored by MLflow itself."""

import json
from pathlib import Path

from mlflow.entities import Trace
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracing.constant import TraceTagKey
from mlflow.utils.mlflow_tags import MLFLOW_ARTIFACT_LOCATION


def add(traces: Path, database: Path) -> list[str]:
    """Adds a file with one trace in each line, as JSON. Returns what could not be added."""
    store = SqlAlchemyStore(f"sqlite:///{database}", str(database.parent / "artifacts"))
    problems = []
    with traces.open(encoding="utf-8") as lines:
        for line in lines:
            trace = Trace.from_dict(json.loads(line))
            for tag in (TraceTagKey.SPANS_LOCATION, TraceTagKey.ARCHIVE_LOCATION):  # of the server, which has read archived spans
                trace.info.tags.pop(tag, None)
            trace.info.tags.pop(MLFLOW_ARTIFACT_LOCATION, None)
            try:
                store.start_trace(trace.info)
                if trace.data.spans:
                    store.log_spans(str(trace.info.experiment_id), trace.data.spans)
            except MlflowException as error:
                problems.append(f"trace {trace.info.trace_id}: {error.message}")
    return problems
