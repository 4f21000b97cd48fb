"""How much traffic a challenger gets, and the ids of decisions."""

import time

from mlstack.scoring.decisions import new_request
from mlstack.scoring.records import Traffic

ENTITIES = [f"customer {number}" for number in range(2_000)]


def share(weight: float, model: str = "delays") -> set[str]:
    traffic = Traffic("canary", weight)
    return {entity for entity in ENTITIES if traffic.is_canary(model, entity)}


def test_canary_gets_its_share_of_the_entities_and_keeps_them_when_it_grows() -> None:
    assert share(0) == set()
    assert share(1) == set(ENTITIES)
    tenth, half = share(0.1), share(0.5)
    assert 140 < len(tenth) < 260
    assert tenth < half
    assert share(0.1, "other") != tenth  # not always the same people


def test_shadow_answers_nobody() -> None:
    assert not any(Traffic(mode, 1).is_canary("delays", entity) for mode in ("shadow", "off") for entity in ENTITIES)


def test_id_of_a_decision_begins_with_its_time_and_is_unique() -> None:
    before = time.time_ns() // 1_000_000
    ids = [new_request() for _ in range(1_000)]
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == 1_000
    assert {(identifier.version, identifier.variant) for identifier in ids} == {(7, "specified in RFC 4122")}
    assert all(before <= identifier.int >> 80 <= after for identifier in ids)
