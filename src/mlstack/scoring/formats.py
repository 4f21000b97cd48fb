"""The bodies of requests: the formats of MLflow's scoring server, and those of the Open Inference Protocol (V2)."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json, to_json

from mlstack.scoring.schema import Row, Schema, kind_of, wrong_row

MOST_ROWS = 10_000
FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
V2_TYPES = ("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP32", "FP64", "BYTES")


class FormatError(Exception):
    """A body in none of the formats."""


class TooManyRowsError(Exception):
    """More rows than one request may have."""


def rows_of(schema: Schema, content_type: str, body: bytes) -> list[Row]:
    """The checked rows of a request to /invocations. Raises FormatError, TooManyRowsError or InputError."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/csv":
        return _limited(schema, _of_csv(schema, body))
    if kind not in ("application/json", ""):
        raise FormatError("the content type is neither application/json nor text/csv")
    content = _json(body)
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
        return _limited(schema, _of_split(value))
    if name == "inputs" and isinstance(value, dict):
        return _limited(schema, _of_columns(value))
    return _limited(schema, [value] if name == "inputs" and not isinstance(value, list) else value)


def entities_of(body: bytes) -> list[dict[str, Any]]:
    """The rows of a request to /entities, whose features are looked up. Raises FormatError or TooManyRowsError."""
    content = _json(body)
    entities = content.get("entities") if isinstance(content, dict) else None
    if not isinstance(entities, list) or not all(isinstance(entity, dict) for entity in entities):
        raise FormatError("the body has no list of objects in the field entities")
    if len(entities) > MOST_ROWS:
        raise TooManyRowsError(f"the request has more than {MOST_ROWS} rows")
    return entities


def v2_rows_of(schema: Schema, body: bytes) -> tuple[list[Row], str]:
    """The checked rows of a request to V2's infer, and its id. Raises as `rows_of` does."""
    content = _json(body)
    inputs = content.get("inputs") if isinstance(content, dict) else None
    if not isinstance(inputs, list) or not all(isinstance(tensor, dict) for tensor in inputs):
        raise FormatError("the body has no list of tensors in the field inputs")
    columns: dict[str, list[Any]] = {}
    for tensor in inputs:
        name, shape, data = tensor.get("name"), tensor.get("shape"), tensor.get("data")
        if not isinstance(name, str) or name in columns:
            raise FormatError("a tensor has no name, or that of another")
        if tensor.get("datatype") not in V2_TYPES:
            raise FormatError(f"the datatype of a tensor is none of {', '.join(V2_TYPES)}")
        if not isinstance(data, list):
            raise FormatError("a tensor has no list of data")
        flat = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in data]
        if shape not in ([len(flat)], [len(flat), 1]):
            raise FormatError("the shape of a tensor is not that of a column with its data: [rows] or [rows, 1]")
        columns[name] = flat
    return _limited(schema, _of_columns(columns)), str(content.get("id", ""))


def answer_of(predictions: Sequence[Any], decided: Sequence[str] | None = None) -> bytes:
    """MLflow's answer, with what a policy decided. A NaN is null, since JSON has none."""
    decisions = {} if decided is None else {"decisions": decided}
    return to_json({"predictions": predictions, **decisions}, inf_nan_mode="null", bytes_mode="base64")


def v2_answer_of(
    name: str,
    version: str,
    identifier: str,
    predictions: Sequence[Any],
    *,
    decided: Sequence[str] | None = None,
    parameters: Mapping[str, object] | None = None,
) -> bytes:
    """V2's answer: a tensor for each column of the predictions, and one for what a policy decided."""
    columns = {**_columns_of(predictions), **({} if decided is None else {"decision": list(decided)})}
    answer = {
        "model_name": name,
        "model_version": version,
        **({"id": identifier} if identifier else {}),
        **({"parameters": parameters} if parameters else {}),
        "outputs": [_tensor(column, values) for column, values in columns.items()],
    }
    return to_json(answer, inf_nan_mode="null", bytes_mode="base64")


def _limited(schema: Schema, rows: Any) -> list[Row]:
    if isinstance(rows, list) and len(rows) > MOST_ROWS:
        raise TooManyRowsError(f"the request has more than {MOST_ROWS} rows")
    return schema.checked(rows)


def _json(body: bytes) -> Any:
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


def _of_columns(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
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


def _columns_of(predictions: Sequence[Any]) -> dict[str, list[Any]]:
    if predictions and all(isinstance(row, dict) for row in predictions):
        return {str(name): [row[name] for row in predictions] for name in predictions[0]}
    return {"output": list(predictions)}


def _tensor(name: str, values: Sequence[Any]) -> dict[str, Any]:
    shape = [len(values)]
    while values and isinstance(values[0], list):
        shape.append(len(values[0]))
        values = [value for row in values for value in row]
    kinds = {type(value) for value in values}
    datatype = "BOOL" if kinds == {bool} else "INT64" if kinds == {int} else "FP64" if kinds <= {int, float} else "BYTES"
    data = [value if isinstance(value, str) else json.dumps(value) for value in values] if datatype == "BYTES" else values
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}
