"""The bodies of requests in the formats of MLflow's scoring server."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json, to_json

from mlstack.scoring.schema import Row, Schema, kind_of, wrong_row

MOST_ROWS = 10_000
FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")


class FormatError(Exception):
    """A body in none of the formats."""


class TooManyRowsError(Exception):
    """More rows than one request may have."""


def rows_of(schema: Schema, content_type: str, body: bytes) -> list[Row]:
    """The checked rows of a request to /invocations. Raises FormatError, TooManyRowsError or InputError."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/csv":
        return limited(schema, _of_csv(schema, body))
    if kind not in ("application/json", ""):
        raise FormatError("the content type is neither application/json nor text/csv")
    content = json_of(body)
    if not isinstance(content, dict):
        raise FormatError("the body is not a JSON object")
    present = [name for name in FORMATS if name in content]
    if len(present) != 1:
        raise FormatError(f"the body has none of the fields {', '.join(FORMATS)}, or several of them")
    if content.get("params"):
        raise FormatError("parameters are not supported; the model's defaults apply")
    (name,) = present
    value = content[name]
    if name == "dataframe_split":
        return limited(schema, _of_split(value))
    if name == "inputs" and isinstance(value, dict):
        return limited(schema, of_columns(value))
    return limited(schema, [value] if name == "inputs" and not isinstance(value, list) else value)


def entities_of(body: bytes) -> list[dict[str, Any]]:
    """The rows of a request to /entities, whose features are looked up. Raises FormatError or TooManyRowsError."""
    content = json_of(body)
    entities = content.get("entities") if isinstance(content, dict) else None
    if not isinstance(entities, list) or not all(isinstance(entity, dict) for entity in entities):
        raise FormatError("the body has no list of objects in the field entities")
    if len(entities) > MOST_ROWS:
        raise TooManyRowsError(f"the request has more than {MOST_ROWS} rows")
    return entities


def answer_of(
    predictions: Sequence[Any], decided: Sequence[str] | None = None, explanations: Sequence[Any] | None = None
) -> bytes:
    """MLflow's answer, with what a policy decided and the explanations, if any. A NaN is null, since JSON has none."""
    added = {"decisions": decided, "explanations": explanations}
    present = {name: values for name, values in added.items() if values is not None}
    return to_json({"predictions": predictions, **present}, inf_nan_mode="null", bytes_mode="base64")


def limited(schema: Schema, rows: Any) -> list[Row]:
    """The checked rows, if they are not too many. Raises TooManyRowsError or InputError."""
    if isinstance(rows, list) and len(rows) > MOST_ROWS:
        raise TooManyRowsError(f"the request has more than {MOST_ROWS} rows")
    return schema.checked(rows)


def json_of(body: bytes) -> Any:
    """The value of a JSON text. Raises FormatError."""
    try:
        return from_json(body)
    except ValueError:
        raise FormatError("the body is not JSON") from None


def _of_split(value: object) -> list[dict[str, Any]]:
    columns = value.get("columns") if isinstance(value, dict) else None
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(columns, list) or not isinstance(data, list) or not all(isinstance(name, str) for name in columns):
        raise FormatError("dataframe_split has no list of column names in columns and list of rows in data")
    _require_distinct(columns)
    for number, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(columns):
            values = f"{len(row)} values" if isinstance(row, list) else kind_of(row)
            raise wrong_row(number, "a value for each name in columns", values)
    return [dict(zip(columns, row, strict=True)) for row in data]


def of_columns(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of columns with equally many values. Raises FormatError."""
    listed = {name: value if isinstance(value, list) else [value] for name, value in columns.items()}
    lengths = {len(values) for values in listed.values()}
    if len(lengths) > 1:
        raise FormatError("the columns have different numbers of values")
    return [dict(zip(listed, values, strict=True)) for values in zip(*listed.values(), strict=True)]


def _of_csv(schema: Schema, body: bytes) -> list[dict[str, Any]]:
    try:
        lines = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        header = next(lines, [])
        _require_distinct(header)
        cells = [line for line in lines if line]
    except (UnicodeDecodeError, csv.Error):
        raise FormatError("the body is not CSV in UTF-8") from None
    for number, line in enumerate(cells):
        if len(line) != len(header):
            raise wrong_row(number, f"{len(header)} cells", str(len(line)))
    return [schema.of_text(dict(zip(header, line, strict=True))) for line in cells]


def _require_distinct(names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise FormatError("two columns have the same name")
