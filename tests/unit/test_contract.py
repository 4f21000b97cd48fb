"""What users and outside checks rely on; and that .env.example, settings.py and docker-compose.yml say the same."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from mlstack import client, settings
from mlstack.host import folders, preflight
from mlstack.settings import DETECTED, GENERATED, VARIABLES
from tests.support.projects import ROOT, compose_config, set_values

COMPOSE_FILE = (ROOT / "docker-compose.yml").read_text()
DEFAULTS = dotenv_values(ROOT / ".env.example", interpolate=False)
# For clients and commands on this machine; no service is given them.
HOST_ONLY = {"MLFLOW_TRACKING_URI", "BACKUP_DIR", "BACKUP_KEY"}

# Every value that a service is given, by the variable it comes from.
LOG_SETTINGS = {"HOST_UID", "HOST_GID", "LOG_DIR", "LOG_LEVEL"}
MLFLOW_LOGIN = {"MLFLOW_DB_USER", "MLFLOW_DB_PASSWORD", "POSTGRES_DB", "ACCOUNTS_DB_USER", "ACCOUNTS_DB_PASSWORD"}
READER = {"READER_DB_USER", "READER_DB_PASSWORD"}
CONSOLE = {"MINIO_CONSOLE_USER", "MINIO_CONSOLE_PASSWORD"}
MLFLOW_KEYS = {"MLFLOW_S3_ACCESS_KEY_ID", "MLFLOW_S3_SECRET_ACCESS_KEY", "MINIO_BUCKET"}
DATABASE_OWNER = {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"}
STORAGE_OWNER = {"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"}
NOTEBOOK_ACCOUNT = {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
GIVEN = {
    "postgres": DATABASE_OWNER | {"POSTGRES_PORT", "POSTGRES_IMAGE"},
    "minio": STORAGE_OWNER | {"MINIO_PORT", "MINIO_CONSOLE_PORT", "MINIO_IMAGE"},
    "bootstrap": LOG_SETTINGS
    | DATABASE_OWNER
    | STORAGE_OWNER
    | MLFLOW_LOGIN
    | MLFLOW_KEYS
    | READER
    | CONSOLE
    | {"MLFLOW_IMAGE", "MINIO_BUCKET_QUOTA"},
    "migration": LOG_SETTINGS
    | MLFLOW_LOGIN
    | NOTEBOOK_ACCOUNT
    | {"MLFLOW_ADMIN_USERNAME", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_IMAGE", "READER_DB_USER"},
    "mlflow": MLFLOW_LOGIN
    | MLFLOW_KEYS
    | READER
    | {
        "MLFLOW_ADMIN_USERNAME",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
        "MLFLOW_CRYPTO_KEK_PASSPHRASE",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
        "MLFLOW_AUTH",
        "MLFLOW_PORT",
        "MINIO_PORT",
        "MLFLOW_IMAGE",
    },
    "jupyter": LOG_SETTINGS
    | NOTEBOOK_ACCOUNT
    | {"JUPYTER_TOKEN", "JUPYTER_PORT", "JUPYTER_IMAGE", "JUPYTER_MEMORY", "MLFLOW_PORT"},
}
# They choose a block of compose/outbound.yml and are not values of their own.
CHOICES = {"MLFLOW_OUTBOUND", "JUPYTER_OUTBOUND"}
ONE_SHOTS = {"bootstrap", "migration"}
LONG_RUNNING = sorted(GIVEN.keys() - ONE_SHOTS)


@pytest.fixture
def config(project: Path) -> dict[str, Any]:
    """The compose file with a value for every variable by which it can be told from all others."""
    marks = {name: f"mark{number}mark" for number, name in enumerate(VARIABLES) if name not in CHOICES}
    numbers = {
        name: str(51000 + number) for number, name in enumerate((*preflight.PORTS, "HOST_UID", "HOST_GID", "JUPYTER_MEMORY"))
    }
    set_values(project, **(marks | numbers))
    return compose_config(project)


def variables_in(project: Path, part: object) -> set[str]:
    text = json.dumps(part)
    values = dotenv_values(project / ".env", interpolate=False)
    return {name for name, value in values.items() if value and value in text and name not in CHOICES}


def test_the_example_and_the_settings_have_the_same_keys() -> None:
    assert list(DEFAULTS) == list(VARIABLES)


def test_the_example_explains_each_key_above_it() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    comments: list[str] = []
    explained = set()
    for line in lines:
        if line.startswith("# ----"):
            comments = []
        elif line.startswith("#"):
            comments.append(line)
        elif line and comments:
            explained.add(line.partition("=")[0])
    assert explained == set(VARIABLES)


def test_every_secret_is_generated_and_no_example_is_one() -> None:
    assert {name for name, value in DEFAULTS.items() if value == GENERATED} == {
        name for name, variable in VARIABLES.items() if variable.secret
    }


def test_what_is_neither_made_nor_empty_is_a_good_default() -> None:
    wrong = [VARIABLES[name].complaint(value) for name, value in DEFAULTS.items() if value not in (GENERATED, DETECTED)]
    assert [complaint for complaint in wrong if complaint] == []


def test_compose_and_the_settings_have_the_same_variables() -> None:
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE_FILE))
    assert used == set(VARIABLES) - HOST_ONLY


@pytest.mark.parametrize("name", [name for name, variable in VARIABLES.items() if name not in HOST_ONLY])
def test_compose_refuses_to_start_without_what_is_required(name: str) -> None:
    uses = set(re.findall(rf"(?<!\$)\$\{{?{name}\b(..)", COMPOSE_FILE))
    assert uses == ({":-"} if VARIABLES[name].optional else {":?"})


@pytest.mark.docker
@pytest.mark.parametrize("name", ["POSTGRES_PASSWORD", "JUPYTER_TOKEN", "CA_BUNDLE"])
def test_compose_itself_names_what_is_missing(project: Path, name: str) -> None:
    set_values(project, **{name: ""})
    done = subprocess.run(["docker", "compose", "config"], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert re.search(rf"required variable {name} is missing a value: run make env", done.stderr)


@pytest.mark.docker
@pytest.mark.parametrize("service", GIVEN)
def test_a_service_is_given_its_own_values_and_no_other(project: Path, config: dict[str, Any], service: str) -> None:
    assert variables_in(project, config["services"][service]) == GIVEN[service]


@pytest.mark.docker
def test_every_value_is_given_to_somebody(project: Path, config: dict[str, Any]) -> None:
    assert variables_in(project, config) == set(VARIABLES) - HOST_ONLY - CHOICES


@pytest.mark.docker
@pytest.mark.parametrize(
    ("secret", "services"),
    [
        ("POSTGRES_PASSWORD", {"postgres", "bootstrap"}),
        ("MINIO_ROOT_USER", {"minio", "bootstrap"}),
        ("MINIO_ROOT_PASSWORD", {"minio", "bootstrap"}),
        ("MINIO_CONSOLE_PASSWORD", {"bootstrap"}),
        ("MLFLOW_ADMIN_PASSWORD", {"migration"}),
        ("JUPYTER_TOKEN", {"jupyter"}),
        ("MLFLOW_TRACKING_PASSWORD", {"jupyter", "migration"}),
    ],
)
def test_a_generated_secret_is_only_where_it_belongs(project: Path, secret: str, services: set[str]) -> None:
    # With the .env that users have, not with marks.
    value = dotenv_values(project / ".env")[secret]
    assert value is not None
    found = compose_config(project)["services"]
    assert {name for name, service in found.items() if value in json.dumps(service)} == services


@pytest.mark.docker
def test_no_secret_is_in_an_argument_list_an_image_or_a_build(project: Path, config: dict[str, Any]) -> None:
    secrets = {name for name, variable in VARIABLES.items() if variable.secret}
    for service in config["services"].values():
        exposed = {key: value for key, value in service.items() if key != "environment"}
        assert variables_in(project, exposed) & secrets == set()


@pytest.mark.docker
def test_jupyter_finds_mlflow_in_the_first_cell(config: dict[str, Any]) -> None:
    environment = config["services"]["jupyter"]["environment"]
    assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert not [name for name in environment if name.startswith(("AWS_", "MINIO_", "POSTGRES_", "PG", "MLFLOW_S3"))]


@pytest.mark.docker
def test_notebooks_are_as_patient_as_clients_on_this_machine(config: dict[str, Any]) -> None:
    environment = config["services"]["jupyter"]["environment"]
    assert {name: environment.get(name) for name in client.PATIENCE} == client.PATIENCE


@pytest.mark.docker
def test_the_services_are_those_of_the_contract(config: dict[str, Any]) -> None:
    assert config["services"].keys() == GIVEN.keys()
    before_mlflow = {
        name
        for service in config["services"].values()
        for name, dependency in service.get("depends_on", {}).items()
        if dependency["condition"] == "service_completed_successfully"
    }
    assert before_mlflow == ONE_SHOTS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COMPOSE_PROJECT_NAME", "mlstack"),
        ("POSTGRES_PORT", "5432"),
        ("MINIO_PORT", "9000"),
        ("MINIO_CONSOLE_PORT", "9001"),
        ("MLFLOW_PORT", "5001"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:${MLFLOW_PORT}"),
        ("JUPYTER_PORT", "8888"),
    ],
)
def test_a_default_of_the_contract_holds(name: str, value: str) -> None:
    assert DEFAULTS[name] == value


def test_the_names_of_the_contract_are_there() -> None:
    names = """COMPOSE_PROJECT_NAME POSTGRES_USER POSTGRES_PASSWORD POSTGRES_DB POSTGRES_PORT MINIO_ROOT_USER
        MINIO_ROOT_PASSWORD MINIO_PORT MINIO_CONSOLE_PORT MLFLOW_PORT MLFLOW_TRACKING_URI MLFLOW_TRACKING_USERNAME
        MLFLOW_TRACKING_PASSWORD JUPYTER_PORT JUPYTER_TOKEN LOG_DIR LOG_LEVEL"""
    assert set(names.split()) <= set(VARIABLES)


@pytest.mark.docker
@pytest.mark.parametrize("service", GIVEN)
def test_a_container_has_no_fixed_name_and_bounded_logs(config: dict[str, Any], service: str) -> None:
    found = config["services"][service]
    assert "container_name" not in found
    assert found["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.docker
@pytest.mark.parametrize("service", LONG_RUNNING)
def test_a_long_running_service_has_a_healthcheck_and_comes_back(config: dict[str, Any], service: str) -> None:
    found = config["services"][service]
    assert found["restart"] == "always"
    assert found["healthcheck"]["test"]
    assert "disable" not in found["healthcheck"]


@pytest.mark.docker
@pytest.mark.parametrize("service", sorted(ONE_SHOTS))
def test_a_one_shot_ends_and_is_not_started_again(config: dict[str, Any], service: str) -> None:
    found = config["services"][service]
    assert found.get("restart", "no") == "no"
    assert "ports" not in found


@pytest.mark.docker
@pytest.mark.parametrize("service", GIVEN)
def test_a_container_has_no_right_that_it_does_not_need(config: dict[str, Any], service: str) -> None:
    found = config["services"][service]
    assert found["cap_drop"] == ["ALL"] and "cap_add" not in found and "privileged" not in found
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert found["read_only"] is True
    assert not [mount for mount in found.get("volumes", []) if "docker.sock" in mount["source"]]


@pytest.mark.docker
@pytest.mark.parametrize("service", GIVEN)
def test_a_container_does_not_swap_beyond_its_limit(config: dict[str, Any], service: str) -> None:
    assert config["services"][service]["memswap_limit"] == config["services"][service]["mem_limit"]


@pytest.mark.docker
@pytest.mark.parametrize("service", LONG_RUNNING)
def test_a_healthcheck_runs_without_secrets(config: dict[str, Any], service: str) -> None:
    found = config["services"][service]
    _, program, *arguments = found["healthcheck"]["test"]
    without = arguments[1::2] if arguments[0] == "-u" else found["environment"]
    assert program == "env" and arguments[0] in ("-i", "-u")
    assert {name for name in found["environment"] if "PASSWORD" in name or "SECRET" in name or "TOKEN" in name} <= set(without)


@pytest.mark.docker
def test_the_first_process_of_a_container_is_one_without_secrets(config: dict[str, Any]) -> None:
    """Docker's own init would keep the whole environment: the images have one that is started after the secrets are taken."""
    assert not [name for name, service in config["services"].items() if service.get("init")]


