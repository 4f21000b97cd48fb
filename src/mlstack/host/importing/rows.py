"""Rows of the source, copied into the stack's database with their ids.

Ids of runs, models and traces stay, because names, tags, model versions and users' notes refer to them. Experiments get new
ids: those of a file store do not fit into the database, and "1" exists already. What leads to files leads to the stack's bucket.
"""

import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from mlstack.errors import MlstackError

DEFAULT = 0  # the experiment that every MLflow has
SOURCE_ID = "mlstack.import.experiment_id"  # tag of an imported experiment
LOCATION = "mlflow.artifactLocation"  # tag of a trace
PROMPT_EXPERIMENTS = "_mlflow_experiment_ids"  # tag of a prompt: ids between commas, and at both ends
# In an order in which no row comes before one that it refers to.
TABLES = (
    "experiment_tags",
    "runs",
    "params",
    "tags",
    "metrics",
    "latest_metrics",
    "datasets",
    "inputs",
    "input_tags",
    "logged_models",
    "logged_model_params",
    "logged_model_tags",
    "logged_model_metrics",
    "trace_info",
    "trace_tags",
    "trace_request_metadata",
    "trace_metrics",
    "spans",
    "span_metrics",
    "assessments",
    "registered_models",
    "registered_model_tags",
    "model_versions",
    "model_version_tags",
    "registered_model_aliases",
)
_REGISTRY = TABLES[-5:]
# MLflow computes the sums of these days again (TRACE_ROLLUPS). The update locks a day that it computes now.
_CHANGED_DAYS = """
    INSERT INTO sql_trace_rollup_rebuild_queue (experiment_id, rollup_day, rollup_family)
    SELECT DISTINCT experiment_id, (to_timestamp(milliseconds / 1000) AT TIME ZONE 'UTC')::date, family FROM (
        SELECT experiment_id, timestamp_ms, 'trace_metric' FROM mlstack_incoming_trace_info
        UNION SELECT experiment_id, trace_timestamp_ms, 'assessment' FROM mlstack_incoming_assessments
        UNION SELECT experiment_id, start_time_unix_nano / 1000000, 'span_cost' FROM mlstack_incoming_spans
    ) AS changed (experiment_id, milliseconds, family) WHERE experiment_id IS NOT NULL AND milliseconds IS NOT NULL
    ORDER BY 1, 2, 3 -- in MLflow's own order, in which two writers wait for each other and never both
    ON CONFLICT (experiment_id, rollup_day, rollup_family) DO UPDATE SET rollup_family = EXCLUDED.rollup_family"""
SHOWN = 5
_FOLDER = re.compile(r"(?:^|/)(?P<id>[0-9a-f]{32}|m-[0-9a-f]{32})(?:/artifacts)?(?P<rest>/.*)?$")
_ID = re.compile(r"(?:m-|tr-)?[0-9a-f]{32}")
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
Row = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """An experiment of the source, and its id and location in the stack; None before it is created there."""

    source_id: int
    name: str
    lifecycle_stage: str
    creation_time: int | None
    last_update_time: int | None
    id: int | None = None
    location: str = ""


@dataclass(frozen=True)
class Compared:
    """Rows or files of the source beside what the stack has of them."""

    what: str
    expected: int
    stored: int
    expected_checksum: str
    stored_checksum: str
    differing: tuple[str, ...] = ()  # some of those that exist with another content

    @property
    def is_equal(self) -> bool:
        return (self.expected, self.expected_checksum) == (self.stored, self.stored_checksum)


