"""What a model accepts, compiled once from its MLflow signature, and stricter than MLflow (docs/scoring.md).

MLflow turns 4.7 into a long 4, "4" and true into numbers, and scores null in a required field. Here a value has its column's type
or the request is rejected, with the row, the column, what is expected and what kind of value was sent; never with the value.
"""

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import SchemaValidator, ValidationError, core_schema

Row = Mapping[str, Any]
LARGEST_FLOAT = float(np.finfo(np.float32).max)
_NANOSECONDS = (np.datetime64("1678-01-01"), np.datetime64("2262-01-01"))  # what datetime64[ns] can hold


class InputError(Exception):
    """A request that the model's schema does not accept. `details` are for programs."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


class UnsupportedError(Exception):
    """A signature that this service cannot check."""


@dataclass(frozen=True)
class Kind:
    """A type of MLflow's columns: how a value is checked, its type in a DataFrame, and how text of a CSV file becomes one."""

    schema: core_schema.CoreSchema
    dtype: str
    of_text: Callable[[str], Any]
    takes_null: bool = False


def _whole(bits: int) -> core_schema.CoreSchema:
    """An integer of this size, also as 4.0, which is how pandas writes a column that once had a gap."""
    smallest, largest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def whole(value: float) -> int:
        if not value.is_integer() or not smallest <= int(value) <= largest:
            raise ValueError
        return int(value)

    integer = core_schema.int_schema(strict=True, ge=smallest, le=largest)
    number = core_schema.float_schema(strict=True, allow_inf_nan=False)
    return core_schema.union_schema([integer, core_schema.no_info_after_validator_function(whole, number)], mode="left_to_right")


def _real(largest: float = math.inf) -> core_schema.CoreSchema:
    """A number. null is NaN, as pandas writes it; 1e400 is too large for a double and becomes infinite while it is read."""

    def finite(value: float | None) -> float:
        if value is None:
            return math.nan
        if math.isinf(value) or abs(value) > largest:
            raise ValueError
        return value

    number = core_schema.nullable_schema(core_schema.float_schema(strict=True))
    return core_schema.no_info_after_validator_function(finite, number)


def _moment(value: str) -> np.datetime64:
    moment = np.datetime64(value.removesuffix("Z"), "ns")
    if np.isnat(moment) or not _NANOSECONDS[0] < np.datetime64(value.removesuffix("Z"), "D") < _NANOSECONDS[1]:
        raise ValueError
    return moment


def _bytes(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError from error


def _from_text(convert: Callable[[str], Any]) -> core_schema.CoreSchema:
    return core_schema.no_info_after_validator_function(convert, core_schema.str_schema(strict=True))


def _boolean_of(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)


def _number_of(text: str) -> int | float | str:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


KINDS: Mapping[str, Kind] = {
    "boolean": Kind(core_schema.bool_schema(strict=True), "bool", _boolean_of),
    "integer": Kind(_whole(32), "int32", _number_of),
    "long": Kind(_whole(64), "int64", _number_of),
    "float": Kind(_real(LARGEST_FLOAT), "float32", _number_of, takes_null=True),
    "double": Kind(_real(), "float64", _number_of, takes_null=True),
    "string": Kind(core_schema.str_schema(strict=True), "str", str),
    "binary": Kind(_from_text(_bytes), "object", str),
    "datetime": Kind(_from_text(_moment), "datetime64[ns]", str),
}
_NAMES: Mapping[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}
# May be null if its column is optional; in the others a gap would change the column's type.
_GAPS = ("string", "binary", "datetime")


@dataclass(frozen=True)
class Column:
    """A column of a signature."""

    name: str
    type: str
    is_required: bool

    @property
    def schema(self) -> core_schema.CoreSchema:
        kind = KINDS[self.type].schema
        return kind if self.is_required or self.type not in _GAPS else core_schema.nullable_schema(kind)


@dataclass(frozen=True)
class Schema:
    """The columns of a model, and the validator that they are compiled to."""

    columns: Mapping[str, Column]
    validator: SchemaValidator = field(repr=False)
    json: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, signature: Any) -> "Schema":
        """The schema of an MLflow signature. Raises UnsupportedError."""
        inputs = signature and signature.inputs
        if not inputs:
            raise UnsupportedError("it has no signature: log it with input_example= or signature=")
        if inputs.is_tensor_spec():
            raise UnsupportedError("its signature is of tensors, and only columns are supported")
        columns = {}
        for spec in inputs.inputs:
            kind = getattr(spec.type, "name", str(spec.type))
            if spec.name is None or kind not in KINDS:
                raise UnsupportedError("its signature has a column without a name or with a nested type")
            columns[str(spec.name)] = Column(str(spec.name), kind, bool(spec.required))
        row = core_schema.typed_dict_schema(
            {
                column.name: core_schema.typed_dict_field(column.schema, required=column.is_required)
                for column in columns.values()
            },
            extra_behavior="ignore",
        )
        rows = core_schema.list_schema(row, strict=True)
        return cls(columns, SchemaValidator(rows), GenerateJsonSchema().generate(row))

    def checked(self, rows: object) -> list[Row]:
        """The rows with values of the columns' types. Raises InputError for the first value that is not."""
        try:
            checked: list[Row] = self.validator.validate_python(rows)
        except ValidationError as error:
            raise self._explained(error) from None
        return checked

    def frame(self, rows: Sequence[Row]) -> pd.DataFrame:
        """Checked rows that have the same columns, as MLflow would make them of a DataFrame."""
        present = rows[0].keys() if rows else self.columns.keys()
        return pd.DataFrame(
            {
                name: pd.array([row[name] for row in rows], dtype=KINDS[column.type].dtype)
                for name, column in self.columns.items()
                if name in present
            }
        )

    def of_text(self, cells: Mapping[str, str]) -> dict[str, Any]:
        """A row of a CSV file. An empty cell is null."""
        return {
            name: (KINDS[self.columns[name].type].of_text(text) if text else None)
            for name, text in cells.items()
            if name in self.columns
        }

    def _explained(self, error: ValidationError) -> InputError:
        details = error.errors(include_url=False, include_context=False)[0]
        place = details["loc"]
        if not place:
            return InputError("the rows are not a list", expected="a list of rows", found=kind_of(details["input"]))
        row = int(place[0])
        if len(place) == 1:
            return wrong_row(row, "an object with a value for each column", kind_of(details["input"]))
        column = self.columns[str(place[1])]
        value = "no value" if details["type"] == "missing" else kind_of(details["input"])
        return InputError(
            f"row {row}, column {column.name!r}: expected {column.type}, found {value}",
            row=row,
            column=column.name,
            expected=column.type,
            found=value,
        )


def wrong_row(row: int, expected: str, value: str) -> InputError:
    """The error for a row that is no row: what is expected, and what kind of value was sent."""
    return InputError(f"row {row}: expected {expected}, found {value}", row=row, expected=expected, found=value)


def kind_of(value: object) -> str:
    """What kind of JSON value it is, without the value."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a number out of range"
    if type(value) is int and not -(2**63) <= value < 2**63:
        return "an integer out of range"
    return _NAMES.get(type(value), "something else")
