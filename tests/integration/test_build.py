"""The images: what a build puts into the Python ones, what an edit changes, and a package source that cannot be reached."""

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from mlstack import __version__
from mlstack.errors import MlstackError
from mlstack.host.commands import start
from mlstack.host.compose import docker
from mlstack.host.stack import Stack
from tests.support.clone import Clone
from tests.support.wheels import entry_points

# Runs in an image and prints what its wheel of mlstack holds. The files are compared with those on the disk and with RECORD.
REPORT = """
import base64, hashlib, json, sys
from importlib.metadata import distribution
from importlib.util import cache_from_source
from pathlib import Path
import mlstack

found = distribution(sys.argv[1])
package, = map(Path, mlstack.__path__)
listed = {Path(found.locate_file(each)).resolve(): each for each in found.files}
code = {each: file for each, file in listed.items() if package in each.parents}
stored = {each for each in package.rglob("*") if each.is_file() and each.suffix != ".pyc"}


def digest(file):
    return base64.urlsafe_b64encode(hashlib.new(file.hash.mode, file.read_binary()).digest()).rstrip(b"=").decode()


points = {}
for each in found.entry_points:
    points.setdefault(each.group, {})[each.name] = each.value
print(json.dumps({
    "version": found.version,
    "entry_points": points,
    "plugins": [str(each) for each in listed if each.name == "entry_points.txt"],
    "folders": sorted({each.relative_to(package).parts[0] for each in stored if each.parent != package}),
    "is_typed": package / "py.typed" in stored,
    "not_compiled": [str(each) for each in stored if each.suffix == ".py" and not Path(cache_from_source(each)).exists()],
    "not_of_the_wheel": sorted(map(str, stored - code.keys())),
    "changed_since": [str(each) for each, file in code.items() if each in stored and digest(file) != file.hash.value],
}))
"""


@pytest.mark.parametrize(
    ("service", "wheel", "folders"), [("mlflow", "mlstack-server", ["jobs", "server"]), ("jupyter", "mlstack-client", ["client"])]
)
def test_a_python_image_holds_a_wheel_of_the_folders_that_run_in_it(
    built: Clone, service: str, wheel: str, folders: list[str]
) -> None:
    command = ("run", "--rm", "--network", "none", "--entrypoint", "python3", built.image(service), "-c", REPORT, wheel)
    declared = tomllib.loads((built.folder / f"docker/python/{service}/pyproject.toml").read_text())["project"]
    assert declared["name"] == wheel
    assert json.loads(docker(*command)) == {
        "version": __version__,
        "entry_points": declared["entry-points"],
        "plugins": [entry_points(wheel)],
        "folders": folders,
        "is_typed": True,
        "not_compiled": [],
        "not_of_the_wheel": [],
        "changed_since": [],
    }


@pytest.mark.parametrize("service", ["mlflow", "jupyter"])
def test_a_python_image_says_its_version(built: Clone, service: str) -> None:
    label = '{{index .Config.Labels "org.opencontainers.image.version"}}'
    assert docker("image", "inspect", "--format", label, built.image(service)).strip() == __version__


@pytest.mark.parametrize(
    ("module", "changed"), [("host/cli.py", set()), ("client/runs.py", {"jupyter"}), ("server/app.py", {"mlflow"})]
)
def test_an_edit_changes_the_last_layer_of_the_image_that_runs_it(built: Clone, module: str, changed: set[str]) -> None:
    before = images(built)
    with edited(built, module):
        after = images(built)
    assert {service for service, image in after.items() if image.id != before[service].id} == changed
    assert all(image.layers[:-1] == before[service].layers[:-1] for service, image in after.items())


@dataclass(frozen=True)
class Image:
    id: str
    layers: tuple[str, ...]


def images(clone: Clone) -> dict[str, Image]:
    inspected = {
        service: json.loads(docker("image", "inspect", clone.image(service)))[0] for service in Stack.of(clone.folder).built
    }
    return {service: Image(image["Id"], tuple(image["RootFS"]["Layers"])) for service, image in inspected.items()}


@contextmanager
def edited(clone: Clone, module: str) -> Iterator[None]:
    """A module with one line more, and the images as they are built then."""
    path = clone.folder / "src/mlstack" / module
    kept = path.read_text()
    path.write_text(f"{kept}# edited\n")
    try:
        start.build(Stack.of(clone.folder))
        yield
    finally:
        path.write_text(kept)
        start.build(Stack.of(clone.folder))


def test_build_names_a_package_index_that_cannot_be_reached(built: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = built.folder / "requirements/uv.txt"
    kept = lock.read_text()
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    try:
        lock.write_text(kept + "# not in the build cache\n")
        with pytest.raises(MlstackError) as failed:
            start.build(Stack.of(built.folder))
    finally:
        lock.write_text(kept)
    assert "an image could not be built" in failed.value.wrong
    assert "package source could not be reached" in failed.value.why
    assert "HTTPS_PROXY" in failed.value.why and "CA_BUNDLE" in failed.value.why
    assert "make up again" in failed.value.fix
