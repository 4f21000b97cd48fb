"""Runs as tables, thousands at once: the result of mlflow.search_runs, and whole metric histories, in a fraction of the time.

    from mlstack.client import runs
    runs.dataframe(["flights"], filter_string="metrics.test_log_loss < 0.5")

Experiments, filters and orders are those of mlflow.search_runs, and so is the result: the same rows and values, all of them.
Rejected is what cannot be answered exactly: an experiment that does not exist or is not readable, another MLflow server.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from mlstack.errors import MlstackError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

PATH = "/api/2.0/mlstack/runs/search"
KINDS = ("metrics", "params", "tags")


def dataframe(experiment_names: Sequence[str] = (), **search: Any) -> "pd.DataFrame":
    """All runs that match, with the last value of each metric: equal to mlflow.search_runs, cell by cell.

    `search` may have experiment_ids, filter_string, order_by and view ("ACTIVE_ONLY", "DELETED_ONLY" or "ALL").
    Columns: run_id, experiment_id, status, artifact_uri, start_time, end_time, then metrics.*, params.*, tags.* by name.
    Raises MlstackError if it cannot be answered exactly.
    """
    return table(experiment_names, **search).to_pandas()


def table(experiment_names: Sequence[str] = (), **search: Any) -> "pa.Table":
    """The same as an Arrow table."""
    import numpy as np
    import pyarrow as pa

    runs, stream = _answer(experiment_names, search)
    values = _csv(stream, n=pa.int32(), kind=pa.string(), key=pa.string(), value=pa.string())
    columns = {name: runs[name] for name in runs.column_names}
    for kind, key, rows in _groups(values):
        place = np.full(len(runs), -1)
        place[values["n"].to_numpy()[rows]] = rows
        column = values["value"].take(pa.array(place, mask=place < 0))
        columns[f"{kind}.{key}"] = column.cast(pa.float64()).fill_null(float("nan")) if kind == "metrics" else column
    return pa.table(columns)


def history(experiment_names: Sequence[str] = (), *, metrics: Sequence[str] = (), **search: Any) -> "pd.DataFrame":
    """Every point of these metrics (none: of all) of all runs that match: run_id, key, step, timestamp, value.

    In the order of the runs, then of key, step and timestamp. Raises MlstackError when it cannot be answered exactly.
    """
    import pyarrow as pa

    runs, stream = _answer(experiment_names, search | {"history": True, "metrics": [*metrics]})
    points = _csv(stream, n=pa.int32(), key=pa.string(), step=pa.int64(), timestamp=pa.timestamp("us", "UTC"), value=pa.float64())
    return points.set_column(0, "run_id", runs["run_id"].take(points["n"])).to_pandas()


def _answer(experiment_names: Sequence[str], search: dict[str, Any]) -> tuple["pa.Table", Any]:
    """The matching runs, and the stream of their values."""
    import mlflow
    import pyarrow as pa

    from mlstack.client.upstream import get_default_host_creds, http_request

    names = [experiment_names] if isinstance(experiment_names, str) else [*experiment_names]
    request = {"experiment_names": names, "filter": search.pop("filter_string", None) or "", **search}
    server = mlflow.get_tracking_uri()
    mlflow.flush_async_logging()  # this process reads what it logged
    response = http_request(get_default_host_creds(server), PATH, "POST", json=request, stream=True)
    if response.status_code != HTTPStatus.OK:
        raise _rejection(server, response)
    length = int(response.raw.readline())
    runs = _csv(
        pa.BufferReader(response.raw.read(length)),
        run_id=pa.string(),
        experiment_id=pa.string(),
        status=pa.string(),
        artifact_uri=pa.string(),
        start_time=pa.timestamp("us", "UTC"),
        end_time=pa.timestamp("us", "UTC"),
    )
    return runs, response.raw


def _rejection(server: str, response: Any) -> MlstackError:
    if response.status_code == HTTPStatus.NOT_FOUND and "error_code" not in response.text:
        return MlstackError(
            f"the MLflow server at {server} has no route for runs as a table.",
            "It is not the server of an mlstack, or it is older than this client.",
            "make upgrade, or use mlflow.search_runs",
        )
    return MlstackError(
        f"the runs cannot be read: {response.text}",
        "Only an exact answer is given.",
        "correct the arguments, which are those of mlflow.search_runs",
    )


def _csv(stream: Any, **types: Any) -> "pa.Table":
    """A table in the format of Postgres' COPY, where NULL differs from an empty string and times are milliseconds."""
    import pyarrow as pa
    from pyarrow import csv

    table = csv.read_csv(
        stream,
        csv.ReadOptions(block_size=1 << 22),
        csv.ParseOptions(newlines_in_values=True),
        csv.ConvertOptions(
            column_types={name: pa.int64() if pa.types.is_timestamp(kind) else kind for name, kind in types.items()},
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )
    for name, kind in types.items():
        if pa.types.is_timestamp(kind):
            times = table[name].cast(pa.timestamp("ms", "UTC")).cast(kind)
            table = table.set_column(table.column_names.index(name), name, times)
    return table.combine_chunks()


def _groups(values: "pa.Table") -> "list[tuple[str, str, np.ndarray[Any, Any]]]":
    """The rows of the table with each kind and key, sorted by both."""
    import numpy as np

    kinds, keys = (values[name].combine_chunks().dictionary_encode() for name in ("kind", "key"))
    names = keys.dictionary.to_pylist()
    groups = []
    codes = keys.indices.to_numpy() + len(names) * kinds.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    present, starts = np.unique(codes[order], return_index=True)
    for code, rows in zip(present.tolist(), np.split(order, starts)[1:], strict=True):
        groups.append((kinds.dictionary[code // len(names)].as_py(), names[code % len(names)], rows))
    return sorted(groups, key=lambda group: (KINDS.index(group[0]), group[1]))
