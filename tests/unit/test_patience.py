"""What a call says while it waits for a server that does not answer."""

import logging
import re
from collections.abc import Iterator

import pytest
import requests
from requests.adapters import HTTPAdapter

from mlstack.client import patience
from mlstack.client.patience import AGAIN, TellingRetry
from mlstack.host.preflight import free_ports


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is logged while a call waits, in a process that has said nothing yet."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(patience, "_last_told", -AGAIN)
    patience.log.addHandler(handler)
    yield messages
    patience.log.removeHandler(handler)


def call(**settings: float) -> None:
    """A request to a port where nothing listens, with MLflow's kind of retries."""
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=TellingRetry(**settings)))
        with pytest.raises(requests.ConnectionError):
            session.get(f"{address}/api", timeout=5)


def test_call_that_waits_longer_says_for_what_and_until_when(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "SILENT", 0.1)
    for _ in range(2):
        call(total=4, backoff_factor=0.05)  # 0, 0.1, 0.2 and 0.4 seconds apart
    (line,) = lines  # the second call says nothing again
    assert re.search(r"waiting for MLflow at http://127\.0\.0\.1:\d+ \(NewConnectionError\)", line)
    assert re.search(r"until \d\d:\d\d:\d\d UTC", line)
    assert "make doctor" in line


def test_call_that_fails_at_once_says_nothing(lines: list[str]) -> None:
    call(total=3, backoff_factor=0.01)
    assert lines == []


def test_waiting_takes_as_long_as_urllib3s_own() -> None:
    pauses = []
    retry = TellingRetry(total=9, backoff_factor=1)
    for _ in range(9):
        retry = retry.increment("GET", "/", error=OSError())
        pauses.append(retry.get_backoff_time())
    assert pauses == [0, 2, 4, 8, 16, 32, 64, 120, 120]  # six minutes, as docker-compose.yml says
