"""Features in Postgres: exact against a calculation from all events, the same in look-ups and training sets, and append-only."""

import csv
import io
import itertools
import json
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest

from mlstack.client.feature_views import Entity, FeatureView, Source, SqlView, Totals, Values, View, hours_of
from mlstack.jobs.bootstrap.postgres import ensure_database, ensure_public_cannot_connect
from mlstack.jobs.serving.__main__ import serving
from mlstack.postgres import connected
from mlstack.retries import retrying
from mlstack.scoring.feature_store import FeatureError, Store
from mlstack.settings import Login
from tests.integration.conftest import login
from tests.support.clone import ROOT, Clone
from tests.support.service import Service

ROUTE = Entity("route", ("origin", "dest"))
AIRPORT = Entity("airport", ("origin",))
DELAYS = Totals("delays", ROUTE, ("late", "delay"))
WEATHER = Values("weather", AIRPORT, {"temp": float, "sky": str})
ROUTES = FeatureView("route", DELAYS, windows=("3h", "1d", "7d"))
SKY = FeatureView("sky", WEATHER, ttl="6h")
OWN = SqlView(
    "own", ROUTE, {"own_total": int},
    "SELECT known.delay FROM features.events_delays known WHERE known.origin = $1 AND known.dest = $2 AND known.known_at <= $3"
    " ORDER BY known.known_at DESC LIMIT 1", (DELAYS,),
)  # fmt: skip
VIEWS = (ROUTES, SKY, OWN)
ORIGINS, DESTINATIONS = ("EWR", "JFK"), ("IAH", "MIA", "ORD")
START, MINUTES = datetime(2013, 1, 1, tzinfo=UTC), 30 * 24 * 60
Row = Mapping[str, Any]


class Generator:
    """Random events and rows. Times are whole minutes, so that many are equal."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311

    def time(self) -> datetime:
        return START + timedelta(minutes=self._random.randrange(MINUTES))

    def key(self) -> dict[str, str]:
        return {"origin": self._random.choice(ORIGINS), "dest": self._random.choice(DESTINATIONS)}

    def delay(self) -> dict[str, Any]:
        """An event, or the correction of one, which counts as none."""
        n, late = self._random.choice(((1, 0), (1, 1), (0, -1), (0, 0)))
        return {**self.key(), "n": n, "late": late, "delay": self._random.randint(-30, 300)}

    def weather(self) -> dict[str, Any]:
        temp = self._random.choice((None, self._random.uniform(-20, 40)))
        return {"origin": self._random.choice(ORIGINS), "temp": temp, "sky": self._random.choice(("clear", "", None, 'a "b"'))}

    def past(self, event: Row, *, known: datetime | None = None) -> dict[str, Any]:
        """An event with its times; some are known long after they happened."""
        known = known or self.time()
        return {**event, "known_at": known, "event_time": known - timedelta(minutes=self._random.choice((0, 5, 60, 600)))}

    def pasts(self, kind: str, count: int) -> list[dict[str, Any]]:
        events = [self.past(getattr(self, kind)()) for _ in range(count)]
        return list(
            {(event["origin"], event.get("dest"), event["known_at"], event["event_time"]): event for event in events}.values()
        )

    def spine(self, count: int) -> list[dict[str, Any]]:
        rows = [{**self.key(), "at": self.time()} for _ in range(count - 2)]
        return [*rows, {"origin": "nowhere", "dest": "IAH", "at": self.time()}, {**self.key(), "at": START - timedelta(days=1)}]


@dataclass
class Features:
    """The service's store, in a database of its own, and what was applied there."""

    store: Store
    service: Login
    hashes: dict[str, str] = field(default_factory=dict)

    def apply(self, *views: View) -> None:
        for view in views:
            for source in view.sources:
                self.store.create_source(source.name, source.kind, source.entity.keys, source.types)
            self.hashes[view.name] = self.store.create_view(view.name, view.entity.keys, view.features, view.sql).hash

    def backfill(self, source: Source, events: Sequence[Row]) -> int:
        counted = ["n"] if source.kind == "totals" else []
        columns = [*source.entity.keys, "known_at", "event_time", *counted, *source.types]
        return self.store.backfill(source.name, columns, lines_of([event[column] for column in columns] for event in events))

    def training_set(self, spine: Sequence[Row], *views: View) -> list[dict[str, Any]]:
        """The features of each row of the spine, as text."""
        applied = self.store.views([view.name for view in views])
        keys = [*dict.fromkeys(key for view in views for key in view.entity.keys), "at"]
        written = io.BytesIO()
        self.store.training_set(applied, lines_of([row[key] for key in keys] for row in spine), written)
        return list(csv.DictReader(io.StringIO(written.getvalue().decode())))

    def lookup(self, row: Row, *views: View) -> tuple[datetime, dict[str, Any]]:
        """The features of one entity, at a time or now, and that time."""
        (answer,) = self.store.lookup(self.store.views([f"{view.name}@{self.hashes[view.name]}" for view in views]), [row])
        return answer.at, dict(answer.features)


