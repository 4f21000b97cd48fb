import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from mlstack import settings
from mlstack.settings import PROJECT, VARIABLES, Account, Keys, Login, SettingsError
from tests.support.projects import as_compose_reads, compose_config, python, set_values, with_package

BUCKET = (
    ["mlflow", "my-bucket.2", "123", "1.2.3.x"],
    ["ab", "MyBucket", "my_bucket", "-ab", "ab-", "a" * 64, "a b c", "a..b", "a.-b", "10.0.0.1"],
)
PORT = (["1", "5432", "65535"], ["0", "65536", "-1", "http", "80.0", " 80", "0x50", "٨٠"])
IDENTIFIER = (["mlflow", "_a1", "a" * 63], ["Mlflow", "1a", "ml-flow", "ml flow", "a;b", "ä", "a" * 64])
NUMBER = (["0", "1000"], ["-1", "root", "1.5", "٨"])
ACCOUNT = (["notebook", "me@example.org"], ["a:b", "a b"])
ANYTHING: tuple[list[str], list[str]] = (["x", "/a b/c"], [])
SECRET = (["12345678", "with $ and #"], ["1234567", "x"])
LONG_SECRET = (["123456789012"], ["12345678901"])
SHORT_SECRET = (["abc"], ["ab"])
SWITCH = (["on", "off"], ["ON", "true", "0"])
IMAGE: tuple[list[str], list[str]] = (["", "postgres:17", "registry.example/a/b@sha256:00"], [])

