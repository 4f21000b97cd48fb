"""A stack of version 0.1, whose containers ran as uid 1000, started by this version: its volumes change owner."""

import os
from collections.abc import Iterator

import pytest

from mlstack.host.compose import docker
from mlstack.host.stack import Stack
from mlstack.host.volumes import give_to_services
from tests.support.clone import Clone

VOLUMES = ("minio", "spool", "home", "scratch")
BUILT = ("minio", "mlflow", "jupyter")
KEPT = """
import mlflow, pathlib
pathlib.Path("/home/mlstack/.local/deep/er").mkdir(parents=True)
pathlib.Path("/home/mlstack/.local/deep/er/kept").write_text("kept")
pathlib.Path("/home/mlstack/.local/deep/link").symlink_to("/etc/passwd")
pathlib.Path("/tmp/left").touch()
with mlflow.start_run() as run:
    mlflow.log_text("kept", "folder/kept.txt")
print("RUN", run.info.run_id)
"""
THERE = """
import mlflow, pathlib, sys
uri = mlflow.get_run(sys.argv[1]).info.artifact_uri
print(pathlib.Path("/home/mlstack/.local/deep/er/kept").read_text(), mlflow.artifacts.load_text(f"{uri}/folder/kept.txt"))
with mlflow.start_run():
    mlflow.log_text("new", "new.txt")
pathlib.Path("/home/mlstack/.local/deep/er/new").write_text("new")
"""


@pytest.fixture
def stack(clone: Clone) -> Iterator[Clone]:
    with clone.started():
        yield clone


def test_upgrade_chowns_the_volumes_of_an_older_stack_and_keeps_their_data(stack: Clone) -> None:
    """The stack is downgraded as an upgrade's rollback does it; then an interrupted `make up` is repeated."""
    output = stack.in_container("jupyter", "python3", "-c", KEPT)
    run = next(line.split()[1] for line in output.splitlines() if line.startswith("RUN"))
    wanted = {f"{stack.name}_{volume}": _owner(stack, volume) for volume in VOLUMES}
    stack.compose("down")
    new = {service: docker("image", "inspect", "--format", "{{.Id}}", stack.image(service)).strip() for service in BUILT}
    old = [_as_an_old_image(stack, service) for service in new]
    roots = {"HOST_UID": "1000", "HOST_GID": "1000"} if os.geteuid() == 0 else {}
    stack.set(**roots)
    give_to_services(Stack.of(stack.folder))
    given = {f"{stack.name}_{volume}": _owner(stack, volume) for volume in VOLUMES}
    assert {given[volume] for volume in wanted if roots or not volume.endswith(("_home", "_scratch"))} == {"1000"}

    for service, image in new.items():
        docker("tag", image, stack.image(service))
    docker("image", "rm", *old)
    # An interrupted make up leaves this: some folders have the new owner, the volume's root has not.
    _as_root(stack, "minio", "chown", "-R", f"{wanted[f'{stack.name}_minio']}", "/volume/.minio.sys")
    text = (stack.folder / ".env").read_text()
    (stack.folder / ".env").write_text("".join(line for line in text.splitlines(True) if "MINIO_BUCKET_QUOTA" not in line))
    done = stack.make("up")
    assert done.returncode == 0, done.stderr
    assert "is stopped while it is given to uid 60710" in done.stderr
    assert ("HOST_UID was 1000" in done.stderr) == bool(roots)
    assert {f"{stack.name}_{volume}": _owner(stack, volume) for volume in VOLUMES} == wanted
    for volume, owner in wanted.items():
        if roots or not volume.endswith(("_home", "_scratch")):
            assert _as_root(stack, volume.removeprefix(f"{stack.name}_"), "find", "/volume", "!", "-uid", owner) == ""
    assert "kept kept" in stack.in_container("jupyter", "python3", "-c", THERE, run)
    again = stack.make("up")
    assert again.returncode == 0 and "is given to" not in again.stderr


def _as_root(stack: Clone, volume: str, command: str, *arguments: str) -> str:
    mount = f"--volume={stack.name}_{volume}:/volume"
    return docker("run", "--rm", "--user=0", "--network=none", mount, f"--entrypoint={command}", stack.image("minio"), *arguments)


def _owner(stack: Clone, volume: str) -> str:
    return _as_root(stack, volume, "stat", "--format=%u", "/volume").strip()


def _as_an_old_image(stack: Clone, service: str) -> str:
    """Gives a service's image the user that the images of version 0.1 ran as."""
    container = docker("create", "--network=none", stack.image(service)).strip()
    image = docker("commit", "--change", "USER 1000:1000", container, stack.image(service)).strip()
    docker("rm", "--volumes", container)
    return image
