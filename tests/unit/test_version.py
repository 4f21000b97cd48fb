"""The version is written once, in src/mlstack/__init__.py; everything else takes it from there."""

import re
import subprocess
import tomllib
from datetime import date
from typing import Any

import pytest

from mlstack import __version__
from tests.support.projects import ROOT

HOST = "pyproject.toml"
IMAGES = ["docker/python/mlflow/pyproject.toml", "docker/python/jupyter/pyproject.toml", "docker/python/scoring/pyproject.toml"]


def pyproject(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / name).read_text())


@pytest.mark.parametrize("name", [HOST, *IMAGES])
def test_a_package_takes_its_version_from_the_source(name: str) -> None:
    package = pyproject(name)
    assert package["project"]["dynamic"] == ["version"]
    assert package["tool"]["hatch"]["version"]["path"] == "src/mlstack/__init__.py"


def test_no_other_file_says_the_version() -> None:
    files = ["pyproject.toml", "docker-compose.yml", "compose", "docker", "scripts", "Makefile", "src"]
    done = subprocess.run(
        ["git", "grep", "--fixed-strings", "--name-only", __version__, "--", *files],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["src/mlstack/__init__.py"]


def test_the_newest_section_of_the_changelog_is_this_version_with_its_date() -> None:
    titles = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [title for title in titles if title != "Unreleased"]
    version, _, day = released[0].partition(" (")
    assert version == __version__
    assert date.fromisoformat(day.removesuffix(")"))


def test_mlflow_finds_the_same_client_on_the_host_as_in_notebooks() -> None:
    host, notebooks = (pyproject(name)["project"]["entry-points"] for name in (HOST, IMAGES[1]))
    assert host == notebooks
