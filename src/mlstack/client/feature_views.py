"""Declarations of features, and the SQL that they write. A view is one SELECT for one entity and time (sql/features)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mlstack.errors import MlstackError

TYPES: Mapping[type, str] = {int: "bigint", float: "double precision", str: "text", bool: "boolean"}
_HOURS = {"h": 1, "d": 24}


@dataclass(frozen=True)
class Entity:
    """What features describe, such as a route. Its key columns are text; by default there is one, of its name."""

    name: str
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys) or (self.name,))


@dataclass(frozen=True)
class Totals:
    """A source of events whose columns are added up, and counted as `n`: whole numbers, such as minutes or 0 and 1."""

    name: str
    entity: Entity
    columns: tuple[str, ...]
    kind = "totals"

    @property
    def types(self) -> Mapping[str, str]:
        return dict.fromkeys(self.columns, TYPES[int])


@dataclass(frozen=True)
class Values:
    """A source of events of which the newest counts, such as observations of the weather."""

    name: str
    entity: Entity
    columns: Mapping[str, type]
    kind = "values"

    @property
    def types(self) -> Mapping[str, str]:
        return {name: TYPES[type_] for name, type_ in self.columns.items()}


Source = Totals | Values


class View(Protocol):
    """What `apply` needs of a view."""

    @property
    def name(self) -> str: ...
    @property
    def entity(self) -> Entity: ...
    @property
    def sources(self) -> tuple[Source, ...]: ...
    @property
    def features(self) -> Mapping[str, str]: ...
    @property
    def sql(self) -> str: ...


@dataclass(frozen=True)
class FeatureView:
    """Features of one source.

    Of totals: for each window (`3h`, `7d`) the number of events that became known in it, and the mean of each column. Of values:
    the newest ones, null where they are older than `ttl`.
    """

    name: str
    source: Source
    windows: tuple[str, ...] = ()
    ttl: str | None = None

    def __post_init__(self) -> None:
        if (self.source.kind == "totals") != bool(self.windows) or (self.ttl and self.windows):
            raise MlstackError(
                f"the feature view {self.name} does not fit its source.",
                "Totals are read in windows; values have none, and may have a time to live.",
                'give windows=("1d", "7d") with Totals, and ttl="6h" or nothing with Values',
            )

    @property
    def entity(self) -> Entity:
        return self.source.entity

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.source,)

    @property
    def features(self) -> Mapping[str, str]:
        """Each feature's name and type."""
        if self.source.kind == "values":
            return {f"{self.name}_{column}": type_ for column, type_ in self.source.types.items()}
        columns = {"n": TYPES[int]} | dict.fromkeys(self.source.types, TYPES[float])
        return {f"{self.name}_{column}_{window}": type_ for window in self.windows for column, type_ in columns.items()}

    @property
    def sql(self) -> str:
        if self.source.kind == "values":
            fresh = f" AND latest.event_time > {self._at} - interval '{hours_of(self.ttl)} hours'" if self.ttl else ""
            columns = ", ".join(f"latest.{column}" for column in self.source.types)
            return f"SELECT {columns}\nFROM (VALUES (true)) once\nLEFT JOIN {self._known(0, 'latest')} ON true{fresh}"
        columns = ",\n  ".join(self._in_window(number) for number in range(1, len(self.windows) + 1))
        joins = [self._known(hours_of(window), f"w{number}") for number, window in enumerate(self.windows, 1)]
        joined = "\n".join(f"LEFT JOIN {join} ON true" for join in (self._known(0, "w0"), *joins))
        return f"SELECT\n  {columns}\nFROM (VALUES (true)) once\n{joined}"

    @property
    def _at(self) -> str:
        """The parameter after the keys."""
        return f"${len(self.entity.keys) + 1}"

    def _known(self, hours: int, name: str) -> str:
        """The entity's newest row that was known so many hours before."""
        keys = " AND ".join(f"known.{key} = ${number}" for number, key in enumerate(self.entity.keys, 1))
        time = f"{self._at} - interval '{hours} hours'" if hours else self._at
        return (
            f"LATERAL (SELECT known.* FROM features.events_{self.source.name} known"  # noqa: S608 # Postgres checks the names
            f" WHERE {keys} AND known.known_at <= {time} ORDER BY known.known_at DESC LIMIT 1) {name}"
        )

    def _in_window(self, number: int) -> str:
        """The count and the means of a window: differences of the totals at its end and at its beginning."""
        count, *sums = (f"coalesce(w0.{column}, 0) - coalesce(w{number}.{column}, 0)" for column in ("n", *self.source.types))
        return ", ".join((count, *(f"({total})::float8 / nullif({count}, 0)" for total in sums)))


@dataclass(frozen=True)
class SqlView:
    """Features by SQL of your own: one SELECT of one row, in which $1, $2 are the keys of the entity and the next is the time.

    It reads `features.events_<source>`, and only rows whose known_at is not after that time.
    """

    name: str
    entity: Entity
    types: Mapping[str, type]
    sql: str
    sources: tuple[Source, ...] = field(default=())

    @property
    def features(self) -> Mapping[str, str]:
        return {name: TYPES[type_] for name, type_ in self.types.items()}


def hours_of(text: str) -> int:
    """The hours of 3h or 7d. Raises MlstackError."""
    if not (match := re.fullmatch(r"([1-9][0-9]{0,4})([hd])", text)):
        raise MlstackError(
            f"{text!r} is not a time such as 3h or 7d.",
            "Windows and times to live are whole hours or days.",
            "write a number and h or d",
        )
    return int(match[1]) * _HOURS[match[2]]
