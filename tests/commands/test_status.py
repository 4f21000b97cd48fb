"""`make status` of a stack that is healthy, half down, hanging or down, and without an engine."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from mlstack.errors import MlstackError
from mlstack.host import status as status_of
from mlstack.host.backup import manifest
from mlstack.host.backup.manifest import Manifest
from mlstack.host.compose import docker
from mlstack.host.stack import Stack
from mlstack.settings import Login
from tests.stack.conftest import SECRETS, rows
from tests.support import readme
from tests.support.clone import Clone
from tests.support.service import wait_until

PATIENCE = 20  # seconds: the time that a busy machine takes is not tested
AWAY = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
LONG_RUNNING = {"postgres", "minio", "mlflow", "jupyter"}


def as_json(stack: Clone, **environment: str) -> tuple[int, dict[str, Any]]:
    done = stack.make("status", JSON="1", **environment)
    assert "Traceback" not in done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


def services(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {service["name"]: service for service in report["services"]}


def known(stack: Clone) -> dict[str, Any]:
    """The status, with enough time for every answer."""
    report: dict[str, Any] = json.loads(status_of.status(Stack.of(stack.folder, patience=status_of.PATIENCE)).as_json())
    return report


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_of, "PATIENCE", PATIENCE)
    monkeypatch.setattr(status_of, "COUNTING", PATIENCE)


@pytest.fixture
def backup(stack: Clone) -> Iterator[Path]:
    """A complete backup, and one that was interrupted after it."""
    folder = stack.folder / "backups"
    for name in ("20260101T000000Z", "20260102T000000Z", "20260103T000000Z.partial"):
        (folder / name).mkdir(parents=True)
        content = Manifest(
            created=f"{name[:4]}-{name[4:6]}-{name[6:8]}T00:00:00Z", bytes=5_000_000, new_bytes=0,
            versions={"mlflow": "3", "postgres": "17"}, bucket="mlflow", owners={}, counts={}, tables={},
            files=dict.fromkeys((manifest.DUMP, manifest.OBJECTS_LIST, manifest.DATASETS_LIST), "0" * 64),
        )  # fmt: skip
        manifest.write(folder / name, content)
    yield folder
    shutil.rmtree(folder)


def test_status_of_a_healthy_stack(stack: Clone, role: Login) -> None:
    assert as_json(stack)[0] == 0
    report = known(stack)
    assert (report["is_healthy"], report["problem"], report["project"]) == (True, None, stack.name)
    by_name = services(report)
    assert {name for name, service in by_name.items() if service["health"] == "healthy"} == LONG_RUNNING
    assert {name for name, service in by_name.items() if service["state"] == "done"} == {"bootstrap", "migration"}
    for name in LONG_RUNNING:
        assert isinstance(by_name[name]["uptime"], int)
        assert by_name[name]["memory"] > 10_000_000
        assert by_name[name]["url"].removeprefix("http://").startswith("127.0.0.1:")
    assert by_name["mlflow"]["version"] == stack.in_container("mlflow", "mlflow", "--version").split()[-1]
    assert by_name["postgres"]["version"] in stack.in_container("postgres", "psql", "--version")
    assert by_name["minio"]["version"] in stack.in_container("minio", "minio", "--version")
    assert by_name["jupyter"]["version"] == stack.in_container("jupyter", "jupyter", "server", "--version").strip()
    assert [(report["schema"],)] == rows(role, "SELECT version_num FROM alembic_version")
    assert report["schema_is_of"] == f"migrated by MLflow {by_name['mlflow']['version']}"
    assert {volume["name"] for volume in report["volumes"]} >= {f"{stack.name}_{name}" for name in ("home", "minio", "postgres")}
    assert all(volume["is_complete"] for volume in report["volumes"])
    assert report["backup"] is None


def test_status_fits_the_screen_and_shows_no_secret(stack: Clone) -> None:
    done = stack.make("status", COLUMNS="80")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 24
    assert max(map(len, done.stdout.splitlines())) <= 80
    for name in ("MLFLOW_PORT", "JUPYTER_PORT", "MINIO_CONSOLE_PORT", "POSTGRES_PORT"):
        assert f"127.0.0.1:{stack.values[name]}" in done.stdout
    assert "none yet: make backup" in done.stdout
    assert not [name for name in SECRETS if stack.values[name] in done.stdout + done.stderr]


def test_status_shows_the_size_of_a_volume_as_du_does(stack: Clone) -> None:
    report = status_of.status(Stack.of(stack.folder, patience=status_of.PATIENCE))
    (size,) = (volume.size for volume in report.volumes if volume.name.endswith("_postgres"))
    (kilobytes, _) = stack.in_container("postgres", "du", "-sk", "/var/lib/postgresql/data").split()
    assert size == pytest.approx(int(kilobytes) * 1024, rel=0.1)


def test_status_shows_the_last_complete_backup(stack: Clone, backup: Path) -> None:
    shown = as_json(stack)[1]["backup"]
    assert (shown["folder"], shown["size"]) == ("backups/20260102T000000Z", 5_000_000)
    assert shown["age"] > 86400
    assert "backups/20260102T000000Z, 5.0 MB" in stack.make("status").stdout


def test_status_shows_the_backup_in_backup_dir(stack: Clone, backup: Path, tmp_path: Path) -> None:
    stack.set(BACKUP_DIR=str(tmp_path / "elsewhere"))
    try:
        assert status_of.last_backup(Stack.of(stack.folder)) is None
        (backup / "20260102T000000Z").rename(tmp_path / "moved")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "moved").rename(tmp_path / "elsewhere/20260102T000000Z")
        shown = status_of.last_backup(Stack.of(stack.folder))
    finally:
        stack.set(BACKUP_DIR="backups")
    assert shown is not None
    assert shown.folder == str(tmp_path / "elsewhere/20260102T000000Z")


def test_status_reports_a_manifest_that_cannot_be_read(stack: Clone, backup: Path) -> None:
    (backup / "20260102T000000Z" / "manifest.json").write_text("{}")
    with pytest.raises(MlstackError, match=r"20260102T000000Z is damaged: manifest\.json is not what was written"):
        status_of.last_backup(Stack.of(stack.folder))


@pytest.mark.parametrize("section", ["Status", "Doctor", "Reclaim disk"])
def test_every_command_of_the_docs_works_as_written(stack: Clone, section: str) -> None:
    text = (stack.folder / "docs/operations.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    others = [command for command in commands(text) if command not in readme.commands()]  # test_readme.py runs those
    assert others
    for command in others:
        make, *arguments = command.split()
        assert make == "make"
        done = stack.make(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def commands(page: str) -> list[str]:
    """The commands of a page's blocks."""
    return "".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)).splitlines()


