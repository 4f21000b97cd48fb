"""What the commands read from the compose file about each service."""

from pathlib import Path

import pytest

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import services
from mlstack.host.stack import Stack
from tests.support.projects import ROOT, compose_config, set_values

PART = """
services:
  notes:
    labels: {mlstack.url: "http://127.0.0.1:${NOTES_PORT:?run make env}/page", mlstack.loss.kept: every note}
    restart: always
    image: debian
    profiles: [notes]
    ports: ["127.0.0.1:${NOTES_PORT:?run make env}:8000"]
    volumes: ["kept:/data"]
"""


def test_shipped_services_say_what_the_commands_show() -> None:
    listed, other = (services.read(ROOT, {"COMPOSE_PROFILES": "*", "STORAGE": storage}) for storage in settings.STORES)
    assert [
        service.name for service in listed.long_running if not service.title or bool(service.url) != bool(service.login)
    ] == []
    assert [service.name for service in listed.long_running if not service.url] == [
        "gateway",
        "gateway-jobs",
        "ray-head",
        "ray-worker",
    ]
    assert [volume.name for volume in listed.volumes if volume.loss == "its data"] == []
    declared = [file.get("volumes", {}) for file in services._files(ROOT)]
    assert {volume.name for volume in (*listed.volumes, *other.volumes)} == {name for volumes in declared for name in volumes}


def test_shipped_images_are_called_after_their_services_and_one_shots_have_that_of_mlflow(project: Path) -> None:
    set_values(project, MINIO_IMAGE="elsewhere:5000/minio:1")
    stack = Stack.of(project)
    names = {"minio": "elsewhere:5000/minio:1", "migration": f"{stack.name}-mlflow", "jupyter": f"{stack.name}-jupyter"}
    assert {name: stack.image(name) for name in names} == names
    assert sorted(stack.built) == ["jupyter", "mlflow", "postgres"]


@pytest.mark.docker
def test_compose_reads_the_same(project: Path) -> None:
    parts = ",".join(services.parts(project))
    set_values(project, MLFLOW_PORT="6001", HOST_UID="1234", MINIO_IMAGE="elsewhere:5000/minio:1", COMPOSE_PROFILES=parts)
    listed = Stack.of(project).services.by_name
    described = compose_config(project)["services"]
    assert listed.keys() == described.keys()
    for name, service in listed.items():
        compose = described[name]
        mounts = [mount for mount in compose.get("volumes", []) if mount["type"] == "volume"]
        assert service.image == compose["image"]
        assert service.user == compose.get("user", "").partition(":")[0]
        assert service.url == compose.get("labels", {}).get("mlstack.url", "")
        assert [port.inside for port in service.ports] == [port["target"] for port in compose.get("ports", [])]
        assert [volume.name for volume in service.volumes] == [mount["source"] for mount in mounts]
        assert service.is_long_running == ("restart" in compose)


@pytest.mark.parametrize(("profiles", "is_listed"), [("", False), ("other", False), ("other,notes", True), ("*", True)])
def test_part_is_listed_when_compose_profiles_names_it(tmp_path: Path, profiles: str, is_listed: bool) -> None:
    (tmp_path / services.FILE).write_text("include: [{path: part.yml}]\nservices: {one: {image: debian}}\n")
    (tmp_path / "part.yml").write_text(PART)
    listed = services.read(tmp_path, {"COMPOSE_PROFILES": profiles, "NOTES_PORT": "8090"})
    assert [service.origin for service in listed.long_running] == (["http://127.0.0.1:8090"] if is_listed else [])
    assert listed.ports == (("NOTES_PORT",) if is_listed else ())
    assert listed.volumes == ((services.Volume("kept", "every note"),) if is_listed else ())


@pytest.mark.parametrize("text", [None, "services: [", "services: {a: *nowhere}"])
def test_compose_file_that_cannot_be_read_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / services.FILE).write_text(text)
    with pytest.raises(MlstackError, match=r"docker-compose\.yml cannot be read") as refused:
        services.read(tmp_path, {})
    assert "git diff" in refused.value.fix