@dataclass
class Destination:
    """Where the source's rows and files belong in the stack."""

    experiments: Mapping[int, Experiment]  # by their id in the source
    prefix: str
    locations: dict[str, str] = field(default_factory=dict)  # of artifacts, by the id of a run, model or trace
    problems: list[str] = field(default_factory=list)

    def locate(self, rows: sqlite3.Connection) -> None:
        """Decides where the artifacts of each run, model and trace belong: where MLflow would keep them.

        Raises MlstackError for an id that MLflow did not make: it could lead to another folder of the bucket.
        """
        for query, form in (
            ("SELECT run_uuid, experiment_id FROM runs", "{}/{}/artifacts"),
            ("SELECT model_id, experiment_id FROM logged_models", "{}/models/{}/artifacts"),
            ("SELECT request_id, experiment_id FROM trace_info", "{}/traces/{}/artifacts"),
        ):
            for identifier, experiment in rows.execute(query):
                if not _ID.fullmatch(identifier):
                    raise MlstackError(f"{identifier!r} is no id of MLflow's.", "It names a folder of artifacts.", "check FROM")
                self.locations[identifier] = form.format(self.experiments[experiment].location, identifier)

    def changed(self, table: str, row: Row) -> Row:
        """A row of the source as it belongs in the stack."""
        if row.get("experiment_id") is not None:
            row["experiment_id"] = self.experiments[row["experiment_id"]].id
        if table in _REGISTRY:
            row["name"] = self.prefix + row["name"]
        match table:
            case "runs":
                row["artifact_uri"] = self.locations[row["run_uuid"]]
            case "logged_models":
                row["artifact_location"] = self.locations[row["model_id"]]
            case "trace_tags" if row["key"] == LOCATION:
                row["value"] = self.locations[row["request_id"]]
            case "registered_model_tags" if row["key"] == PROMPT_EXPERIMENTS:
                ids = (int(part) for part in row["value"].split(",") if part.isdecimal())
                row["value"] = f",{','.join(str(self.experiments[id_].id) for id_ in ids if id_ in self.experiments)},"
            case "model_versions":
                label = f"version {row['version']} of the model {row['name']}"
                row["source"] = self._moved(row["source"], label)
                row["storage_location"] = row["storage_location"] and self._moved(row["storage_location"], label)
        return row

    def _moved(self, uri: str | None, label: str) -> str | None:
        """The address of a model version's files. Those by id of a run or model, and prompts, stay as they are."""
        if not uri or re.match(r"(runs|models):/|dummy-source$|prompt-template$", uri):
            if self.prefix and uri and (match := re.match(r"models:/(?!m-[0-9a-f]{32}$)(.*)", uri)):
                return f"models:/{self.prefix}{match[1]}"
            return uri
        match = _FOLDER.search(uri)
        if match and match["id"] in self.locations:
            return self.locations[match["id"]] + (match["rest"] or "")
        self.problems.append(f"{label}: its files at {uri} are not those of an imported run or model")
        return uri


def drop_dangling(rows: sqlite3.Connection) -> list[str]:
    """Removes rows that refer to rows that do not exist, which Postgres would reject. Returns what was removed."""
    problems = []
    while dangling := rows.execute("PRAGMA foreign_key_check").fetchall():
        by_table: dict[tuple[str, str], list[int]] = {}
        for table, rowid, parent, _ in dangling:
            by_table.setdefault((table, parent), []).append(rowid)
        for (table, parent), ids in by_table.items():
            first = rows.execute(f"SELECT * FROM {table} WHERE rowid = ?", (ids[0],)).fetchone()  # noqa: S608
            if first:
                problems.append(f"{table}: {len(ids)} rows refer to {parent} that are missing, for example {first[0]}")
            rows.executemany(f"DELETE FROM {table} WHERE rowid = ?", [(rowid,) for rowid in ids])  # noqa: S608
    rows.commit()
    return problems


def experiments_for(rows: sqlite3.Connection, connection: Connection, prefix: str) -> dict[int, Experiment]:
    """The experiments of the source, by their ids there, with those of the stack that an earlier import created.

    Raises MlstackError when the stack has another experiment or model of the same name, or a run in another experiment.
    """
    taken: list[str] = []
    experiments: dict[int, Experiment] = {}
    with connection.cursor() as cursor:
        for experiment in _experiments(rows, prefix):
            cursor.execute(
                "SELECT experiment_id, artifact_location, creation_time IS NOT DISTINCT FROM %s AND EXISTS (SELECT FROM"
                " experiment_tags t WHERE t.experiment_id = e.experiment_id AND t.key = %s AND t.value = %s)"
                " FROM experiments e WHERE workspace = 'default' AND name = %s",
                (experiment.creation_time, SOURCE_ID, str(experiment.source_id), experiment.name),
            )
            existing = cursor.fetchone()
            if existing and not existing[2] and not (existing[0] == DEFAULT and experiment.source_id == DEFAULT):
                taken.append(f"experiment {experiment.name}")
            experiments[experiment.source_id] = _in_stack(experiment, *existing[:2]) if existing else experiment
        for name, created in rows.execute("SELECT name, creation_time FROM registered_models"):
            cursor.execute(
                "SELECT creation_time IS NOT DISTINCT FROM %s FROM registered_models WHERE workspace = 'default' AND name = %s",
                (created, prefix + name),
            )
            if cursor.fetchone() == (False,):
                taken.append(f"registered model {prefix + name}")
        if taken:
            more = f" and {len(taken) - SHOWN} more" if len(taken) > SHOWN else ""
            raise MlstackError(
                f"the stack has these already, from elsewhere: {', '.join(taken[:SHOWN])}{more}.",
                "Two of the same name cannot be told apart.",
                "make import FROM=… PREFIX=old/, or rename them in MLflow",
            )
        _require_same_experiments(rows, cursor, experiments)
    return experiments