# Every variable: values that are good, values that are not.
HOSTS = (
    ["", "ollama:11434", "10.0.0.1:80,host.docker.internal:8000"],
    ["ollama", "Ollama:1", "http://ollama:1", "*:80", "a:0", "a:1, b:1"],
)
URL = (
    ["", "https://s3.example.com", "http://10.0.0.1:9000"],
    ["s3.example.com", "https://a/b", "https://", "ftp://a", "https://a:x"],
)
VALUES: dict[str, tuple[list[str], list[str]]] = {
    "COMPOSE_PROJECT_NAME": (["mlstack", "ml-stack_2", "2"], ["MlStack", "-x", "_x", "a b", "a.b"]),
    "COMPOSE_PROFILES": (["", "scoring", "scoring,ray", "*"], ["Scoring", "a,", "a b", ","]),
    "HOST_UID": NUMBER,
    "HOST_GID": NUMBER,
    "CLOSED_NETWORK": (["10.200.0", "198.18.255"], ["10.200", "10.200.256", "10.200.0.0", "10.200.0/24", "10.200.01", "::1"]),
    "CA_BUNDLE": ANYTHING,
    "POSTGRES_USER": IDENTIFIER,
    "POSTGRES_PASSWORD": SECRET,
    "POSTGRES_DB": IDENTIFIER,
    "POSTGRES_PORT": PORT,
    "EXTERNAL_POSTGRES": (["", "db.example.com", "10.0.0.1", "DB-1"], ["db:5432", "https://db", "db/mlflow", "-db", "a b"]),
    "EXTERNAL_POSTGRES_PORT": (["", *PORT[0]], PORT[1]),
    "EXTERNAL_POSTGRES_USER": (["", "postgres", "admin@server"], ["a b", "a:b"]),
    "EXTERNAL_POSTGRES_PASSWORD": (["", *SECRET[0]], SECRET[1]),
    "EXTERNAL_POSTGRES_TLS": (["", "verify-full", "verify-ca", "disable"], ["require", "prefer", "on"]),
    "EXTERNAL_POSTGRES_CA": ([*ANYTHING[0], ""], []),
    "STORAGE": (["", "minio", "versitygw"], ["s3", "MinIO"]),
    "MINIO_ROOT_USER": SHORT_SECRET,
    "MINIO_ROOT_PASSWORD": SECRET,
    "MINIO_BUCKET": BUCKET,
    "DATASETS_BUCKET": BUCKET,
    "MINIO_CONSOLE_USER": (["console", "me.2"], ["me", "a b", "a/b"]),
    "MINIO_CONSOLE_PASSWORD": SECRET,
    "MINIO_BUCKET_QUOTA": (["", "500m", "2g", "5t"], ["0g", "500", "500G", "1.5t", "-1g", "9999999g"]),
    "MINIO_PORT": PORT,
    "MINIO_CONSOLE_PORT": PORT,
    "EXTERNAL_S3": URL,
    "EXTERNAL_S3_PUBLIC": URL,
    "EXTERNAL_S3_REGION": (["", "eu-central-1"], ["EU", "a b"]),
    "EXTERNAL_S3_ACCESS_KEY_ID": (["", *SHORT_SECRET[0]], SHORT_SECRET[1]),
    "EXTERNAL_S3_SECRET_ACCESS_KEY": (["", *SECRET[0]], SECRET[1]),
    "EXTERNAL_S3_CA": ([*ANYTHING[0], ""], []),
    "MLFLOW_PORT": PORT,
    "MLFLOW_TRACKING_URI": (["http://127.0.0.1:5001", "https://mlflow.example"], ["127.0.0.1:5001", "file:///x", "http://"]),
    "MLFLOW_TRACKING_USERNAME": ACCOUNT,
    "MLFLOW_TRACKING_PASSWORD": LONG_SECRET,
    "MLFLOW_ADMIN_USERNAME": ACCOUNT,
    "MLFLOW_ADMIN_PASSWORD": LONG_SECRET,
    "MLFLOW_AUTH": SWITCH,
    "MLFLOW_OUTBOUND": SWITCH,
    "MLFLOW_DB_USER": IDENTIFIER,
    "MLFLOW_DB_PASSWORD": SECRET,
    "ACCOUNTS_DB_USER": IDENTIFIER,
    "ACCOUNTS_DB_PASSWORD": SECRET,
    "READER_DB_USER": IDENTIFIER,
    "READER_DB_PASSWORD": SECRET,
    "MLFLOW_S3_ACCESS_KEY_ID": SHORT_SECRET,
    "MLFLOW_S3_SECRET_ACCESS_KEY": SECRET,
    "MLFLOW_FLASK_SERVER_SECRET_KEY": SECRET,
    "MLFLOW_CRYPTO_KEK_PASSPHRASE": SECRET,
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": ([f"{'a-_9' * 10}abc="], ["a" * 44, "short="]),
    "JUPYTER_PORT": PORT,
    "JUPYTER_TOKEN": SECRET,
    "JUPYTER_OUTBOUND": SWITCH,
    "JUPYTER_MEMORY": (["512m", "3g"], ["3", "3GB", "0g", "1.5g", "-1g"]),
    "JUPYTER_GPU": SWITCH,
    "JUPYTER_IDLE_HOURS": (["0", "24"], ["-1", "1.5", "24h"]),
    "JUPYTER_EXTRA_REQUIREMENTS": ANYTHING,
    "JUPYTER_EXTRA_APT": (["gcc libc6-dev", "g++"], ["gcc; reboot", "$(reboot)", "gcc -o=1"]),
    "LOG_DIR": ANYTHING,
    "LOG_LEVEL": (["INFO", "debug"], ["LOUD", "20", "WARN"]),
    "BACKUP_KEY": (["1" * 32], ["1" * 31]),
    "WEBHOOK_HOSTS": HOSTS,
    "TRACE_ROLLUPS": SWITCH,
    "TRACE_ARCHIVE": (["", "1", "365"], ["0", "-1", "1.5", "30d"]),
    "TRACE_RETENTION": (["", "1", "365"], ["0", "-1", "1.5", "30d"]),
    "GATEWAY_HOSTS": HOSTS,
    "GATEWAY_JOBS_MEMORY": (["512m", "3g"], ["3", "1.5g", "0g"]),
    "GATEWAY_JOB_TOKEN": (["1" * 32], ["1" * 31]),
    "RAY_WORKERS": (["1", "12"], ["0", "-1", "two", "1.5"]),
    "RAY_WORKER_CPUS": (["1", "12"], ["0", "-1", "two", "1.5"]),
    "RAY_WORKER_MEMORY": (["512m", "3g"], ["3", "1.5g", "0g"]),
    "RAY_TOKEN": (["1" * 32], ["1" * 31]),
    "RAY_HOST": (["", "10.0.0.5", "192.168.200.255"], ["10.0.0", "10.0.0.256", "127.0.0.1", "0.0.0.0", "head", "::1"]),  # noqa: S104
    "RAY_HEAD": (["", "10.0.0.5"], ["10.0.0", "ray://10.0.0.5", "10.0.0.5:6379"]),
    "RAY_NOTEBOOKS": SWITCH,
    "SCORING_PORT": PORT,
    "SCORING_ALIASES": (["champion", "champion,challenger_2"], ["a,", "a b", "a@b"]),
    "SCORING_MEMORY": (["512m", "3g"], ["3", "1.5g", "0g"]),
    "SCORING_HOSTS": (["", "a.example", "a.example,b.example:8443"], [",", "a b", "https://a.example", "A.example"]),
    "SCORING_REPLICAS": (["", "1", "4"], ["0", "5", "10", "two"]),
    "SCORING_THREADS": (["1", "16"], ["0", "1.5", "all"]),
    "SCORING_RATE": (["0", "50"], ["-1", "1.5", "10/s"]),
    "SCORING_USERNAME": ACCOUNT,
    "SCORING_PASSWORD": LONG_SECRET,
    "SERVING_DB_USER": IDENTIFIER,
    "SERVING_DB_PASSWORD": SECRET,
    "SCORING_DB_USER": IDENTIFIER,
    "SCORING_DB_PASSWORD": SECRET,
    "DECISION_LOG": (["before", "after", "off"], ["on", "Before"]),
    "DECISION_RETENTION": (["0", "24"], ["-1", "1.5", "12345"]),
    "BACKUP_DIR": ANYTHING,
    "POSTGRES_IMAGE": IMAGE,
    "MINIO_IMAGE": IMAGE,
    "VERSITYGW_IMAGE": IMAGE,
    "MLFLOW_IMAGE": IMAGE,
    "JUPYTER_IMAGE": IMAGE,
    "SCORING_IMAGE": IMAGE,
}
GOOD = [(name, value) for name, (good, _) in VALUES.items() for value in good]
BAD = [(name, value) for name, (_, bad) in VALUES.items() for value in bad]