@pytest.mark.docker
def test_the_limits_fit_a_laptop_with_8_gib(project: Path) -> None:
    services = compose_config(project)["services"]
    assert all(service["pids_limit"] for service in services.values())
    assert sum(int(services[name]["mem_limit"]) for name in LONG_RUNNING) <= 7 * 1024**3


@pytest.mark.docker
def test_every_port_is_published_on_this_machine_alone(config: dict[str, Any]) -> None:
    published = [port for service in config["services"].values() for port in service.get("ports", [])]
    assert len(published) == len(preflight.PORTS)
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}


@pytest.mark.docker
def test_data_is_in_named_volumes_and_two_folders_are_the_users(config: dict[str, Any]) -> None:
    mounts = [mount for service in config["services"].values() for mount in service.get("volumes", [])]
    volumes = {(mount["source"], mount["target"]) for mount in mounts if mount["type"] == "volume"}
    assert volumes == {
        ("postgres", "/var/lib/postgresql/data"),
        ("minio", "/data"),
        ("home", "/home/mlstack"),
        ("spool", "/spool"),
        ("scratch", "/tmp"),  # noqa: S108 (in the container)
    }
    assert config["volumes"].keys() == {source for source, _ in volumes}
    assert {mount["target"] for mount in mounts if mount["type"] != "volume"} == {"/logs", "/home/mlstack/notebooks"}
    covers = {f"/home/mlstack/notebooks/{name}:ro,size=4k,mode=555" for name in folders.COVERED}
    assert set(config["services"]["jupyter"]["tmpfs"]) == covers


