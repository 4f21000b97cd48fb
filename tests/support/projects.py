"""Folders that look like this project, and what the real docker compose reads in them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlstack.host import env_file

ROOT = Path(__file__).parents[2]
NAME = f"mlstack-unit-{os.getpid()}"


def new_project(folder: Path) -> Path:
    """The files that the commands read, with a fresh `.env`, of a stack that never starts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("docker-compose.yml", ".env.example"):
        shutil.copy2(ROOT / name, folder / name)
    shutil.copytree(ROOT / "compose", folder / "compose", dirs_exist_ok=True)
    env_file.ensure(folder)
    set_values(folder, COMPOSE_PROJECT_NAME=NAME)
    return folder


def set_values(project: Path, **values: str) -> None:
    """Writes values into `.env`, each as it is given, in the place of the old ones."""
    lines = (project / ".env").read_text().splitlines()
    changed = [f"{name}={values[name]}" if (name := line.partition("=")[0]) in values else line for line in lines]
    (project / ".env").write_text("\n".join(changed) + "\n")


def without(project: Path, *names: str) -> str:
    """The text of `.env` without the lines of these keys."""
    lines = (project / ".env").read_text().splitlines()
    return "\n".join(line for line in lines if line.partition("=")[0] not in names) + "\n"


def compose_config(project: Path) -> dict[str, Any]:
    """The compose file as docker compose itself reads it, with this project's `.env`."""
    done = subprocess.run(
        ["docker", "compose", "config", "--format", "json"], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # compose escapes $ as $$ in its output.
    config: dict[str, Any] = json.loads(done.stdout.replace("$$", "$"))
    return config


def as_compose_reads(project: Path, *names: str) -> dict[str, str]:
    """The values that docker compose substitutes for these variables."""
    environment = "".join(f"      {name}: ${{{name}}}\n" for name in names)
    (project / "docker-compose.yml").write_text(f"services:\n  echo:\n    image: none\n    environment:\n{environment}")
    values: dict[str, str] = compose_config(project)["services"]["echo"]["environment"]
    return values


def python(code: str, *arguments: str) -> list[str]:
    """A command that runs code with the mlstack package that is tested."""
    return [sys.executable, "-c", code, *arguments]


def with_package(project: Path) -> dict[str, str]:
    """An environment in which mlstack is a copy in this project and commands it."""
    shutil.copytree(ROOT / "src", project / "src", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    return {**os.environ, "PYTHONPATH": str(project / "src")}