def create_experiments(connection: Connection, experiments: Mapping[int, Experiment]) -> dict[int, Experiment]:
    """The same experiments, after those that the stack lacks were created in one transaction."""
    created = dict(experiments)
    with _transaction(connection) as cursor:
        for experiment in experiments.values():
            if experiment.id is not None:
                continue
            cursor.execute(
                "INSERT INTO experiments (name, lifecycle_stage, creation_time, last_update_time) VALUES (%s, %s, %s, %s)"
                " RETURNING experiment_id",
                (experiment.name, experiment.lifecycle_stage, experiment.creation_time, experiment.last_update_time),
            )
            (number,) = cursor.fetchone() or (None,)
            location = f"mlflow-artifacts:/{number}"
            cursor.execute("UPDATE experiments SET artifact_location = %s WHERE experiment_id = %s", (location, number))
            cursor.execute(
                "INSERT INTO experiment_tags (experiment_id, key, value) VALUES (%s, %s, %s)",
                (number, SOURCE_ID, str(experiment.source_id)),
            )
            created[experiment.source_id] = _in_stack(experiment, int(number or 0), location)
    return created


def copy(
    rows: sqlite3.Connection, connection: Connection, destination: Destination, announce: Callable[[str], None]
) -> list[Compared]:
    """Adds what the stack lacks, all of it in one transaction, and compares every row. What exists is never changed."""
    compared = []
    with _transaction(connection) as cursor:
        for table in TABLES:
            announce(f"rows: {table}")
            compared.append(_copy_table(rows, cursor, table, destination))
        cursor.execute(_CHANGED_DAYS)
    return compared


def _copy_table(rows: sqlite3.Connection, cursor: Cursor, table: str, destination: Destination) -> Compared:
    columns = _columns(cursor, table)
    # Not a temporary table, which MLflow's role may not create. It never outlives the transaction.
    incoming = f"mlstack_incoming_{table}"
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    identifiers = {"incoming": sql.Identifier(incoming), "table": sql.Identifier(table), "names": names}
    cursor.execute(sql.SQL("CREATE UNLOGGED TABLE {incoming} AS SELECT {names} FROM {table} WITH NO DATA").format(**identifiers))
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        file.writelines(_lines(rows, table, columns, destination))
        file.seek(0)
        cursor.copy_expert(sql.SQL("COPY {incoming} ({names}) FROM STDIN").format(**identifiers), file)
    _align(cursor, table)
    cursor.execute(
        sql.SQL("INSERT INTO {table} ({names}) SELECT {names} FROM {incoming} ON CONFLICT DO NOTHING").format(**identifiers)
    )
    return _compared(cursor, table, incoming, list(columns))


def _align(cursor: Cursor, table: str) -> None:
    """Ids that a file store or an API does not have are new at each import: those in the stack are used."""
    if table == "inputs":
        cursor.execute(
            "UPDATE mlstack_incoming_inputs i SET source_id = d.dataset_uuid FROM mlstack_incoming_datasets n"
            " JOIN datasets d USING (experiment_id, name, digest)"
            " WHERE i.source_type = 'DATASET' AND i.source_id = n.dataset_uuid"
        )
    elif table == "input_tags":
        cursor.execute(
            "UPDATE mlstack_incoming_input_tags t SET input_uuid = s.input_uuid FROM mlstack_incoming_inputs i"
            " JOIN inputs s USING (source_type, source_id, destination_type, destination_id) WHERE t.input_uuid = i.input_uuid"
        )