@pytest.mark.docker
def test_each_container_has_a_log_folder_that_no_other_has_and_the_host_does_not_write_in(
    project: Path, config: dict[str, Any]
) -> None:
    log_dir = settings.log_dir(settings.of_project(project)["LOG_DIR"], project)
    found = {
        name: mount["source"]
        for name, service in config["services"].items()
        for mount in service.get("volumes", [])
        if mount["target"] == "/logs"
    }
    assert found == {name: str(log_dir / name) for name in folders.LOGGING}


@pytest.mark.docker
def test_notebooks_have_no_way_to_the_database_and_meet_the_storage_alone(config: dict[str, Any]) -> None:
    networks = {name: set(service["networks"]) for name, service in config["services"].items()}
    assert networks["jupyter"] & networks["postgres"] == set()
    assert networks["jupyter"] & networks["minio"] == {"transfers"}
    assert {name for name, joined in networks.items() if "transfers" in joined} == {"jupyter", "minio"}
    assert networks["jupyter"] & networks["mlflow"] != set()


@pytest.mark.docker
def test_two_stacks_share_no_name(project: Path) -> None:
    names = []
    for stack in ("first", "second"):
        set_values(project, COMPOSE_PROJECT_NAME=stack)
        config = compose_config(project)
        parts = [*config["volumes"].values(), *config["networks"].values()]
        names.append({part["name"] for part in parts} | {service["image"] for service in config["services"].values()})
    assert names[0] & names[1] == set()


def test_images_come_from_one_external_image() -> None:
    for dockerfile in ROOT.glob("docker/*/Dockerfile"):
        text = dockerfile.read_text()
        stages = set(re.findall(r"^FROM .* AS (\S+)", text, re.MULTILINE))
        bases = set(re.findall(r"^FROM (?:--\S+ )?(\S+)", text, re.MULTILINE))
        assert bases - stages == {"debian:trixie-slim"}, dockerfile


def test_no_image_is_tagged_latest() -> None:
    files = [ROOT / "docker-compose.yml", ROOT / ".env.example", *ROOT.glob("docker/*/Dockerfile"), *ROOT.glob("scripts/*")]
    assert [path.name for path in files if ":latest" in path.read_text()] == []