def lines_of(rows: Any) -> io.BytesIO:
    """CSV as COPY reads it: an empty cell is null, an empty text is quoted."""
    cells = (
        (f'"{str(value).replace(chr(34), chr(34) * 2)}"' if isinstance(value, str) else value for value in row) for row in rows
    )
    return io.BytesIO("".join(",".join("" if cell is None else str(cell) for cell in row) + "\n" for row in cells).encode())


def as_text(features: Row) -> dict[str, str]:
    """As COPY writes them."""
    return {name: "" if value is None else str(value).removesuffix(".0") for name, value in features.items()}


@dataclass(frozen=True)
class Server:
    """The bootstrapped Postgres, and the roles of the scoring service."""

    owner: Login
    schemas: Login
    service: Login

    @contextmanager
    def database(self, name: str, lead: str | None = None) -> Iterator[Features]:
        """Another database, set up by the shipped one-shot; `lead` is another time by which events are known ahead."""
        name = f"features_{name}"
        owner, schemas, service = (replace(login, database=name) for login in (self.owner, self.schemas, self.service))
        with connected(self.owner) as server:
            ensure_database(server, name, owner.user)
            ensure_public_cannot_connect(server)
        serving(owner, schemas, service, ROOT / "sql")
        if lead:
            with connected(schemas) as connection, connection.cursor() as cursor:
                function = "CREATE OR REPLACE FUNCTION features.lead() RETURNS interval LANGUAGE sql AS $$ SELECT interval %s $$"
                cursor.execute(function, (lead,))
        yield Features(Store(service), service)


@pytest.fixture(scope="module")
def server(built: Clone, postgres: Service, owner: Login, bootstrapped: None) -> Server:
    logins = (login(built, postgres, f"{name}_DB_USER", f"{name}_DB_PASSWORD") for name in ("SERVING", "SCORING"))
    return Server(owner, *logins)


@pytest.fixture(scope="module")
def features(server: Server) -> Iterator[Features]:
    """The database with a month of events."""
    with server.database("month") as features:
        features.apply(*VIEWS)
        assert features.backfill(DELAYS, EVENTS) > 2_000
        assert features.backfill(WEATHER, OBSERVATIONS) > 500
        yield features


RANDOM = Generator(1)
EVENTS, OBSERVATIONS, SPINE = RANDOM.pasts("delay", 3_000), RANDOM.pasts("weather", 3_000), RANDOM.spine(500)


# ---- exact ---------------------------------------------------------------------------------------


def calculated(row: Row) -> dict[str, Any]:
    """The features of a row, from all events that were known at its time."""
    events = [event for event in EVENTS if event["known_at"] <= row["at"] and event["origin"] == row["origin"]]
    features: dict[str, Any] = {}
    for window in ROUTES.windows:
        begin = row["at"] - timedelta(hours=hours_of(window))
        inside = [event for event in events if event["dest"] == row["dest"] and event["known_at"] > begin]
        count = sum(event["n"] for event in inside)
        features[f"route_n_{window}"] = count
        for column in DELAYS.columns:
            total = sum(event[column] for event in inside)
            features[f"route_{column}_{window}"] = total / count if count else None
    known = [event for event in OBSERVATIONS if event["known_at"] <= row["at"] and event["origin"] == row["origin"]]
    newest = max(known, key=lambda event: (event["event_time"], event["known_at"]), default=None)  # no two have both
    if newest is None or newest["event_time"] <= row["at"] - timedelta(hours=6):
        newest = {"temp": None, "sky": None}
    return {**features, "sky_temp": newest["temp"], "sky_sky": newest["sky"]}