def test_status_of_a_partly_stopped_stack(stack: Clone) -> None:
    stack.compose("stop", "--timeout", "5", "minio")
    stack.compose("rm", "--stop", "--force", "jupyter")
    try:
        code, report = as_json(stack)[0], known(stack)
        shown = stack.make("status").stdout
    finally:
        stack.compose("up", "--detach", "--wait")
    assert code != 0
    assert report["is_healthy"] is False
    by_name = services(report)
    assert (by_name["minio"]["state"], by_name["minio"]["is_healthy"], by_name["minio"]["memory"]) == ("exited", False, None)
    assert (by_name["jupyter"]["state"], by_name["jupyter"]["is_healthy"]) == ("missing", False)
    assert by_name["postgres"]["is_healthy"]
    assert report["schema"]
    assert "make doctor" in shown
    assert re.search(r"minio +exited", shown)
    assert stack.make("status").returncode == 0


def test_status_of_a_hanging_service_is_unknown(stack: Clone) -> None:
    container = stack.compose("ps", "--quiet", "mlflow").strip()
    stack.in_container("mlflow", "bash", "-c", "kill -STOP -1")
    try:
        report = status_of.status(Stack.of(stack.folder, patience=status_of.PATIENCE))
    finally:
        docker("kill", "--signal", "CONT", container)
        docker("exec", container, "bash", "-c", "kill -CONT -1")
    (mlflow,) = (service for service in report.services if service.name == "mlflow")
    assert (mlflow.state, mlflow.version) == ("running", None)
    assert report.schema
    wait_until(lambda: stack.make("status").returncode == 0)


def test_status_without_the_database_shows_the_rest(stack: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DB_PASSWORD", "wrong-0123456789")
    report = known(stack)
    assert report["schema"] is None
    assert services(report)["mlflow"]["version"]


def test_status_without_an_engine_says_so(stack: Clone, backup: Path) -> None:
    code, report = as_json(stack, **AWAY)
    assert code != 0
    assert report["problem"] == "the Docker engine does not answer."
    assert {service["state"] for service in report["services"]} == {"unknown"}
    assert report["backup"]["folder"] == "backups/20260102T000000Z"
    done = stack.make("status", **AWAY)
    assert "The Docker engine does not answer. make up starts it" in done.stdout
    assert "Traceback" not in done.stderr


def test_status_of_a_stopped_stack(stack: Clone) -> None:
    stack.compose("down", "--timeout", "10")
    code, report = as_json(stack)
    assert code != 0
    assert {service["state"] for service in report["services"]} == {"missing"}
    assert "The stack is down. make up starts it." in stack.make("status").stdout
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(host="127.0.0.1", port=stack.values["POSTGRES_PORT"], user="x", dbname="x")
