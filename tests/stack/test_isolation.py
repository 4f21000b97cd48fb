"""Isolation of the containers: uids that no person has, no secrets in processes, quotas."""

import os
import pwd
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from mlstack.host.compose import docker
from tests.stack.conftest import SECRETS
from tests.support.clone import Clone
from tests.support.service import wait_until

SERVICES = ("postgres", "minio", "mlflow", "jupyter")
ONE_SHOTS = ("bootstrap", "migration")
# The uid of the first user on Debian and Ubuntu. Tests that run as root use it; other users are already not the containers'.
PERSON = 1000
# Secrets that a notebook may have.
ALLOWED = {"jupyter": {"MLFLOW_TRACKING_PASSWORD"}}

# What another user of the host tries on processes; it prints what worked. On itself everything does. (In bash: the tests'
# own Python may be in a folder that other users cannot enter.)
ATTACK = """
for pid in "${@:-$$}"; do
  head -c 1 "/proc/$pid/environ" >/dev/null && echo environ
  ls "/proc/$pid/root/" >/dev/null && echo root
  : <"/proc/$pid/mem" && echo memory
  kill -0 "$pid" && echo kill
done 2>/dev/null
true
"""

# Every process that the container itself runs, with its command and environment; not those of `docker exec`, which get
# the container's whole environment.
LISTING = r"""
for folder in /proc/[0-9]*; do
  pid=${folder#/proc/}; parent=$(grep -s ^PPid "$folder/status") || continue
  printf '%s\t%s\t' "$pid" "${parent##*[[:space:]]}"; tr '\0\n\t' '   ' <"$folder/cmdline"; printf '\t'
  tr '\0\n\t' '   ' <"$folder/environ"; echo
done 2>/dev/null
"""

# More than the other files of tests/stack leave in the bucket; in one request, also from MLflow.
TOO_LARGE = """
import mlflow, pathlib, tempfile
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
file = pathlib.Path(tempfile.mkdtemp()) / "large"
file.write_bytes(b"x" * (7 << 20))
with mlflow.start_run() as run:
    through_mlflow = MlflowArtifactsRepository(run.info.artifact_uri)
    for log in (mlflow.log_artifact, through_mlflow.log_artifact):
        try:
            log(str(file))
        except Exception as error:
            print("REFUSED", error)
    print("STORED", mlflow.artifacts.list_artifacts(run_id=run.info.run_id))
    mlflow.log_text("small", "small.txt")
"""


def pids(stack: Clone, service: str) -> list[str]:
    container = stack.compose("ps", "--quiet", service).strip()
    return docker("top", container, "-eo", "pid").split()[1:]


def attacked(*targets: str) -> list[str]:
    """What works as a user of the host whose uid no container has."""
    person: dict[str, Any] = {"user": PERSON, "group": PERSON, "extra_groups": []} if os.geteuid() == 0 else {}
    command = ["bash", "-c", ATTACK, "attack", *targets]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", **person).stdout.split()


@pytest.mark.refusal
@pytest.mark.parametrize("service", SERVICES)
def test_other_user_of_the_host_cannot_read_or_end_a_process(stack: Clone, service: str) -> None:
    assert attacked() == ["environ", "root", "memory", "kill"]  # on a process of its own
    if service == "jupyter" and int(stack.values["HOST_UID"]) == os.geteuid():
        return  # it has this user's uid: it writes this user's notebooks
    process_ids = pids(stack, service)
    assert process_ids
    assert attacked(*process_ids) == []


@pytest.mark.refusal
def test_no_container_runs_as_a_user_of_the_host(stack: Clone) -> None:
    persons = {entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid >= PERSON and entry.pw_name != "nobody"} | {PERSON}
    mine = {os.geteuid()}  # of Jupyter, where the user is not root
    uids = {service: int(stack.in_container(service, "id", "-u")) for service in SERVICES}
    assert uids | {"jupyter": int(stack.values["HOST_UID"])} == uids
    assert set(uids.values()) & (persons | {0}) - mine == set()