def test_table_of_values_has_every_variable() -> None:
    assert VALUES.keys() == VARIABLES.keys()


def test_complaint_accepts_good_values(subtests: pytest.Subtests) -> None:
    for name, value in GOOD:
        with subtests.test(name=name, value=value):
            assert VARIABLES[name].complaint(value) is None


def test_complaint_says_what_is_expected_of_a_bad_value(subtests: pytest.Subtests) -> None:
    for name, value in BAD:
        with subtests.test(name=name, value=value):
            shown = name if VARIABLES[name].secret else f"{name}={value}"
            assert (VARIABLES[name].complaint(value) or "").startswith(f"{shown}: expected ")


def test_complaint_rejects_an_empty_required_value(subtests: pytest.Subtests) -> None:
    for name, value in product((name for name, variable in VARIABLES.items() if not variable.optional), (None, "")):
        with subtests.test(name=name, value=value):
            assert VARIABLES[name].complaint(value) == f"{name} is missing or empty"


def test_complaint_rejects_a_placeholder(subtests: pytest.Subtests) -> None:
    for name, placeholder in product(VARIABLES, (settings.GENERATED, settings.DETECTED)):
        with subtests.test(name=name, placeholder=placeholder):
            assert f"{name} still holds the placeholder {placeholder}" in (VARIABLES[name].complaint(placeholder) or "")


