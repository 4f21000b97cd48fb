"""Policies of the scoring service: what is a policy, what it decides, and what it would have changed."""

from typing import Any

import pytest

from mlstack.scoring.policy import Case, Policy, PolicyError, replay

THRESHOLDS = {"thresholds": [{"below": 0.3, "decision": "approve"}, {"below": 0.7, "decision": "review"}], "otherwise": "reject"}
RULES = {
    "rules": [
        {"when": "score < 0.3 && features.amount <= 100.0", "decision": "approve"},
        {"when": "entity == 'vip'", "decision": "review"},
    ],
    "otherwise": "reject",
}


def case(answer: Any, decision: str | None = None, *, amount: float = 50.0, entity: str | None = None) -> Case:
    return Case({"amount": amount}, answer, entity, decision)


def test_thresholds_decide_every_score() -> None:
    policy = Policy.of("m", 1, {**THRESHOLDS, "missing": "ask"})
    scores = [-1e300, 0.29, 0.3, 0.69, 0.7, 1e300, float("nan"), float("inf"), None, "text", True, {"prediction": 0.1}, {"a": 1}]
    decided = [policy.decide(case(score)) for score in scores]
    assert decided == ["approve"] * 2 + ["review"] * 2 + ["reject"] * 2 + ["ask"] * 5 + ["approve", "ask"]
    assert Policy.of("m", 1, THRESHOLDS).decide(case(None)) == "reject"


def test_first_rule_that_applies_decides() -> None:
    policy = Policy.of("m", 1, RULES)
    assert policy.decide(case(0.1)) == "approve"
    assert policy.decide(case(0.1, amount=101.0)) == "reject"
    assert policy.decide(case(0.9, entity="vip")) == "review"
    policy.require_total([case(0.1), case(0.9)])
    assert Policy.of("m", 1, {**RULES, "missing": "ask"}).decide(case(None)) == "ask"


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        ([], "no object"),
        ({"otherwise": "a"}, "either thresholds or rules"),
        ({**THRESHOLDS, **RULES}, "either thresholds or rules"),
        ({**THRESHOLDS, "thresholds": []}, "no list of 1 to 100"),
        ({**THRESHOLDS, "other": 1}, "unknown field 'other'"),
        ({"thresholds": THRESHOLDS["thresholds"]}, "otherwise needs a decision"),
        ({**THRESHOLDS, "otherwise": ""}, "otherwise needs a decision"),
        ({**THRESHOLDS, "otherwise": "a\0"}, "otherwise needs a decision"),
        ({**THRESHOLDS, "thresholds": [{"below": "1", "decision": "a"}]}, "threshold 1 is not"),
        ({**THRESHOLDS, "thresholds": [{"below": True, "decision": "a"}]}, "threshold 1 is not"),
        (
            {**THRESHOLDS, "thresholds": [{"below": 1, "decision": "a"}, {"below": 1, "decision": "b"}]},
            "threshold 2 .* never apply",
        ),
        ({**THRESHOLDS, "thresholds": [{"below": float("inf"), "decision": "a"}]}, "never apply"),
        ({"rules": [{"when": "score <", "decision": "a"}], "otherwise": "b"}, "rule 1 cannot be read"),
        ({"rules": [{"when": "amount < 3", "decision": "a"}], "otherwise": "b"}, "names 'amount'; it can use"),
        ({"rules": [{"when": "x" * 3000, "decision": "a"}], "otherwise": "b"}, "rule 1 is not"),
    ],
)
def test_what_is_no_policy_is_rejected_with_the_reason(definition: object, reason: str) -> None:
    with pytest.raises(PolicyError, match=reason):
        Policy.of("m", 1, definition)


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        ("features.other > 1.0", "rule 1 fails: KeyError"),
        ("score + 1.0", "rule 1 is no condition"),
        ("score > 0.9 && features.other", "rule 1 fails"),
    ],
)
def test_policy_that_does_not_decide_a_case_is_rejected_before_it_is_used(when: str, reason: str) -> None:
    policy = Policy.of("m", 1, {"rules": [{"when": when, "decision": "a"}], "otherwise": "b"})
    with pytest.raises(PolicyError, match=reason):
        policy.require_total([case(0.5)])


def test_replay_counts_what_a_policy_would_change() -> None:
    cases = [case(0.1, "approve"), case(0.1, "review"), case(0.2, "review"), case(0.9, None), case(0.5, "review")]
    replayed = replay(Policy.of("m", 2, THRESHOLDS), cases)
    assert replayed.as_json() == {
        "replayed": 5,
        "changed": 3,
        "changes": {"review → approve": 2, "no decision → reject": 1},
    }
