"""The Open Inference Protocol (V2) by HTTP, with its binary extension: tensors of columns, in JSON or as bytes after it.

The extension is in docs/protocol/extension_binary_data.md of github.com/triton-inference-server/server: a header
has the length of the JSON, and the bytes of the binary tensors follow it in their order.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import to_json

from mlstack.scoring.formats import FormatError, json_of, limited, of_columns
from mlstack.scoring.schema import Row, Schema

HEADER = "Inference-Header-Content-Length"
# A value's type in the bytes, which are little-endian. BYTES have their length in front, in four bytes.
_BINARY = {
    "BOOL": "?", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "<u1", "UINT16": "<u2",
    "UINT32": "<u4", "UINT64": "<u8", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
TYPES = (*_BINARY, "BYTES")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Query:
    """What a request asks for: the rows, and in which form it wants the outputs."""

    rows: Sequence[Row]
    identifier: str
    wanted: Mapping[str, bool]
    """The outputs by name, and whether each shall be binary; empty: all of them."""
    is_binary: bool
    """Whether outputs that are not named shall be binary."""


def query_of(schema: Schema, body: bytes, length: str | None) -> Query:
    """The checked request, with the value of the header. Raises FormatError, TooManyRowsError or InputError."""
    text, binary = _split(body, length)
    content = json_of(text)
    inputs = content.get("inputs") if isinstance(content, dict) else None
    columns: dict[str, list[Any]] = {}
    for tensor in _objects(inputs, "inputs"):
        name = tensor.get("name")
        if not isinstance(name, str) or name in columns:
            raise FormatError("a tensor has no name, or that of another")
        if tensor.get("datatype") not in TYPES:
            raise FormatError(f"the datatype of a tensor is none of {', '.join(TYPES)}")
        size = _parameters(tensor).get("binary_data_size")
        if size is None:
            values = _of_json(tensor.get("data"))
        else:
            if type(size) is not int or not 0 <= size <= len(binary):
                raise FormatError("a tensor has another size than its bytes")
            values, binary = _of_bytes(tensor["datatype"], binary[:size]), binary[size:]
        if tensor.get("shape") not in ([len(values)], [len(values), 1]):
            raise FormatError("the shape of a tensor is not that of a column with its data: [rows] or [rows, 1]")
        columns[name] = values
    if binary:
        raise FormatError("the body has more bytes than its tensors")
    outputs = _objects(content.get("outputs", []), "outputs")
    wanted = {str(output.get("name")): bool(_parameters(output).get("binary_data")) for output in outputs}
    is_binary = bool(_parameters(content).get("binary_data_output"))
    return Query(limited(schema, of_columns(columns)), str(content.get("id", "")), wanted, is_binary)


def answer_of(
    query: Query,
    name: str,
    version: str,
    predictions: Sequence[Any],
    *,
    decided: Sequence[str] | None = None,
    parameters: Mapping[str, object] | None = None,
) -> tuple[bytes, dict[str, str]]:
    """The answer and its headers: a tensor for each column of the predictions, and one for what a policy decided."""
    columns = {**_columns_of(predictions), **({} if decided is None else {"decision": list(decided)})}
    tensors, binary = [], b""
    for column, values in columns.items():
        if query.wanted and column not in query.wanted:
            continue
        tensor = _tensor(column, values)
        if query.wanted.get(column, query.is_binary):
            content = _to_bytes(tensor["datatype"], tensor.pop("data"))
            tensor["parameters"] = {"binary_data_size": len(content)}
            binary += content
        tensors.append(tensor)
    answer = {
        "model_name": name,
        "model_version": version,
        **({"id": query.identifier} if query.identifier else {}),
        **({"parameters": parameters} if parameters else {}),
        "outputs": tensors,
    }
    text = to_json(answer, inf_nan_mode="null", bytes_mode="base64")
    if not any("parameters" in tensor for tensor in tensors):
        return text, {"Content-Type": "application/json"}
    return text + binary, {"Content-Type": "application/octet-stream", HEADER: str(len(text))}


def _split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    """The JSON and what follows it."""
    if length is None:
        return body, b""
    if not length.isdecimal() or int(length) > len(body):
        raise FormatError(f"the header {HEADER} is not the length of the JSON")
    return body[: int(length)], body[int(length) :]


def _objects(value: object, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise FormatError(f"the body has no list of tensors in the field {name}")
    return value


def _parameters(item: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = item.get("parameters", {})
    if not isinstance(parameters, dict):
        raise FormatError("the field parameters is no object")
    return parameters


def _of_json(data: object) -> list[Any]:
    if not isinstance(data, list):
        raise FormatError("a tensor has no list of data")
    return [value[0] if isinstance(value, list) and len(value) == 1 else value for value in data]


def _of_bytes(datatype: str, content: bytes) -> list[Any]:
    if datatype in _BINARY:
        dtype = np.dtype(_BINARY[datatype])
        if len(content) % dtype.itemsize:
            raise FormatError("a tensor has another size than its bytes")
        # NaN is a gap, as null is in JSON.
        return [None if value != value else value for value in np.frombuffer(content, dtype).tolist()]  # noqa: PLR0124
    values, place = [], 0
    while place < len(content):
        try:
            (size,) = _LENGTH.unpack_from(content, place)
            text = content[place + _LENGTH.size : place + _LENGTH.size + size]
            if len(text) != size:
                raise FormatError("a tensor of BYTES ends within a value")
            values.append(text.decode())
        except (struct.error, UnicodeDecodeError):
            raise FormatError("a tensor of BYTES is not made of lengths and texts in UTF-8") from None
        place += _LENGTH.size + size
    return values


def _to_bytes(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype in _BINARY:
        array = np.array([np.nan if value is None else value for value in values], _BINARY[datatype])
        return bytes(array.tobytes())
    return b"".join(_LENGTH.pack(len(text)) + text for text in (value.encode() for value in values))


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
