"""Optional parts: what make add and make remove say before they touch a container, and what the preflight says of .env."""

import json
import re
from pathlib import Path

import pytest

from mlstack.errors import MlstackError
from mlstack.host import preflight, services
from mlstack.host.commands import parts, start
from mlstack.host.stack import Stack
from tests.support.projects import ROOT, compose_config, set_values


def test_every_file_of_a_part_is_included_and_has_services_of_that_part_only() -> None:
    listed = services.parts(ROOT)
    assert "scoring" in listed
    for part in listed:
        file = services._loaded(ROOT / f"compose/{part}.yml")
        assert {service["profiles"][0] for service in file["services"].values()} == {part}
        assert [service.name for service in services.of_part(ROOT, part)] == list(file["services"])


@pytest.mark.parametrize("command", [parts.add, parts.remove])
def test_unknown_part_is_rejected_with_a_list_and_changes_nothing(project: Path, command: object) -> None:
    before = (project / ".env").read_text()
    with pytest.raises(MlstackError, match="'nonsense' is no part of this stack") as rejected:
        command(Stack.of(project), "nonsense")  # type: ignore[operator]
    assert rejected.value.fix == "name one of: scoring, gateway, ray (PART=…)"
    assert (project / ".env").read_text() == before


def test_preflight_names_an_unknown_part_of_env(project: Path) -> None:
    set_values(project, COMPOSE_PROFILES="scoring,nonsense")
    (problem,) = preflight.check_env(Stack.of(project))
    assert problem.wrong == "COMPOSE_PROFILES in .env names nonsense, which is no part of this stack."
    assert "scoring" in problem.fix


def test_part_that_is_off_has_no_port_image_or_volume(project: Path) -> None:
    off = Stack.of(project)
    set_values(project, COMPOSE_PROFILES="scoring")
    on = Stack.of(project)
    assert ("SCORING_PORT" in off.services.ports, "SCORING_PORT" in on.services.ports) == (False, True)
    assert (off.built, on.built) == (["postgres", "minio", "mlflow", "jupyter"], [*off.built, "scoring"])
    assert {volume.name for volume in on.services.volumes} - {volume.name for volume in off.services.volumes} == {"models"}


def test_shell_that_overrides_the_parts_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPOSE_PROFILES", "scoring")
    with pytest.raises(MlstackError, match="COMPOSE_PROFILES comes from your shell"):
        parts._with_parts(Stack.of(project), [])


def test_notebooks_have_ray_while_the_part_is_on(project: Path) -> None:
    set_values(project, COMPOSE_PROFILES="scoring,ray")
    assert start.prepare_env(Stack.of(project)).values["RAY_NOTEBOOKS"] == "on"
    set_values(project, COMPOSE_PROFILES="scoring")
    assert start.prepare_env(Stack.of(project)).values["RAY_NOTEBOOKS"] == "off"


@pytest.mark.docker
def test_jupyter_gets_ray_and_its_token_only_with_the_part(project: Path, subtests: pytest.Subtests) -> None:
    token = Stack.of(project).values["RAY_TOKEN"]
    for notebooks, target in (("off", "jupyter"), ("on", "ray")):
        with subtests.test(notebooks=notebooks):
            set_values(project, RAY_NOTEBOOKS=notebooks)
            jupyter = compose_config(project)["services"]["jupyter"]
            assert jupyter["build"]["target"] == target
            assert (token in json.dumps(jupyter["environment"])) == (notebooks == "on")


@pytest.mark.docker
def test_number_of_workers_is_that_of_env_without_a_flag(project: Path) -> None:
    """`docker compose up` takes it too."""
    set_values(project, COMPOSE_PROFILES="ray", RAY_WORKERS="3")
    worker = compose_config(project)["services"]["ray-worker"]
    assert worker["deploy"]["replicas"] == 3


def test_ray_changes_no_package_of_the_notebooks() -> None:
    with_ray, without_ray = (versions(ROOT / f"requirements/{name}.txt") for name in ("ray", "notebook"))
    assert without_ray.items() <= with_ray.items()
    assert with_ray["ray"] == "2.60.0"


def versions(lock: Path) -> dict[str, str]:
    pinned = [line.split()[0].split("==") for line in lock.read_text().splitlines() if re.match(r"[\w.-]+==", line)]
    return dict(pinned)
