"""What docker compose and the commands read with an existing Postgres in `.env`."""

from pathlib import Path

import pytest

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import env_file, preflight
from mlstack.host.stack import Stack
from tests.support.projects import compose_config, set_values

CLIENTS = {"bootstrap", "migration", "mlflow", "scoring-account", "scoring-database", "scoring", "gateway", "gateway-jobs"}
EXTERNAL = {
    "EXTERNAL_POSTGRES": "db.example.com",
    "EXTERNAL_POSTGRES_PORT": "6432",
    "EXTERNAL_POSTGRES_USER": "administrator",
    "EXTERNAL_POSTGRES_PASSWORD": "of-the-provider",
}
STORE = {
    "EXTERNAL_S3": "https://s3.example.com",
    "EXTERNAL_S3_REGION": "eu-test-1",
    "EXTERNAL_S3_ACCESS_KEY_ID": "login-of-the-provider",
    "EXTERNAL_S3_SECRET_ACCESS_KEY": "secret-of-the-provider",
}


@pytest.fixture
def external(project: Path) -> Path:
    (project / "authority.pem").touch()
    set_values(project, COMPOSE_PROFILES="scoring,gateway", EXTERNAL_POSTGRES_CA="authority.pem", **EXTERNAL)
    return project


@pytest.mark.docker
def test_clients_of_the_database_get_the_external_server_and_verify_it(external: Path) -> None:
    config = compose_config(external)
    for name in CLIENTS:
        service = config["services"][name]
        given = {key: value for key, value in service["environment"].items() if key.startswith("PG")}
        assert given.items() >= {"PGHOST": "db.example.com", "PGPORT": "6432", "PGSSLMODE": "verify-full"}.items(), name
        assert given["PGSSLROOTCERT"] == f"/run/secrets/{service['secrets'][0]['source']}"
        assert "dns" not in service, "it has to resolve the server's name"
    assert config["secrets"]["postgres_ca"]["file"] == str(external / "authority.pem")


@pytest.mark.docker
def test_bundled_postgres_has_no_container_and_other_services_stay_what_they_were(project: Path) -> None:
    set_values(project, COMPOSE_PROFILES="scoring,gateway")
    before = compose_config(project)["services"]
    assert "deploy" not in before["postgres"]
    set_values(project, **EXTERNAL)
    after = compose_config(project)["services"]
    assert after["postgres"]["deploy"]["replicas"] == 0
    assert {name for name in before if before[name] != after[name]} == CLIENTS | {"postgres"}


@pytest.mark.docker
@pytest.mark.refusal
def test_administrators_password_reaches_only_the_one_shots_that_set_the_server_up(external: Path) -> None:
    services = compose_config(external)["services"]
    holders = {name for name, service in services.items() if "of-the-provider" in str(service)}
    assert holders == {"bootstrap", "scoring-database"}


def test_commands_use_the_external_server_and_need_no_port_for_the_bundled_one(external: Path) -> None:
    stack = Stack.of(external)
    assert stack.tracking.parameters == {
        "host": "db.example.com",
        "port": 6432,
        "user": "mlflow",
        "password": stack.values["MLFLOW_DB_PASSWORD"],
        "dbname": "mlflow",
        "sslmode": "verify-full",
        "sslrootcert": str(external / "authority.pem"),
    }
    assert (stack.owner.user, stack.server.database) == ("administrator", "mlflow_commands")
    assert "postgres" not in [service.name for service in stack.services.long_running]
    assert "POSTGRES_PORT" not in stack.services.ports


@pytest.mark.docker
def test_minio_has_no_container_and_mlflow_the_login_to_the_external_store(project: Path) -> None:
    set_values(project, COMPOSE_PROFILES="scoring,gateway")
    before = compose_config(project)["services"]
    set_values(project, **STORE)
    after = compose_config(project)["services"]
    assert after["minio"]["deploy"]["replicas"] == 0
    assert {name for name in before if before[name] != after[name]} == {"minio", "bootstrap", "mlflow"}
    environment = after["mlflow"]["environment"]
    assert environment["MLFLOW_S3_ENDPOINT_URL"] == "https://s3.example.com"
    assert environment["AWS_SECRET_ACCESS_KEY"] == "secret-of-the-provider"
    assert environment["AWS_CA_BUNDLE"] == "/run/secrets/s3_ca"
    holders = {name for name, service in after.items() if "secret-of-the-provider" in str(service)}
    assert holders == {"bootstrap", "mlflow"}


@pytest.mark.docker
def test_both_services_can_be_external(external: Path) -> None:
    set_values(external, **STORE)
    mlflow = compose_config(external)["services"]["mlflow"]
    assert (mlflow["environment"]["PGHOST"], mlflow["environment"]["AWS_DEFAULT_REGION"]) == ("db.example.com", "eu-test-1")
    assert [secret["source"] for secret in mlflow["secrets"]] == ["postgres_ca", "s3_ca"]


def test_commands_use_the_external_store(project: Path) -> None:
    set_values(project, EXTERNAL_S3_PUBLIC="https://files.example.com", EXTERNAL_S3_CA="authority.pem", **STORE)
    keys = Stack.of(project).keys
    assert (keys.url, keys.public, keys.region) == ("https://s3.example.com", "https://files.example.com", "eu-test-1")
    assert (keys.access_key, keys.authorities) == ("login-of-the-provider", str(project / "authority.pem"))


@pytest.mark.parametrize("name", ["EXTERNAL_S3", "EXTERNAL_S3_PUBLIC"])
def test_unencrypted_store_is_warned_of(project: Path, name: str) -> None:
    assert not [warning for warning in preflight.warnings(Stack.of(project)) if "encrypted" in warning]
    set_values(project, **STORE | {name: "http://s3.example.com"})
    (warning,) = [warning for warning in preflight.warnings(Stack.of(project)) if "encrypted" in warning]
    assert warning.startswith(f"{name}: what is sent there is not encrypted")


def test_command_that_needs_an_administrator_says_so_without_one(external: Path) -> None:
    set_values(external, EXTERNAL_POSTGRES_USER="", EXTERNAL_POSTGRES_PASSWORD="")
    stack = Stack.of(external)
    assert stack.catalog is stack.tracking
    with pytest.raises(MlstackError, match="needs an administrator's login"):
        _ = stack.server


def test_rotation_keeps_the_password_of_another_service(external: Path) -> None:
    before = settings.of_project(external)
    env_file.begin_rotation(external)
    after = settings.of_text((external / env_file.NEXT).read_text())
    assert after["EXTERNAL_POSTGRES_PASSWORD"] == before["EXTERNAL_POSTGRES_PASSWORD"]
    assert after["MLFLOW_DB_PASSWORD"] != before["MLFLOW_DB_PASSWORD"]


@pytest.mark.parametrize("missing", ["EXTERNAL_S3_SECRET_ACCESS_KEY", "EXTERNAL_POSTGRES_PASSWORD"])
def test_login_without_its_secret_is_rejected(external: Path, missing: str) -> None:
    set_values(external, **STORE | {missing: ""})
    (complaint,) = settings.complaints(settings.of_project(external))
    assert complaint.endswith(f"is set, and {missing} is empty")


def test_administrator_is_no_role_of_the_stack(external: Path) -> None:
    set_values(external, EXTERNAL_POSTGRES_USER="mlflow")
    (complaint,) = settings.complaints(settings.of_project(external))
    assert complaint == "EXTERNAL_POSTGRES_USER and MLFLOW_DB_USER are the same: they need names of their own"