def processes(listing: str) -> dict[str, str]:
    """Environment by command, of the container's first process and its descendants."""
    rows = [line.split("\t") for line in listing.splitlines()]
    parents = {pid: parent for pid, parent, *_ in rows}

    def is_own(pid: str) -> bool:
        return pid == "1" or (pid in parents and is_own(parents[pid]))

    return {f"{pid} {command}": environment for pid, _, command, environment in rows if is_own(pid)}


def leaked(stack: Clone, service: str, environments: dict[str, str]) -> dict[str, set[str]]:
    leaks = {
        command: {name for name in SECRETS if stack.values[name] in environment} - ALLOWED.get(service, set())
        for command, environment in environments.items()
    }
    return {command: names for command, names in leaks.items() if names}


@pytest.fixture(scope="module")
def kernel(stack: Clone) -> Iterator[None]:
    """A running kernel of a notebook."""
    url = f"http://127.0.0.1:{stack.values['JUPYTER_PORT']}/api/kernels"
    headers = {"Authorization": f"token {stack.values['JUPYTER_TOKEN']}"}
    started: dict[str, Any] = requests.post(url, headers=headers, timeout=60).json()
    yield
    requests.delete(f"{url}/{started['id']}", headers=headers, timeout=60)


@pytest.mark.refusal
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("service", SERVICES)
def test_no_process_has_a_secret_in_its_environment(stack: Clone, service: str) -> None:
    def listed() -> dict[str, str]:
        return processes(stack.in_container(service, "bash", "-c", LISTING))

    if service == "jupyter":
        wait_until(lambda: "ipykernel" in " ".join(listed()))
    environments = listed()
    assert len(environments) > 1
    assert leaked(stack, service, environments) == {}


@pytest.mark.refusal
@pytest.mark.parametrize("service", ONE_SHOTS)
def test_no_process_of_a_one_shot_has_a_secret_in_its_environment(stack: Clone, service: str) -> None:
    environments = processes(stack.compose("run", "--rm", "--no-deps", "--no-TTY", service, "bash", "-c", LISTING))
    assert len(environments) > 1
    assert leaked(stack, service, environments) == {}


@pytest.mark.refusal
def test_bucket_rejects_uploads_beyond_its_quota(stack: Clone) -> None:
    with quota(stack, "6m"):
        output = stack.in_container("jupyter", "python3", "-c", TOO_LARGE)
    assert len(re.findall("REFUSED.* bucket is full: it holds as much as MINIO_BUCKET_QUOTA allows", output)) == 2, output
    assert "STORED []" in output


@contextmanager
def quota(stack: Clone, size: str) -> Iterator[None]:
    for value in (size, ""):
        stack.set(MINIO_BUCKET_QUOTA=value)
        stack.compose("run", "--rm", "--no-deps", "--no-TTY", "bootstrap")
        if value:
            yield


@pytest.mark.refusal
def test_notebooks_that_use_every_core_leave_postgres_its_share(stack: Clone) -> None:
    """Both use all they can get for the same time: Postgres gets more."""
    burn = "for i in $(seq $(nproc)); do timeout 5 bash -c 'while :; do :; done' & done; wait; times"
    containers = {service: stack.compose("ps", "--quiet", service).strip() for service in ("postgres", "jupyter")}
    started = {
        service: subprocess.Popen(["docker", "exec", container, "bash", "-c", burn], stdout=subprocess.PIPE, text=True)
        for service, container in containers.items()
    }
    used = {service: _seconds(process.communicate(timeout=300)[0]) for service, process in started.items()}
    assert used["postgres"] > 1.3 * used["jupyter"], used


def _seconds(times: str) -> float:
    """The CPU time of the children, from bash's `times`: the first word of the last line."""
    minutes, seconds = re.split("m|s", times.splitlines()[-1])[:2]
    return float(minutes) * 60 + float(seconds)