@pytest.mark.parametrize(
    ("owner", "other"),
    [
        ("POSTGRES_USER", "MLFLOW_DB_USER"),
        ("MINIO_ROOT_USER", "MLFLOW_S3_ACCESS_KEY_ID"),
        ("MINIO_CONSOLE_USER", "MLFLOW_S3_ACCESS_KEY_ID"),
        ("MLFLOW_ADMIN_USERNAME", "MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_complaints_rejects_one_name_for_an_owner_and_a_lesser_account(project: Path, owner: str, other: str) -> None:
    values = settings.of_project(project) | {owner: "sh4red", other: "sh4red"}
    assert settings.complaints(values) == [f"{owner} and {other} are the same: they need names of their own"]
    assert settings.read(owner, values=values) == {owner: "sh4red"}


def test_variables_named_like_a_secret_are_secrets() -> None:
    secret_words = ("PASSWORD", "TOKEN", "SECRET", "PASSPHRASE", "ACCESS_KEY", "BACKUP_KEY", "ROOT_USER")
    assert [name for name in VARIABLES if any(word in name for word in secret_words)] == [
        name for name, variable in VARIABLES.items() if variable.secret
    ]


def test_settings_error_shows_no_secret(subtests: pytest.Subtests) -> None:
    for name in (name for name, variable in VARIABLES.items() if variable.secret):
        with subtests.test(name=name):
            with pytest.raises(SettingsError) as error:
                settings.read(name, values={name: "#@"})
            assert "#@" not in f"{error.value} {error.value!r} {error.value.complaints}"


@pytest.mark.parametrize(
    "credentials",
    [
        Login("user", "s3cr3t-part", "database"),
        Keys("s3cr3t-part", "s3cr3t-part", "bucket", "datasets"),
        Account("user", "s3cr3t-part", is_admin=False),
    ],
    ids=lambda credentials: type(credentials).__name__,
)
def test_repr_of_credentials_shows_no_secret(credentials: object) -> None:
    assert "s3cr3t" not in f"{credentials} {credentials!r}"


def test_read_reports_every_missing_or_wrong_value_at_once() -> None:
    values = {"POSTGRES_USER": "mlstack", "POSTGRES_DB": "", "POSTGRES_PORT": "x"}
    with pytest.raises(SettingsError) as error:
        settings.read("POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "POSTGRES_PORT", values=values)
    assert error.value.complaints == (
        "POSTGRES_PASSWORD is missing or empty",
        "POSTGRES_DB is missing or empty",
        "POSTGRES_PORT=x: expected a port from 1 to 65535",
    )
    assert all(complaint in str(error.value) for complaint in error.value.complaints)
    assert ".env" in error.value.fix


def test_read_without_values_uses_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_DB", "from_the_environment")
    assert settings.read("POSTGRES_DB") == {"POSTGRES_DB": "from_the_environment"}


@pytest.mark.parametrize(
    ("login", "user", "password"),
    [(settings.database_owner, "mlstack", "POSTGRES_PASSWORD"), (settings.tracking_login, "mlflow", "MLFLOW_DB_PASSWORD")],
)
def test_database_logins_use_their_own_variables(
    project: Path, login: Callable[[Mapping[str, str]], Login], user: str, password: str
) -> None:
    values = settings.of_project(project)
    assert replace(login(values), options="") == Login(user, values[password], "mlflow")


def test_sessions_of_the_database_owner_resolve_names_in_pg_catalog(project: Path) -> None:
    assert settings.database_owner(settings.of_project(project)).options == "-csearch_path=pg_catalog"


@pytest.mark.parametrize(("keys", "prefix"), [(settings.storage_owner, "MINIO_ROOT"), (settings.tracking_keys, "MLFLOW_S3")])
def test_s3_keys_use_their_own_variables(project: Path, keys: Callable[[Mapping[str, str]], Keys], prefix: str) -> None:
    values = settings.of_project(project)
    key_id, secret = (value for name, value in values.items() if name.startswith(prefix))
    assert keys(values) == Keys(key_id, secret, "mlflow", "datasets")


@pytest.mark.docker
def test_shell_overrides_env_file_as_in_compose(project: Path, subtests: pytest.Subtests) -> None:
    compose_file = (project / "docker-compose.yml").read_text()
    for name, value in (
        ("MLFLOW_PORT", "6001"),
        ("MLFLOW_TRACKING_URI", "http://elsewhere:1"),
        ("JUPYTER_TOKEN", "from # the $shell"),
        ("POSTGRES_IMAGE", "postgres:17"),
        ("LOG_LEVEL", ""),
        ("MLFLOW_PORT", ""),
    ):
        with subtests.test(name=name, value=value), pytest.MonkeyPatch.context() as shell:
            shell.setenv(name, value)
            values = settings.of_project(project)
            assert values[name] == value
            assert as_compose_reads(project, *VARIABLES) == values
        (project / "docker-compose.yml").write_text(compose_file)


def test_reference_in_env_file_follows_the_shell(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_PORT", "6001")
    assert settings.of_project(project)["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:6001"


def test_settings_without_env_file_come_from_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    assert settings.of_project(tmp_path) == {"LOG_LEVEL": "DEBUG"}


def test_shadowed_lists_what_the_shell_sets_differently(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", settings.of_project(project)["LOG_LEVEL"])
    assert settings.shadowed(settings.env_text(project)) == []
    monkeypatch.setenv("MLFLOW_PORT", "6001")
    monkeypatch.setenv("POSTGRES_DB", "")
    assert settings.shadowed(settings.env_text(project)) == ["POSTGRES_DB", "MLFLOW_PORT"]


def test_log_level_ignores_case() -> None:
    assert {settings.log_level(level) for level in ("info", "INFO", "Info")} == {"INFO"}


def test_unknown_log_level_is_rejected_with_the_known_levels() -> None:
    with pytest.raises(SettingsError) as error:
        settings.log_level("LOUD")
    assert error.value.wrong == "LOG_LEVEL=LOUD: expected one of DEBUG, INFO, WARNING, ERROR, CRITICAL"


def test_relative_log_dir_is_relative_to_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings.log_dir("logs/deep") == PROJECT / "logs" / "deep"
    assert settings.log_dir("/var/log/x") == Path("/var/log/x")
    assert settings.log_dir(tmp_path) == tmp_path


@pytest.mark.docker
def test_log_dir_is_the_folder_that_compose_mounts(
    project: Path, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    monkeypatch.setattr(settings, "PROJECT", project)
    for folder in ("logs", "./logs", "deep/logs", "/var/log/mlstack", "~/logs", "my logs"):
        with subtests.test(folder=folder):
            set_values(project, LOG_DIR=folder)
            mounts = compose_config(project)["services"]["jupyter"]["volumes"]
            sources = [mount["source"] for mount in mounts if mount["target"] == "/logs"]
            assert sources == [str(settings.log_dir(folder) / "jupyter")]


@pytest.mark.parametrize(
    ("content", "defaults"),
    [
        (b"\xff\xfe", "logs INFO"),
        (b"LOG_DIR='elsewhere\nLOG_LEVEL=DEBUG", "logs DEBUG"),
        (b"LOG_DIR=elsewhere\nLOG_LEVEL=LOUD\n", "elsewhere LOUD"),
    ],
)
def test_import_with_a_broken_env_file_succeeds_silently(project: Path, content: bytes, defaults: str) -> None:
    (project / ".env").write_bytes(content)
    code = "from mlstack import settings; print(settings.PROJECT, settings.LOG_DIR, settings.LOG_LEVEL)"
    done = subprocess.run(python(code), env=with_package(project), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{project} {defaults}\n", "")


def test_secret_values_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings.secret_values()
    for name in (name for name, variable in VARIABLES.items() if variable.secret):
        monkeypatch.setenv(name, f"value-of-{name}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "value-of-AWS")
    monkeypatch.setenv("PGPASSWORD", "short")
    monkeypatch.setenv("HARMLESS", "value-of-HARMLESS")
    secrets = {f"value-of-{name}" for name, variable in VARIABLES.items() if variable.secret}
    assert settings.secret_values() - before == secrets | {"value-of-AWS"}


def test_secret_in_a_file_is_read_published_and_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("POSTGRES_PASSWORD", "of-the-owner"), ("AWS_SECRET_ACCESS_KEY", "of-the-server")):
        (tmp_path / name).write_text(value)
        monkeypatch.setenv(name, "")  # so that it is removed at the end
        monkeypatch.delenv(name)
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / name))
    assert settings.read("POSTGRES_PASSWORD") == {"POSTGRES_PASSWORD": "of-the-owner"}
    assert {"of-the-owner", "of-the-server"} <= settings.secret_values()
    assert str(tmp_path / "POSTGRES_PASSWORD") not in settings.secret_values()  # its path may be logged
    assert "AWS_SECRET_ACCESS_KEY" not in os.environ
    settings.publish_secrets()
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "of-the-server"


def test_secret_whose_file_cannot_be_read_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POSTGRES_PASSWORD", raising=False)
    monkeypatch.setenv("POSTGRES_PASSWORD_FILE", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="POSTGRES_PASSWORD is missing or empty"):
        settings.read("POSTGRES_PASSWORD")


def test_bucket_quota_is_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests) -> None:
    for text, size in (("", 0), ("500m", 500 * 1024**2), ("2g", 2 * 1024**3), ("1t", 1024**4)):
        with subtests.test(text=text):
            monkeypatch.setenv("MINIO_BUCKET_QUOTA", text)
            assert settings.bucket_quota() == size
