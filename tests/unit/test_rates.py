"""How often a client of the scoring service may ask."""

from mlstack.scoring.rates import Rates


def test_client_gets_its_rate_and_takes_none_from_another() -> None:
    now = 100.0
    rates = Rates(5, lambda: now)
    assert [rates.admits("shop") for _ in range(6)] == [True] * 5 + [False]
    assert rates.admits("other")
    now += 0.2
    assert [rates.admits("shop") for _ in range(2)] == [True, False]
    now += 60
    assert [rates.admits("shop") for _ in range(6)] == [True] * 5 + [False]


def test_no_rate_is_no_limit() -> None:
    rates = Rates(0, lambda: 0.0)
    assert all(rates.admits("shop") for _ in range(1_000))