def test_features_are_those_calculated_from_all_events(features: Features) -> None:
    differing = [
        (row, name, value, joined[name])
        for row, joined in zip(SPINE, features.training_set(SPINE, ROUTES, SKY), strict=True)
        for name, value in as_text(calculated(row)).items()
        if joined[name] != value
    ]
    assert differing == []


def test_events_of_the_future_change_nothing(server: Server, features: Features) -> None:
    middle = START + timedelta(minutes=MINUTES / 2)
    past = [row for row in SPINE if row["at"] <= middle]
    with server.database("past") as other:
        other.apply(*VIEWS)
        other.backfill(DELAYS, [event for event in EVENTS if event["known_at"] <= middle])
        other.backfill(WEATHER, [event for event in OBSERVATIONS if event["known_at"] <= middle])
        assert other.training_set(past, *VIEWS) == features.training_set(past, *VIEWS)


def test_events_that_are_added_by_the_week_are_those_of_a_rebuild(server: Server, features: Features) -> None:
    with server.database("weeks") as other:
        other.apply(*VIEWS)
        for source, events in ((DELAYS, EVENTS), (WEATHER, OBSERVATIONS)):
            for week in range(5):
                begin = START + timedelta(weeks=week)
                other.backfill(source, [event for event in events if begin <= event["known_at"] < begin + timedelta(weeks=1)])
        assert other.training_set(SPINE, *VIEWS) == features.training_set(SPINE, *VIEWS)


def test_correction_changes_what_is_known_after_it_and_nothing_else(server: Server) -> None:
    key, before, after = {"origin": "EWR", "dest": "IAH"}, START + timedelta(hours=1), START + timedelta(hours=5)
    spine = [{**key, "at": at} for at in (before, after - timedelta(seconds=1), after, after + timedelta(hours=3))]
    with server.database("corrected") as other:
        other.apply(ROUTES)
        other.backfill(DELAYS, [RANDOM.past({**key, "n": 1, "late": 1, "delay": 60}, known=START)])
        other.backfill(DELAYS, [RANDOM.past({**key, "n": 0, "late": -1, "delay": -50}, known=after)])
        rows = other.training_set(spine, ROUTES)
    assert [(row["route_n_1d"], row["route_late_1d"], row["route_delay_1d"]) for row in rows] == [
        ("1", "1", "60"), ("1", "1", "60"), ("1", "0", "10"), ("1", "0", "10"),
    ]  # fmt: skip


def test_history_cannot_be_changed_by_a_later_backfill(features: Features) -> None:
    with pytest.raises(FeatureError, match="append a correction instead"):
        features.backfill(DELAYS, [RANDOM.past(EVENTS[0], known=START)])
    with pytest.raises(FeatureError, match="known in the future"):
        features.backfill(DELAYS, [RANDOM.past(EVENTS[0], known=datetime.now(UTC) + timedelta(hours=1))])


# ---- look-ups are training sets ------------------------------------------------------------------


def differing(features: Features, looked_up_rows: Sequence[tuple[Row, Mapping[str, Any]]], *views: View) -> int:
    """How many look-ups have other features than the training set of the same entities and times."""
    rows = features.training_set([row for row, _ in looked_up_rows], *views)
    return sum(as_text(looked_up) != joined for (_, looked_up), joined in zip(looked_up_rows, rows, strict=True))


def test_lookups_have_the_features_of_the_training_set(features: Features) -> None:
    spine = Generator(2).spine(4_000)
    views = features.store.views([view.name for view in VIEWS])
    looked_up_rows = features.store.lookup(views, [{**row, "at": row["at"].isoformat()} for row in spine])
    assert differing(features, list(zip(spine, [row.features for row in looked_up_rows], strict=True)), *VIEWS) == 0