def _compared(cursor: Cursor, table: str, incoming: str, columns: list[str]) -> Compared:
    keys = _keys(cursor, table)
    invented = {"datasets": ["dataset_uuid"], "inputs": ["input_uuid"]}.get(table, [])
    shown = [column for column in columns if column not in invented]
    parts = {
        "incoming": sql.Identifier(incoming),
        "table": sql.Identifier(table),
        "using": sql.SQL(" AND ").join(sql.SQL("i.{0} = t.{0}").format(sql.Identifier(key)) for key in keys),
        "key": sql.SQL("t.{}").format(sql.Identifier(keys[0])),
        "label": sql.SQL(", ").join(sql.SQL("i.{}").format(sql.Identifier(key)) for key in keys),
        "expected": sql.SQL(", ").join(sql.SQL("i.{}").format(sql.Identifier(column)) for column in shown),
        "stored": sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(column)) for column in shown),
    }
    hashes = sql.SQL(
        "SELECT hashtextextended(ROW({expected})::text, 0) AS expected,"
        " CASE WHEN {key} IS NOT NULL THEN hashtextextended(ROW({stored})::text, 0) END AS stored,"
        " concat_ws(' ', {label}) AS label FROM {incoming} i LEFT JOIN {table} t ON {using}"
    ).format(**parts)
    cursor.execute(
        sql.SQL(
            "SELECT count(*), count(stored), coalesce(sum(expected), 0), coalesce(sum(stored), 0),"
            " (array_agg(label) FILTER (WHERE stored IS DISTINCT FROM expected))[:%s] FROM ({}) hashes"
        ).format(hashes),
        (SHOWN,),
    )
    expected, stored, expected_sum, stored_sum, differing = cursor.fetchone() or (0, 0, 0, 0, None)
    return Compared(table, expected, stored, _short(expected_sum), _short(stored_sum), tuple(differing or ()))


@contextmanager
def _transaction(connection: Connection) -> Iterator[Cursor]:
    """One transaction on a connection that otherwise makes one of each statement. The tables of incoming rows go with it."""
    connection.autocommit = False
    try:
        with connection, connection.cursor() as cursor:
            yield cursor
            for table in TABLES:
                cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(f"mlstack_incoming_{table}")))
    finally:
        connection.autocommit = True


def _short(total: Any) -> str:
    return f"{int(total) % 2**64:016x}"


def _lines(rows: sqlite3.Connection, table: str, columns: Mapping[str, int | None], destination: Destination) -> Iterator[str]:
    """The rows of a table in the text format of COPY."""
    names = list(columns)
    limits = [(position, limit) for position, limit in enumerate(columns.values()) if limit]
    is_plain = table not in ("runs", "trace_tags", *_REGISTRY) and "experiment_id" not in columns
    for values in rows.execute(f"SELECT {', '.join(names)} FROM {table}"):  # noqa: S608
        row: Sequence[Any] = values
        if not is_plain:
            row = list(destination.changed(table, dict(zip(names, values, strict=True))).values())
        for position, limit in limits:
            if isinstance(row[position], str) and len(row[position]) > limit:
                destination.problems.append(f"{table}: {names[position]} of {row[0]} was cut at {limit} characters")
                row = [*row[:position], row[position][:limit], *row[position + 1 :]]
        yield "\t".join(map(_text, row)) + "\n"


def _text(value: Any) -> str:
    if value is None:
        return "\\N"
    return value.translate(_ESCAPES) if isinstance(value, str) else repr(value)


def _experiments(rows: sqlite3.Connection, prefix: str) -> Iterable[Experiment]:
    for number, name, *rest in rows.execute(
        "SELECT experiment_id, name, lifecycle_stage, creation_time, last_update_time FROM experiments ORDER BY creation_time"
    ):
        yield Experiment(number, prefix + name, *rest)


def _in_stack(experiment: Experiment, number: int, location: str) -> Experiment:
    return replace(experiment, id=number, location=location)


def _require_same_experiments(rows: sqlite3.Connection, cursor: Cursor, experiments: Mapping[int, Experiment]) -> None:
    ids = {run: experiments[number].id for run, number in rows.execute("SELECT run_uuid, experiment_id FROM runs")}
    cursor.execute(
        "SELECT run_uuid, r.experiment_id, e.name FROM runs r JOIN experiments e USING (experiment_id) WHERE run_uuid = ANY(%s)",
        (list(ids),),
    )
    for run, experiment, name in cursor.fetchall():
        if ids[run] != experiment:
            raise MlstackError(
                f"the run {run} is in the stack already, in the experiment {name}.",
                "An id belongs to one run: it was imported before, with another PREFIX or from another place.",
                "the same FROM and PREFIX as then; or delete those runs and make gc OLDER_THAN=0d",
            )


def _columns(cursor: Cursor, table: str) -> dict[str, int | None]:
    """The columns of a table, without those that Postgres computes, and the most characters of each."""
    cursor.execute(
        "SELECT column_name, character_maximum_length FROM information_schema.columns WHERE table_schema = 'public'"
        " AND table_name = %s AND is_generated = 'NEVER' ORDER BY ordinal_position",
        (table,),
    )
    return dict(cursor.fetchall())


def _keys(cursor: Cursor, table: str) -> list[str]:
    """The columns of a table's primary key."""
    cursor.execute(
        "SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey)"
        " WHERE indisprimary AND indrelid = %s::regclass",
        (table,),
    )
    return [name for (name,) in cursor.fetchall()]
