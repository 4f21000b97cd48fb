"""A Docker engine in a container: the host's engine runs other containers and is never restarted."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlstack.host.compose import docker
from tests.support.clone import Clone
from tests.support.service import wait_until

DOCKERFILE = Path(__file__).with_name("engine.Dockerfile")
START = "rm -f /var/run/docker.pid; exec dockerd >>/var/log/dockerd.log 2>&1"


@contextmanager
def engine_for(clone: Clone) -> Iterator[str]:
    """The name of a container with an engine that has the clone's folder at the same path, and its images."""
    name = f"{clone.name}-engine"
    docker("build", "--quiet", "--tag", name, "--file", str(DOCKERFILE), str(DOCKERFILE.parent))
    # Everything that --privileged gives but SYS_RESOURCE, which a host that is itself confined cannot grant.
    docker(
        "run", "--detach", "--init", "--name", name, "--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE",
        "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
        "--security-opt", "systempaths=unconfined",
        "--device-cgroup-rule", "a *:* rwm", "--cgroupns", "host", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw",
        "--volume", f"{clone.folder}:{clone.folder}", name,
    )  # fmt: skip
    try:
        start(name)
        images = [clone.image(service) for service in ("postgres", "minio", "mlflow", "jupyter")]
        with subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE) as saved:
            subprocess.run(
                ["docker", "exec", "--interactive", name, "docker", "load"], stdin=saved.stdout, capture_output=True, check=True
            )
        assert saved.returncode == 0
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


def start(name: str) -> None:
    docker("exec", "--detach", name, "bash", "-c", START)
    wait_until(lambda: _answers(name))


def restart(name: str) -> None:
    """kill -9, and started again as systemd would start it: the containers run on without it until then."""
    docker("exec", name, "pkill", "-KILL", "-x", "dockerd")
    wait_until(lambda: not _answers(name))
    start(name)


def _answers(name: str) -> bool:
    return subprocess.run(["docker", "exec", name, "docker", "version"], capture_output=True, check=False).returncode == 0