def test_lookups_while_events_are_written_have_the_features_of_the_training_set(server: Server) -> None:
    with server.database("live") as features:
        features.apply(*VIEWS)
        stopped, written = threading.Event(), itertools.count()

        def write(generator: Generator) -> None:
            while not stopped.is_set():
                now = datetime.now(UTC).isoformat()
                features.store.append("delays", [{**generator.delay(), "event_time": now} for _ in range(next(written) % 3 + 1)])
                features.store.append("weather", [{**generator.weather(), "event_time": now}])

        def read(generator: Generator) -> list[tuple[Row, Mapping[str, Any]]]:
            """At least 2,000, and as many as it takes until a hundred of them saw other events."""
            rows: list[tuple[Row, Mapping[str, Any]]] = []
            different: set[str] = set()
            while len(rows) < 2_000 or (len(different) <= 100 and len(rows) < 20_000):
                key = generator.key()
                at, looked_up = features.lookup(key, *VIEWS)
                rows.append(({**key, "at": at}, looked_up))
                different.add(str(looked_up))
            return rows

        with ThreadPoolExecutor() as pool:
            writers = [pool.submit(write, Generator(seed)) for seed in (3, 4)]
            readers = [pool.submit(read, Generator(seed)) for seed in (5, 6)]
            try:
                looked_up_rows = [row for reader in readers for row in reader.result()]
            finally:
                stopped.set()
            for writer in writers:
                writer.result()
        assert len({str(looked_up) for _, looked_up in looked_up_rows}) > 100
        assert differing(features, looked_up_rows, *VIEWS) == 0


@pytest.mark.parametrize(("lead", "is_seen_early"), [(None, False), ("0", True)], ids=["shipped", "known at now()"])
def test_event_that_is_not_committed_yet_is_not_known_yet(server: Server, lead: str | None, is_seen_early: bool) -> None:
    key = {"origin": "EWR", "dest": "IAH"}
    event = {**key, "n": 1, "late": 1, "delay": 60, "event_time": START.isoformat()}
    with server.database(f"lead_{lead or 'shipped'}", lead) as features:
        features.apply(ROUTES)

        def lookup_before_the_commit() -> tuple[datetime, dict[str, Any]]:
            with (
                connected(replace(features.service, options="-c transaction_timeout=400ms")) as writer,
                writer.cursor() as cursor,
            ):
                writer.autocommit = False
                cursor.execute("SELECT features.append('delays', %s)", (json.dumps([event]),))
                looked_up_rows = features.lookup(key, ROUTES)
                writer.commit()
            return looked_up_rows

        # Again when the host was so slow that the transaction was ended.
        at, looked_up = retrying(180, lambda error: isinstance(error, psycopg2.OperationalError))(lookup_before_the_commit)
        assert looked_up["route_n_1d"] == 0
        assert (differing(features, [({**key, "at": at}, looked_up)], ROUTES) == 1) is is_seen_early


# ---- what is denied ------------------------------------------------------------------------------


@pytest.mark.refusal
def test_service_role_changes_no_stored_event(features: Features) -> None:
    attempts = (
        "UPDATE features.events_delays SET delay = 0",
        "DELETE FROM features.views",
        "INSERT INTO features.events_weather VALUES ('EWR', now(), now(), 1, '')",
        "DROP FUNCTION features.lead()",
        "CREATE TABLE features.more ()",
        "CREATE TEMP TABLE more ()",
        "SELECT features.create_staged('more int')",
    )
    with connected(features.service) as connection, connection.cursor() as cursor:
        for attempt in attempts:
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(attempt)
        with pytest.raises(psycopg2.errors.InvalidParameterValue, match="transaction_timeout"):
            cursor.execute("SELECT features.append('delays', '[]')")


@pytest.mark.refusal
def test_declaration_runs_no_sql_beside_its_select(features: Features) -> None:
    hostile = "x; DROP TABLE features.events_delays"
    with pytest.raises(FeatureError, match="a name has"):
        features.store.create_source(hostile, "totals", ("origin",), {"late": "bigint"})
    with pytest.raises(FeatureError, match="a name has"):
        features.store.create_source("other", "totals", (hostile,), {"late": "bigint"})
    with pytest.raises(FeatureError, match="each column has a type"):
        features.store.create_source("other", "totals", ("origin",), {"late": f"bigint); {hostile}"})
    for body in (
        "SELECT 1::bigint; SELECT 2::bigint",
        f"SELECT 1::bigint $$; {hostile}",
        "DELETE FROM features.views RETURNING 1::bigint",
    ):
        with pytest.raises(FeatureError):
            features.store.create_view("other", ("origin",), {"one": "bigint"}, body)
    assert features.training_set(SPINE[:1], ROUTES)


def test_event_that_does_not_fit_is_rejected_without_its_values(features: Features) -> None:
    with pytest.raises(FeatureError) as raised:
        features.store.append("delays", [{"origin": "EWR", "dest": "IAH", "n": 1, "late": "confidential", "delay": 1}])
    assert "confidential" not in str(raised.value)
    with pytest.raises(FeatureError, match="there is no feature view missing"):
        features.store.views(["missing"])
