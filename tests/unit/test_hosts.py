"""The hosts that WEBHOOK_HOSTS and GATEWAY_HOSTS name."""

import pytest

from mlstack import settings


def test_hosts_are_names_with_ports_and_none_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATEWAY_HOSTS", raising=False)
    assert settings.hosts("GATEWAY_HOSTS") == frozenset()
    monkeypatch.setenv("GATEWAY_HOSTS", "ollama:11434,10.0.0.1:80")
    assert settings.hosts("GATEWAY_HOSTS") == {("ollama", 11434), ("10.0.0.1", 80)}


def test_hosts_reject_an_address_without_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_HOSTS", "ollama")
    with pytest.raises(settings.SettingsError, match="expected host:port"):
        settings.hosts("GATEWAY_HOSTS")
