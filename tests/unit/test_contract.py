"""What users and outside checks rely on; and that .env.example, settings.py and docker-compose.yml agree."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from mlstack import client, settings
from mlstack.host import folders
from mlstack.host.stack import Stack
from mlstack.settings import DETECTED, GENERATED, VARIABLES
from tests.support.clone import PORTS
from tests.support.projects import ROOT, compose_config, set_values, without

COMPOSE_FILE = "".join(path.read_text() for path in (ROOT / "docker-compose.yml", *sorted((ROOT / "compose").glob("*.yml"))))
DEFAULTS = dotenv_values(ROOT / ".env.example", interpolate=False)
# For clients and commands on the host; no service gets them.
HOST_ONLY = {"MLFLOW_TRACKING_URI", "BACKUP_DIR", "BACKUP_KEY", "JUPYTER_EXTRA_REQUIREMENTS", "TRACE_ARCHIVE", "TRACE_RETENTION"}
# Of the shell that starts the stack, not of .env.
OF_SHELL = {"NO_PROXY"}

# The variables whose values a service gets.
LOG_SETTINGS = {"HOST_UID", "HOST_GID", "LOG_DIR", "LOG_LEVEL"}
MLFLOW_LOGIN = {"MLFLOW_DB_USER", "MLFLOW_DB_PASSWORD", "POSTGRES_DB", "ACCOUNTS_DB_USER", "ACCOUNTS_DB_PASSWORD"}
READER = {"READER_DB_USER", "READER_DB_PASSWORD"}
CONSOLE = {"MINIO_CONSOLE_USER", "MINIO_CONSOLE_PASSWORD"}
MLFLOW_KEYS = {"MLFLOW_S3_ACCESS_KEY_ID", "MLFLOW_S3_SECRET_ACCESS_KEY", "MINIO_BUCKET", "DATASETS_BUCKET"}
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
        "SCORING_USERNAME",
        "WEBHOOK_HOSTS",
        "TRACE_ROLLUPS",
    },
    "jupyter": LOG_SETTINGS
    | NOTEBOOK_ACCOUNT
    | {
        "JUPYTER_TOKEN",
        "JUPYTER_PORT",
        "JUPYTER_IMAGE",
        "JUPYTER_MEMORY",
        "JUPYTER_IDLE_HOURS",
        "JUPYTER_EXTRA_APT",
        "MLFLOW_PORT",
    },
}
# Every volume, and where it is in its container.
MOUNTS = {
    ("postgres", "/var/lib/postgresql/data"),
    ("minio", "/data"),
    ("home", "/home/mlstack"),
    ("spool", "/spool"),
    ("scratch", "/tmp"),  # noqa: S108 (in the container)
    ("models", "/models"),
}
# The same for the services of optional parts.
SCORING_ACCOUNT = {"SCORING_USERNAME", "SCORING_PASSWORD"}
SCORING_ROLE = {"SCORING_DB_USER", "SCORING_DB_PASSWORD"}
PARTS = {
    "scoring": {
        "scoring-account": LOG_SETTINGS
        | SCORING_ACCOUNT
        | {"POSTGRES_DB", "ACCOUNTS_DB_USER", "ACCOUNTS_DB_PASSWORD", "MLFLOW_IMAGE"},
        "scoring-database": LOG_SETTINGS
        | DATABASE_OWNER
        | SCORING_ROLE
        | {"SERVING_DB_USER", "SERVING_DB_PASSWORD", "DECISION_RETENTION", "MLFLOW_IMAGE"},
        "scoring": SCORING_ACCOUNT
        | SCORING_ROLE
        | {"SCORING_PORT", "SCORING_ALIASES", "SCORING_MEMORY", "SCORING_RATE", "SCORING_IMAGE", "POSTGRES_DB", "DECISION_LOG"}
        | {"SCORING_HOSTS", "SCORING_REPLICAS", "SCORING_THREADS", "LOG_LEVEL"},
        "scoring-proxy": {"SCORING_PORT", "SCORING_REPLICAS", "SCORING_IMAGE"},
    },
    "gateway": {
        "gateway": MLFLOW_LOGIN
        | {
            "MLFLOW_ADMIN_USERNAME",
            "MLFLOW_TRACKING_USERNAME",
            "MLFLOW_FLASK_SERVER_SECRET_KEY",
            "MLFLOW_CRYPTO_KEK_PASSPHRASE",
            "MLFLOW_AUTH",
            "MLFLOW_PORT",
            "MLFLOW_IMAGE",
            "SCORING_USERNAME",
            "GATEWAY_HOSTS",
            "GATEWAY_JOB_TOKEN",
            "TRACE_ROLLUPS",
        },
        "gateway-jobs": {
            "MLFLOW_DB_USER",
            "MLFLOW_DB_PASSWORD",
            "POSTGRES_DB",
            "MLFLOW_IMAGE",
            "MLFLOW_TRACKING_USERNAME",
            "GATEWAY_JOB_TOKEN",
            "GATEWAY_JOBS_MEMORY",
            "TRACE_ROLLUPS",
        },
    },
    "ray": {
        "ray-head": {"HOST_UID", "HOST_GID", "JUPYTER_IMAGE", "RAY_TOKEN"},
        "ray-worker": NOTEBOOK_ACCOUNT
        | {"HOST_UID", "HOST_GID", "JUPYTER_IMAGE", "RAY_TOKEN", "RAY_WORKERS", "RAY_WORKER_CPUS", "RAY_WORKER_MEMORY"},
    },
}
GIVEN_WITH_PARTS = GIVEN | {name: given for services in PARTS.values() for name, given in services.items()}
OF_PARTS = ("SCORING_", "SERVING_", "DECISION_", "GATEWAY_", "RAY_")  # how the names of their variables begin
# They select a part, or a block of a file in compose/, and are no values themselves.
EXTERNAL = {name for name in VARIABLES if name.startswith("EXTERNAL_")}
CHOICES = {"COMPOSE_PROFILES", "STORAGE", "MLFLOW_OUTBOUND", "JUPYTER_OUTBOUND", "JUPYTER_GPU", "RAY_NOTEBOOKS"} | EXTERNAL
CHOICES |= {"RAY_HOST", "RAY_HEAD"}
ONE_SHOTS = {"bootstrap", "migration", "scoring-account", "scoring-database"}
LONG_RUNNING = sorted(GIVEN_WITH_PARTS.keys() - ONE_SHOTS)
CORE = sorted(GIVEN.keys() - ONE_SHOTS)


@pytest.fixture
def config(project: Path) -> dict[str, Any]:
    """The compose file with every part on, and a different value for every variable."""
    marks = {name: f"mark{number}mark" for number, name in enumerate(VARIABLES) if name not in CHOICES}
    counts = ("SCORING_REPLICAS", "RAY_WORKERS", "RAY_WORKER_CPUS", "RAY_WORKER_MEMORY")
    numeric = (*PORTS, "HOST_UID", "HOST_GID", "JUPYTER_MEMORY", "SCORING_MEMORY", "GATEWAY_JOBS_MEMORY", *counts)
    numbers = {name: str(51000 + number) for number, name in enumerate(numeric)}
    set_values(project, **(marks | numbers | {"COMPOSE_PROFILES": ",".join(PARTS)}))
    return compose_config(project)


def variables_in(project: Path, part: object) -> set[str]:
    text = json.dumps(part)
    values = dotenv_values(project / ".env", interpolate=False)
    return {name for name, value in values.items() if value and value in text and name not in CHOICES}


def test_env_example_and_settings_have_the_same_keys() -> None:
    assert list(DEFAULTS) == list(VARIABLES)


def test_env_example_explains_each_key_above_it() -> None:
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


def test_env_example_has_placeholders_for_exactly_the_secrets() -> None:
    assert {name for name, value in DEFAULTS.items() if value == GENERATED} == {
        name for name, variable in VARIABLES.items() if variable.secret and not variable.optional
    }


def test_env_example_has_valid_defaults() -> None:
    wrong = [VARIABLES[name].complaint(value) for name, value in DEFAULTS.items() if value not in (GENERATED, DETECTED)]
    assert [complaint for complaint in wrong if complaint] == []


def test_compose_file_and_settings_have_the_same_variables() -> None:
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE_FILE))
    assert used - OF_SHELL == set(VARIABLES) - HOST_ONLY - {"COMPOSE_PROFILES"}


def test_compose_file_requires_every_variable_that_is_not_optional(subtests: pytest.Subtests) -> None:
    for name in VARIABLES.keys() - HOST_ONLY - {"COMPOSE_PROFILES"}:
        with subtests.test(name=name):
            uses = set(re.findall(rf"(?<!\$)\$\{{?{name}\b(..)", COMPOSE_FILE)) - {":+"}  # whether it is empty
            assert uses == ({":-"} if VARIABLES[name].optional or name.startswith(OF_PARTS) else {":?"})


def test_variable_of_a_part_has_the_default_of_env_example_in_its_file() -> None:
    """compose reads the file also while the part is off, and an older .env lacks the variable."""
    text = COMPOSE_FILE.replace("${SCORING_IMAGE:-${", "").replace('"${SCORING_REPLICAS:-1}"', "")  # empty is one
    text = text.replace("${RAY_HOST:-ray-head.mlstack.internal}", "")  # empty is the head in the stack's networks
    uses = re.findall(rf"(?<!\$)\$\{{((?:{'|'.join(OF_PARTS)})\w+):-([^}}]*)\}}", text)
    assert {name for name, _ in uses} == {name for name in VARIABLES if name.startswith(OF_PARTS)} - {"SCORING_IMAGE"}
    assert {name: default for name, default in uses if default != str(DEFAULTS[name]).replace(GENERATED, "")} == {}


@pytest.mark.docker
def test_core_starts_with_an_env_that_lacks_the_keys_of_parts(project: Path) -> None:
    keys = [name for name in VARIABLES if name.startswith(OF_PARTS) or name == "COMPOSE_PROFILES"]
    (project / ".env").write_text(without(project, *keys))
    assert compose_config(project)["services"].keys() == GIVEN.keys()


@pytest.mark.docker
def test_core_is_the_same_whether_a_part_is_on_or_off(project: Path) -> None:
    core = compose_config(project)
    assert core["services"].keys() == GIVEN.keys()
    assert "models" not in core["volumes"]
    set_values(project, COMPOSE_PROFILES=",".join(PARTS))
    grown = compose_config(project)
    assert {name: grown["services"][name] for name in GIVEN} == core["services"]


@pytest.mark.docker
@pytest.mark.parametrize("name", ["POSTGRES_PASSWORD", "JUPYTER_TOKEN", "CA_BUNDLE"])
def test_compose_itself_reports_a_missing_variable(project: Path, name: str) -> None:
    set_values(project, **{name: ""})
    done = subprocess.run(["docker", "compose", "config"], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert re.search(rf"required variable {name} is missing a value: run make env", done.stderr)


@pytest.mark.docker
def test_service_gets_its_own_values_and_no_other(project: Path, config: dict[str, Any], subtests: pytest.Subtests) -> None:
    for name, variables in GIVEN_WITH_PARTS.items():
        with subtests.test(service=name):
            assert variables_in(project, config["services"][name]) == variables


@pytest.mark.docker
def test_every_value_reaches_a_service(project: Path, config: dict[str, Any]) -> None:
    assert variables_in(project, config) == set(VARIABLES) - HOST_ONLY - CHOICES - {"VERSITYGW_IMAGE"}


@pytest.mark.docker
def test_generated_secret_is_only_in_the_services_that_use_it(project: Path, subtests: pytest.Subtests) -> None:
    # With the .env that users have, not with the marks of `config`.
    set_values(project, COMPOSE_PROFILES=",".join(PARTS))
    values = settings.of_project(project)
    config = compose_config(project)
    for secret, users in {
        "POSTGRES_PASSWORD": {"postgres", "bootstrap", "scoring-database"},
        "MINIO_ROOT_USER": {"minio", "bootstrap"},
        "MINIO_ROOT_PASSWORD": {"minio", "bootstrap"},
        "MINIO_CONSOLE_PASSWORD": {"bootstrap"},
        "MLFLOW_ADMIN_PASSWORD": {"migration"},
        "JUPYTER_TOKEN": {"jupyter"},
        "MLFLOW_TRACKING_PASSWORD": {"jupyter", "migration", "ray-worker"},
        "SCORING_PASSWORD": {"scoring", "scoring-account"},
        "GATEWAY_JOB_TOKEN": {"gateway", "gateway-jobs"},
        "RAY_TOKEN": {"ray-head", "ray-worker"},
        "MLFLOW_CRYPTO_KEK_PASSPHRASE": {"mlflow", "gateway"},
        "SERVING_DB_PASSWORD": {"scoring-database"},
        "SCORING_DB_PASSWORD": {"scoring", "scoring-database"},
    }.items():
        with subtests.test(secret=secret):
            assert {name for name, service in config["services"].items() if values[secret] in json.dumps(service)} == users


@pytest.mark.docker
def test_compose_puts_secrets_in_the_environment_only(project: Path, config: dict[str, Any]) -> None:
    secrets = {name for name, variable in VARIABLES.items() if variable.secret}
    for service in config["services"].values():
        exposed = {key: value for key, value in service.items() if key != "environment"}
        assert variables_in(project, exposed) & secrets == set()


@pytest.mark.docker
def test_jupyter_gets_the_url_of_mlflow_and_no_s3_or_database_login(config: dict[str, Any]) -> None:
    environment = config["services"]["jupyter"]["environment"]
    assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert not [name for name in environment if name.startswith(("AWS_", "MINIO_", "POSTGRES_", "PG", "MLFLOW_S3"))]


@pytest.mark.docker
def test_jupyter_has_the_retry_settings_of_clients_on_the_host(config: dict[str, Any]) -> None:
    environment = config["services"]["jupyter"]["environment"]
    assert {name: environment.get(name) for name in client.PATIENCE} == client.PATIENCE


@pytest.mark.docker
def test_services_are_those_of_the_contract(config: dict[str, Any]) -> None:
    assert config["services"].keys() == GIVEN_WITH_PARTS.keys()
    one_shots = {
        name
        for service in config["services"].values()
        for name, dependency in service.get("depends_on", {}).items()
        if dependency["condition"] == "service_completed_successfully"
    }
    assert one_shots == ONE_SHOTS


def test_env_example_has_the_names_and_defaults_of_the_contract() -> None:
    defaults = {
        "COMPOSE_PROJECT_NAME": "mlstack",
        "POSTGRES_PORT": "5432",
        "MINIO_PORT": "9000",
        "MINIO_CONSOLE_PORT": "9001",
        "MLFLOW_PORT": "5001",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:${MLFLOW_PORT}",
        "JUPYTER_PORT": "8888",
    }
    names = """POSTGRES_USER POSTGRES_PASSWORD POSTGRES_DB MINIO_ROOT_USER MINIO_ROOT_PASSWORD MLFLOW_TRACKING_USERNAME
        MLFLOW_TRACKING_PASSWORD JUPYTER_TOKEN LOG_DIR LOG_LEVEL"""
    assert DEFAULTS.items() >= defaults.items()
    assert DEFAULTS.keys() >= set(names.split())


@pytest.mark.docker
def test_container_has_a_generated_name_and_bounded_logs(config: dict[str, Any], subtests: pytest.Subtests) -> None:
    for name, service in config["services"].items():
        with subtests.test(service=name):
            assert "container_name" not in service
            assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.docker
def test_long_running_service_has_a_healthcheck_and_restarts(config: dict[str, Any], subtests: pytest.Subtests) -> None:
    for name in LONG_RUNNING:
        with subtests.test(service=name):
            service = config["services"][name]
            assert service["restart"] == "always"
            assert service["healthcheck"]["test"]
            assert "disable" not in service["healthcheck"]


@pytest.mark.docker
def test_one_shot_does_not_restart_and_publishes_no_port(config: dict[str, Any], subtests: pytest.Subtests) -> None:
    for name in ONE_SHOTS:
        with subtests.test(service=name):
            assert config["services"][name].get("restart", "no") == "no"
            assert "ports" not in config["services"][name]


@pytest.mark.docker
def test_container_has_no_unneeded_privilege(config: dict[str, Any], subtests: pytest.Subtests) -> None:
    for name, service in config["services"].items():
        with subtests.test(service=name):
            assert service["cap_drop"] == ["ALL"] and "cap_add" not in service and "privileged" not in service
            assert service["security_opt"] == ["no-new-privileges:true"]
            assert service["read_only"] is True
            assert not [mount for mount in service.get("volumes", []) if "docker.sock" in mount["source"]]


@pytest.mark.docker
def test_container_does_not_swap_beyond_its_limit(config: dict[str, Any], subtests: pytest.Subtests) -> None:
    for name, service in config["services"].items():
        with subtests.test(service=name):
            assert service["memswap_limit"] == service["mem_limit"]


@pytest.mark.docker
def test_healthcheck_runs_without_secrets(config: dict[str, Any], subtests: pytest.Subtests) -> None:
    for name in LONG_RUNNING:
        with subtests.test(service=name):
            service = config["services"][name]
            _, program, *arguments = service["healthcheck"]["test"]
            removed = arguments[1::2] if arguments[0] == "-u" else service["environment"]
            secrets = {key for key in service["environment"] if "PASSWORD" in key or "SECRET" in key or "TOKEN" in key}
            assert program == "env" and arguments[0] in ("-i", "-u")
            assert secrets <= set(removed)


@pytest.mark.docker
def test_no_container_uses_dockers_init_which_would_keep_the_secrets(config: dict[str, Any]) -> None:
    """The images have an init of their own, which starts after the secrets are removed from the environment."""
    assert not [name for name, service in config["services"].items() if service.get("init")]


@pytest.mark.docker
def test_memory_limits_fit_a_laptop_with_8_gib(project: Path) -> None:
    services = compose_config(project)["services"]
    assert all(service["pids_limit"] for service in services.values())
    assert sum(int(services[name]["mem_limit"]) for name in CORE) <= 7 * 1024**3


@pytest.mark.docker
def test_every_port_is_published_on_loopback_only(config: dict[str, Any]) -> None:
    published = [port for service in config["services"].values() for port in service.get("ports", [])]
    assert len(published) == len(PORTS)
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}


@pytest.mark.docker
def test_data_is_in_named_volumes_and_two_host_folders(config: dict[str, Any]) -> None:
    mounts = [mount for service in config["services"].values() for mount in service.get("volumes", [])]
    assert {(mount["source"], mount["target"]) for mount in mounts if mount["type"] == "volume"} == MOUNTS
    assert config["volumes"].keys() == {source for source, _ in MOUNTS}
    assert {mount["target"] for mount in mounts if mount["type"] != "volume"} == {
        "/logs",
        "/home/mlstack/notebooks",
        "/sql",
    }
    assert {mount.get("read_only") for mount in mounts if mount["target"] == "/sql"} == {True}
    covers = {f"/home/mlstack/notebooks/{name}:ro,size=4k,mode=555" for name in folders.COVERED}
    assert set(config["services"]["jupyter"]["tmpfs"]) == covers


@pytest.mark.docker
def test_each_container_has_a_log_folder_of_its_own(project: Path, config: dict[str, Any]) -> None:
    stack = Stack.of(project)
    mounted = {
        name: mount["source"]
        for name, service in config["services"].items()
        for mount in service.get("volumes", [])
        if mount["target"] == "/logs"
    }
    assert mounted == {name: str(stack.logs / name) for name in stack.services.logging}


@pytest.mark.docker
def test_jupyter_shares_no_network_with_postgres_and_one_with_minio_alone(config: dict[str, Any]) -> None:
    networks = {name: set(service["networks"]) for name, service in config["services"].items()}
    assert networks["jupyter"] & networks["postgres"] == set()
    assert networks["jupyter"] & networks["minio"] == {"transfers"}
    assert {name for name, joined in networks.items() if "transfers" in joined} == {
        "jupyter",
        "minio",
        "scoring",
        "ray-head",
        "ray-worker",
    }
    assert networks["ray-head"] == networks["ray-worker"] == {"work", "transfers"}
    assert networks["gateway"] == {"data", "gateway-outbound"}
    assert networks["gateway-jobs"] == {"data"}
    assert networks["scoring"] & networks["minio"] == {"data", "transfers"}
    assert networks["scoring"] & networks["postgres"] == {"data"}
    assert networks["jupyter"] & networks["mlflow"] != set()


@pytest.mark.docker
@pytest.mark.parametrize(("gpu", "outbound"), [("on", "off"), ("on", "on"), ("off", "on")])
def test_gpus_and_outbound_access_are_independent(project: Path, gpu: str, outbound: str) -> None:
    set_values(project, JUPYTER_GPU=gpu, JUPYTER_OUTBOUND=outbound)
    services = compose_config(project)["services"]
    asking = {name for name, service in services.items() if "devices" in json.dumps(service.get("deploy", {}))}
    assert asking == ({"jupyter"} if gpu == "on" else set())
    assert f"outbound-{outbound}" in services["jupyter"]["networks"]


@pytest.mark.docker
@pytest.mark.parametrize(("hosts", "networks"), [("", {"data"}), ("ollama:11434", {"data", "gateway-outbound"})])
def test_gateway_has_a_way_out_only_with_a_host_that_env_names(project: Path, hosts: str, networks: set[str]) -> None:
    set_values(project, COMPOSE_PROFILES="gateway", GATEWAY_HOSTS=hosts)
    config = compose_config(project)
    assert config["services"]["gateway"]["networks"].keys() == networks
    assert ("gateway-outbound" in config["networks"]) == bool(hosts)


@pytest.mark.docker
def test_versitygw_takes_the_place_of_minio_and_leaves_its_volume(project: Path) -> None:
    before = compose_config(project)
    set_values(project, STORAGE="versitygw")
    after = compose_config(project)
    assert {name for name in before["services"] if before["services"][name] != after["services"][name]} == {
        "minio",
        "bootstrap",  # both use STORAGE
        "mlflow",
    }
    old, new = before["services"]["minio"], after["services"]["minio"]
    assert {key for key in old | new if old.get(key) != new.get(key)} == {
        "build",
        "command",
        "environment",
        "healthcheck",
        "image",
        "labels",
        "volumes",
    }
    assert [mount["source"] for mount in new["volumes"]] == ["versitygw"]
    assert Stack.of(project).image("minio") == new["image"] == f"{Stack.of(project).name}-versitygw"
    assert "minio" in Stack.of(project).built


@pytest.mark.docker
def test_the_devcontainer_opens_the_notebooks_in_their_service(config: dict[str, Any]) -> None:
    devcontainer = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    service = config["services"][devcontainer["service"]]
    assert devcontainer["workspaceFolder"] in {mount["target"] for mount in service["volumes"]}
    assert devcontainer["initializeCommand"] == "make up"  # otherwise the container would be started from another configuration
    assert devcontainer["shutdownAction"] == "none"


@pytest.mark.docker
def test_two_stacks_share_no_volume_network_or_image_name(project: Path) -> None:
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
