"""Features: declared once, and the same in training sets and in look-ups (docs/features.md).

    from mlstack import features
    route = features.Entity("route", keys=("origin", "dest"))
    delays = features.Totals("delays", route, columns=("late", "minutes"))
    features.apply(features.FeatureView("route", delays, windows=("1d", "7d")))

They are in Postgres, and a notebook reaches them through the scoring service, with its account of MLflow.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mlstack.client import datasets
from mlstack.client.datasets import Version
from mlstack.client.feature_views import Source, View
from mlstack.client.scoring import call, stream
from mlstack.errors import MlstackError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

EVENTS = 500  # of one request
ROWS = 20_000  # that are turned into text at once
RECORD = b"mlstack.features"  # of the views, in the Parquet file of a training set
_ARROW = {"bigint": "int64", "double precision": "float64", "text": "string", "boolean": "bool_"}


@dataclass(frozen=True)
class TrainingSet:
    """A training set: a frame, and the version of a data set that keeps it."""

    frame: "pd.DataFrame" = field(repr=False)
    version: Version
    views: list[str]
    """The definitions that it was built with, such as `route@1a2b3c4d5e6f`: `log_model(…, metadata={"features": views})`."""
    features: list[str] = field(repr=False)
    """The names of the features."""

    def log(self, context: str = "training") -> None:
        """Records it as an input of the current run, with its digest and the definitions."""
        import mlflow

        mlflow.log_input(datasets.dataset(self.version.name, self.version.digest), context=context)
        mlflow.set_tag("mlstack.features", ",".join(self.views))


def apply(*views: View) -> list[str]:
    """Stores definitions and their sources, and returns the name and hash of each. The same definition again changes nothing.

    Another definition of the same name is another version; models keep the one that they were trained with. Raises MlstackError.
    """
    references = []
    for view in views:
        for source in view.sources:
            declared = {"name": source.name, "kind": source.kind, "keys": source.entity.keys, "types": dict(source.types)}
            call("POST", "/features/sources", body=declared)
        definition = {"name": view.name, "keys": view.entity.keys, "features": dict(view.features), "definition": view.sql}
        references.append(str(call("POST", "/features/views", body=definition)["reference"]))
    return references


def ingest(source: Source, events: Any) -> "pd.Timestamp":
    """Stores events of now: an object or several, or a data frame, with the source's columns and `event_time`.

    Of totals, an event without `n` counts as one; a correction is an event with n=0 and differences. Returns when the last of
    them is known, about a second later. Raises MlstackError; what earlier requests sent is stored then.
    """
    import pandas as pd

    frame = _completed(source, pd.DataFrame([events] if isinstance(events, Mapping) else events), ("event_time",))
    known = ""
    for start in range(0, len(frame), EVENTS):
        rows = [
            {name: _json(value) for name, value in row.items()} for row in frame.iloc[start : start + EVENTS].to_dict("records")
        ]
        known = call("POST", f"/features/sources/{source.name}/events", body={"events": rows})["known_at"]
    return pd.Timestamp(known)


def backfill(source: Source, events: "pd.DataFrame | Iterable[pd.DataFrame]") -> int:
    """Stores events of the past, which also have a column `known_at`: all or none, and only after those that an entity has.

    A data frame, or several, one after another: nothing holds them all. Returns the number of rows that they became.
    """
    import pandas as pd

    frames = [events] if isinstance(events, pd.DataFrame) else events
    columns = _columns(source, ("known_at", "event_time"))
    blocks = _csv(_completed(source, frame, ("known_at", "event_time")) for frame in frames)
    with stream(f"/features/sources/{source.name}/history", blocks, columns=",".join(columns)) as answer:
        return int(answer.json()["rows"])


def training_set(spine: "pd.DataFrame", views: Sequence[View | str], name: str, *, at: str = "at") -> TrainingSet:
    """The rows of a spine with the features of their entities, as they were known at each row's time.

    The spine has the keys of the entities, the time in the column `at`, and what else the training needs, such as a label. The
    result is stored as a version of the data set `name`. Raises MlstackError.
    """
    import pandas as pd
    import pyarrow as pa
    from pyarrow import parquet

    described = _described(views)
    keys = list(dict.fromkeys(key for view in described for key in view["keys"]))
    if missing := [column for column in (*keys, at) if column not in spine]:
        raise MlstackError(
            f"the spine has no column {missing[0]}.", "It says for which entity and time features are read.",
            f"add it; the columns needed are {', '.join((*keys, at))}",
        )  # fmt: skip
    wanted = spine[[*keys, at]].assign(**{at: _times(spine[at])})
    references = [str(view["reference"]) for view in described]
    with stream("/features/training-set", _csv([wanted]), views=",".join(references)) as answer:
        features = _read(answer.raw, {name: kind for view in described for name, kind in view["features"].items()})
    if features.num_rows != len(spine):
        raise MlstackError(
            f"{features.num_rows} of {len(spine)} rows arrived.",
            "A part of the rows is no training set.",
            "make logs SERVICE=scoring says why; then build it again",
        )
    table = pa.Table.from_pandas(spine.reset_index(drop=True), preserve_index=False)
    for column in features.column_names:
        table = table.append_column(column, features[column])
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), RECORD: json.dumps(described)})
    with tempfile.TemporaryDirectory(prefix="mlstack-") as folder:
        path = Path(folder, "data.parquet")
        parquet.write_table(table, path)
        version = datasets.put(path, name)
        frame: pd.DataFrame = pd.read_parquet(path)
    return TrainingSet(frame, version, references, features.column_names)


def lookup(entities: Any, views: Sequence[View | str], at: Any = None) -> Any:
    """The features of an entity as an object, or of several as a data frame: as they are known now, or at another time.

    An entity is an object with the keys, and with its own `at` where that differs.
    """
    import pandas as pd

    rows = [entities] if isinstance(entities, Mapping) else pd.DataFrame(entities).to_dict("records")
    asked = [{**row, "at": _json(_utc(row.get("at", at)))} for row in rows]
    references = [view["reference"] for view in _described(views)]
    answer = call("POST", "/features/lookup", body={"views": references, "entities": asked})["entities"]
    looked_up = [{"at": pd.Timestamp(row["at"]), **row["features"]} for row in answer]
    return looked_up[0] if isinstance(entities, Mapping) else pd.DataFrame(looked_up)


def _described(views: Sequence[View | str]) -> list[dict[str, Any]]:
    """What the service knows of views: those with a hash as they were applied, the others as they are now."""
    names = [view if isinstance(view, str) else view.name for view in views]
    return [call("GET", f"/features/views/{quote(name)}") for name in names]


def _columns(source: Source, times: Sequence[str]) -> list[str]:
    return [*source.entity.keys, *times, *(["n"] if source.kind == "totals" else []), *source.types]


def _completed(source: Source, frame: "pd.DataFrame", times: Sequence[str]) -> "pd.DataFrame":
    """The columns of a source, in order. Raises MlstackError naming the one that is missing."""
    import pandas as pd

    if source.kind == "totals" and "n" not in frame:
        frame = frame.assign(n=1)
    columns = _columns(source, times)
    if missing := [column for column in columns if column not in frame]:
        raise MlstackError(
            f"the events have no column {missing[0]}.", f"The source {source.name} needs it.", f"give them {', '.join(columns)}"
        )
    totals = {name: frame[name].astype("int64") for name in ("n", *source.types)} if source.kind == "totals" else {}
    return pd.DataFrame(frame[columns]).assign(**{name: _times(frame[name]) for name in times}, **totals)


def _csv(frames: "Iterable[pd.DataFrame]") -> Iterator[bytes]:
    """CSV as Postgres reads it, a block at a time: an empty cell is null, an empty text is quoted."""
    import pyarrow as pa
    from pyarrow import csv

    options = csv.WriteOptions(include_header=False, quoting_style="needed")
    for frame in frames:
        for start in range(0, len(frame), ROWS):
            table = pa.Table.from_pandas(frame.iloc[start : start + ROWS], preserve_index=False)
            sink = pa.BufferOutputStream()
            csv.write_csv(table, sink, options)
            yield sink.getvalue().to_pybytes()


def _read(file: Any, types: Mapping[str, str]) -> "pa.Table":
    """Postgres' CSV as an Arrow table."""
    import pyarrow as pa
    from pyarrow import csv

    convert = csv.ConvertOptions(
        column_types={name: getattr(pa, _ARROW[kind])() for name, kind in types.items()},
        strings_can_be_null=True, quoted_strings_can_be_null=False, null_values=[""], true_values=["t"], false_values=["f"],
    )  # fmt: skip
    return csv.open_csv(file, convert_options=convert).read_all()


def _times(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Times in UTC, which is also that of times without a zone, as Postgres keeps them: in microseconds."""
    import pandas as pd

    return pd.to_datetime(column, utc=True).astype("datetime64[us, UTC]")


def _utc(time: Any) -> Any:
    import pandas as pd

    return None if time is None else _times(pd.Series([time]))[0]


def _json(value: Any) -> Any:
    """A value of a frame as a value of JSON."""
    import pandas as pd

    return None if pd.isna(value) else value.isoformat() if isinstance(value, pd.Timestamp) else value
