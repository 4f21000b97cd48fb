"""Features through the scoring service: the sixth notebook, its features calculated again, and who may do what."""

import json
import re
from collections.abc import Iterator

import pytest
import requests

from tests.support import notebooks
from tests.support.clone import ROOT, Clone

PROGRAM = (ROOT / "tests/support/features_program.py").read_text()
NOTEBOOK = "06_features_and_scoring.ipynb"


@pytest.fixture(scope="module")
def scoring(stack: Clone) -> Iterator[Clone]:
    """The stack with the part on, after the notebook has run."""
    added = stack.make("add", PART="scoring")
    assert added.returncode == 0, added.stderr
    notebooks.run(stack, NOTEBOOK)
    yield stack
    stack.make("remove", PART="scoring")


@pytest.fixture(scope="module")
def key(scoring: Clone) -> str:
    generated = scoring.make("key", NAME="features")
    key = re.search(r"mls_\S+", generated.stdout)
    assert key, generated.stderr
    return key[0]


def post(stack: Clone, path: str, key: str, body: object) -> requests.Response:
    url = f"http://127.0.0.1:{stack.values['SCORING_PORT']}{path}"
    return requests.post(url, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def test_features_of_the_notebook_are_those_calculated_in_pandas(scoring: Clone) -> None:
    printed = scoring.in_container("jupyter", "python3", "-W", "ignore", "-c", PROGRAM)
    assert json.loads(printed.splitlines()[-1]) == {"compared": 400 * 39, "differing": []}


def test_program_with_a_key_sends_events_looks_up_and_scores(scoring: Clone, key: str) -> None:
    event = {"origin": "EWR", "event_time": "2013-04-02T00:00Z", "n": 1, "late": 0, "minutes": 3}
    appended = post(scoring, "/features/sources/airport_departures/events", key, {"events": [event]})
    assert appended.ok, appended.text
    at = appended.json()["known_at"]
    looked_up = post(scoring, "/features/lookup", key, {"views": ["airport"], "entities": [{"origin": "EWR", "at": at}]})
    (entity,) = looked_up.json()["entities"]
    assert (entity["features"]["airport_n_3h"], entity["features"]["airport_minutes_3h"]) == (1, 3.0)
    flight = {"carrier": "UA", "origin": "EWR", "dest": "IAH", "tailnum": "N14228", "hour": 8, "distance": 1400.0, "at": at}
    scored = post(scoring, "/endpoints/late_flights/entities", key, {"entities": [flight, {**flight, "at": "2013-04-01T12:00Z"}]})
    assert scored.ok, scored.text
    assert scored.headers["X-Mlstack-Model"] == "late_flights"
    (now, then) = scored.json()["predictions"]
    assert sum(now) == pytest.approx(1) and now != then


def test_rejected_requests_of_features_are_explained_without_their_values(scoring: Clone, key: str) -> None:
    event = {"origin": "EWR", "event_time": "2013-04-02", "n": 1, "late": "confidential", "minutes": 3}
    for path, body, status, message in (
        ("/features/sources/airport_departures/events", {"events": [event]}, 422, "does not fit its column"),
        ("/features/sources/missing/events", {"events": [event]}, 422, "there is no source missing"),
        ("/features/sources/missing/events", {"events": "confidential"}, 400, "field events"),
        ("/features/lookup", {"views": ["missing"], "entities": []}, 422, "there is no feature view missing"),
        ("/features/lookup", {"views": ["airport"], "entities": [{}]}, 422, "no text in the key origin"),
        ("/endpoints/late_flights/entities", {"entities": [{"origin": "EWR"}]}, 422, "no text in the key carrier"),
        ("/endpoints/late_flights/entities", {}, 400, "field entities"),
    ):
        answer = post(scoring, path, key, body)
        assert (answer.status_code, message in answer.json()["message"]) == (status, True), answer.text
        assert "confidential" not in answer.text


@pytest.mark.refusal
def test_key_declares_no_feature_and_reads_no_training_set(scoring: Clone, key: str) -> None:
    paths = ("/features/sources", "/features/views", "/features/training-set", "/features/sources/weather/history")
    for path in paths:
        assert post(scoring, path, key, {}).status_code == 403
    for path in (*paths, "/features/lookup", "/features/sources/weather/events"):
        assert post(scoring, path, "mls_guess", {}).status_code == 401
