"""docs/adding-a-service.md, done in a copy of the project with the text of its blocks: every command knows the new service."""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlstack.host.compose import docker
from tests.support.clone import free_ports, users_environment
from tests.support.projects import NAME, ROOT, compose_config, new_project, set_values

WALK = ROOT / "docs/adding-a-service.md"
AWAY = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
# What follows the place that the page names.
AFTER = {
    "src/mlstack/settings.py": ["    )\n}\n\n# Roles with different rights"],
    "tests/unit/test_contract.py": ["}\n# Every volume, and", "}\n# The same for the services of optional parts"],
}


def blocks() -> dict[str, list[str]]:
    """The blocks of the page, by the file in the heading above them."""
    sections = re.split(r"^## \S+ `(\S+)`\n", WALK.read_text(), flags=re.MULTILINE)[1:]
    return {
        file: re.findall(r"^```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for file, text in zip(sections[::2], sections[1::2], strict=True)
    }


def walk(folder: Path) -> None:
    """Adds the service as the page says."""
    for file, texts in blocks().items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if file in AFTER:
            for text, after in zip(texts, AFTER[file], strict=True):
                assert path.read_text().count(after) == 1, after
                path.write_text(path.read_text().replace(after, text + after))
        elif file == "docker-compose.yml":
            (text,) = texts
            before, described, volumes = re.split(r"^(?:services|volumes):\n", text, flags=re.MULTILINE)
            assert before == ""
            whole = path.read_text().replace("\nservices:\n", f"\nservices:\n{described}\n")
            path.write_text(whole.replace("\nvolumes:\n", f"\nvolumes:\n{volumes}"))
        else:
            path.write_text((path.read_text() if path.exists() else "") + texts[0])


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that had an `.env` before the service came. No test changes it."""
    project = new_project(tmp_path_factory.mktemp("grown") / "project")
    for folder in ("src", "scripts", "tests", "docker", "docs"):
        shutil.copytree(ROOT / folder, project / folder, dirs_exist_ok=True)
    shutil.copy2(ROOT / "pyproject.toml", project)
    walk(project)
    (notes, *others) = free_ports(6)
    names = ("POSTGRES_PORT", "MINIO_PORT", "MINIO_CONSOLE_PORT", "MLFLOW_PORT", "JUPYTER_PORT")
    set_values(project, **dict(zip(names, map(str, others), strict=True)))
    assert run(project, "env", **AWAY).returncode == 0
    assert "\nNOTES_PORT=8090\n" in (project / ".env").read_text()
    set_values(project, NOTES_PORT=str(notes))
    return project


def run(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *(("mlstack",) if arguments[0] != "pytest" else ()), *arguments],
        cwd=project,
        env={**users_environment(), "PYTHONPATH": str(project / "src"), "COLUMNS": "200", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def port(project: Path) -> str:
    line = re.search(r"^NOTES_PORT=(\d+)$", (project / ".env").read_text(), re.MULTILINE)
    assert line
    return line[1]


def test_walk_has_at_most_8_files() -> None:
    named = set(re.findall(r"^## .*", WALK.read_text(), re.MULTILINE))
    assert 5 <= len(re.findall(r"`\S+`", "\n".join(named))) <= 8


def test_new_service_is_known_to_urls_status_and_doctor(grown: Path) -> None:
    urls = run(grown, "urls", **AWAY)
    assert f"Notes  none\n  http://127.0.0.1:{port(grown)}\n" in urls.stdout, urls.stderr
    status = json.loads(run(grown, "status", "--json", **AWAY).stdout)
    assert "notes" in {service["name"] for service in status["services"]}
    doctor = json.loads(run(grown, "doctor", "--json", **AWAY).stdout)
    assert "notes" in {check["name"] for check in doctor["checks"] if check["reach"] == "containers"}


def test_new_service_passes_the_unit_tests_of_the_contract(grown: Path) -> None:
    done = run(grown, "pytest", "-q", "-p", "no:cacheprovider", "-m", "not docker", "tests/unit/test_contract.py")
    assert done.returncode == 0, done.stdout


@pytest.mark.docker
def test_new_service_is_one_that_compose_reads(grown: Path) -> None:
    described = compose_config(grown)["services"]["notes"]
    assert described["ports"][0]["published"] == port(grown)
    assert described["read_only"] is True


@pytest.mark.docker
def test_port_of_a_new_service_that_is_taken_keeps_the_stack_from_starting(grown: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", int(port(grown))))
        listener.listen()
        done = run(grown, "up")
    assert done.returncode == 1
    assert f"port {port(grown)} is used by" in done.stderr
    assert "NOTES_PORT needs it." in done.stderr


@pytest.fixture
def volume() -> Iterator[str]:
    """A volume that looks like the one of the new service."""
    volume = f"{NAME}_notes"
    docker("volume", "create", "--label", f"com.docker.compose.project={NAME}", volume)
    yield volume
    docker("volume", "rm", "--force", volume)


@pytest.mark.docker
def test_reset_names_the_volume_of_a_new_service_with_its_loss_and_deletes_it(grown: Path, volume: str) -> None:
    asked = run(grown, "reset")
    assert re.search(rf"{volume}\b.*every note", asked.stdout), asked.stdout
    assert run(grown, "reset", "--yes").returncode == 0
    assert volume not in docker("volume", "ls", "--quiet").split()
