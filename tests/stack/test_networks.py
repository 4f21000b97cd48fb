"""The networks of the shipped stack: which services connect to each other and to the outside, and access to MinIO."""

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import requests
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException, S3Error
from minio.minioadmin import MinioAdmin

from mlstack import settings
from mlstack.host import networks
from mlstack.host.compose import docker
from mlstack.host.stack import Stack
from mlstack.s3 import client_for
from mlstack.settings import Keys
from tests.support.clone import Clone, free_ports
from tests.support.service import wait_until

METADATA = "169.254.169.254"


@pytest.fixture
def console_keys(stack: Clone) -> Keys:
    """The console user's keys for MinIO, from the host."""
    return replace(settings.console_keys(stack.values), endpoint=f"127.0.0.1:{stack.values['MINIO_PORT']}")


def reaches(stack: Clone, service: str, host: str, port: int) -> bool:
    """Whether a process in a service's container can open a connection. A one-shot is started for it."""
    verb = ["run", "--rm", "--no-deps", "-T"] if service == "bootstrap" else ["exec", "-T"]
    attempt = f"timeout 8 bash -c 'exec 3<>/dev/tcp/{host}/{port}' && echo connected"
    command = ["docker", "compose", *verb, service, "bash", "-c", attempt]
    done = subprocess.run(command, cwd=stack.folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() == "connected"


def minio_answers(stack: Clone, service: str, host: str, port: int) -> bool:
    """Whether MinIO answers a process in a service's container."""
    attempt = f"exec 3<>/dev/tcp/{host}/{port} && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && head -c 2000 <&3"
    command = ["docker", "compose", "exec", "-T", service, "timeout", "8", "bash", "-c", attempt]
    return "MinIO" in subprocess.run(command, cwd=stack.folder, capture_output=True, text=True, check=False).stdout


@contextmanager
def listening_on_the_host(stack: Clone) -> Iterator[tuple[str, int]]:
    """An address of the host outside the stack's closed networks, and a port where a program of the host listens."""
    (port,) = free_ports(1)
    address = docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", f"{stack.name}_outbound-on").strip()
    program = (
        f"import socket; server = socket.create_server(('', {port})); print('listening', flush=True)\nwhile True: server.accept()"
    )
    container = docker(
        "run", "--detach", "--rm", "--init", "--network", "host", "--entrypoint", "python3",
        stack.image("jupyter"), "-c", program,
    ).strip()  # fmt: skip
    try:
        wait_until(lambda: "listening" in docker("logs", container))
        yield address, port
    finally:
        docker("rm", "--force", container)


@pytest.mark.refusal
def test_postgres_minio_mlflow_and_one_shots_have_no_route_outside_the_stack(stack: Clone) -> None:
    with listening_on_the_host(stack) as (address, port):
        assert reaches(stack, "jupyter", address, port)  # its outbound network is on: something listens there
        reached = [service for service in ("postgres", "minio", "mlflow", "bootstrap") if reaches(stack, service, address, port)]
    assert reached == []


@pytest.mark.refusal
def test_metadata_address_is_the_containers_own(stack: Clone) -> None:
    """A process can listen only on its container's own address, so the cloud's service at that address is unreachable."""
    listen = f"import socket; socket.create_server(('{METADATA}', 0)); print('own')"
    assert stack.in_container("jupyter", "python3", "-c", listen).strip() == "own"
    assert not reaches(stack, "jupyter", METADATA, 80)


@pytest.mark.refusal
def test_minios_console_is_unreachable_from_notebooks(stack: Clone) -> None:
    container = stack.compose("ps", "--quiet", "minio").strip()
    networks = json.loads(docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", container))
    # Checked by its answer: outside, something else may accept any connection.
    for host in ("minio", "minio-console", *(network["IPAddress"] for network in networks.values())):
        assert not minio_answers(stack, "jupyter", host, 9001), host
    assert minio_answers(stack, "jupyter", "minio", 9000)
    assert requests.get(f"http://127.0.0.1:{stack.values['MINIO_CONSOLE_PORT']}/", timeout=60).status_code == 200


@pytest.mark.refusal
def test_console_user_reads_the_buckets_and_changes_nothing(stack: Clone, console_keys: Keys, owner_keys: Keys) -> None:
    owner, bucket = client_for(owner_keys), console_keys.bucket
    owner.put_object(bucket, "0/shown/x", io.BytesIO(b"shown"), 5)
    owner.make_bucket("another")
    console = f"http://127.0.0.1:{stack.values['MINIO_CONSOLE_PORT']}/api/v1"
    with requests.Session() as browser:
        login = {"accessKey": console_keys.access_key, "secretKey": console_keys.secret_key}
        assert browser.post(f"{console}/login", json=login, timeout=60).status_code == 204
        listed = browser.get(f"{console}/buckets", timeout=60).json()["buckets"]
        assert {row["name"] for row in listed} == set(console_keys.buckets)
        assert browser.get(f"{console}/buckets/{bucket}/objects/download?prefix=0/shown/x", timeout=60).content == b"shown"
        assert browser.delete(f"{console}/buckets/{bucket}/objects?prefix=0/shown/x", timeout=60).status_code == 403
    client = client_for(console_keys)
    for attempt in (
        lambda: client.put_object(bucket, "0/forged", io.BytesIO(b"x"), 1),
        lambda: client.put_object(console_keys.datasets, "trips/forged", io.BytesIO(b"x"), 1),
        lambda: client.remove_object(bucket, "0/shown/x"),
        lambda: client.make_bucket("mine"),
        lambda: list(client.list_objects("another")),
    ):
        with pytest.raises(S3Error, match="AccessDenied"):
            attempt()
    assert owner.get_object(bucket, "0/shown/x").data == b"shown"
    owner.remove_bucket("another")


@pytest.mark.refusal
@pytest.mark.parametrize("user", ["keys", "console_keys"])
def test_keys_cannot_create_keys_or_change_their_own_secret(user: str, request: pytest.FixtureRequest) -> None:
    keys: Keys = request.getfixturevalue(user)
    admin = MinioAdmin(endpoint=keys.endpoint, credentials=StaticProvider(keys.access_key, keys.secret_key), secure=False)
    for attempt in (
        lambda: admin.add_service_account(name="mine"),
        lambda: admin.user_add(keys.access_key, keys.secret_key),
    ):
        with pytest.raises(MinioAdminException, match="AccessDenied"):
            attempt()


@pytest.mark.refusal
def test_page_of_another_origin_cannot_read_a_presigned_url(keys: Keys) -> None:
    client = client_for(keys)
    client.put_object(keys.bucket, "0/read/x", io.BytesIO(b"read"), 4)
    url = client.get_presigned_url("GET", keys.bucket, "0/read/x", expires=timedelta(minutes=1))
    for origin in ("http://evil.example", "http://127.0.0.1:3000", "null"):
        answer = requests.get(url, headers={"Origin": origin}, timeout=60)
        assert "Access-Control-Allow-Origin" not in answer.headers, origin
        asked = {"Origin": origin, "Access-Control-Request-Method": "PUT"}
        assert "Access-Control-Allow-Origin" not in requests.options(url, headers=asked, timeout=60).headers, origin


@pytest.mark.refusal
def test_image_is_not_built_without_the_go_checksum_database(stack: Clone) -> None:
    done = stack.make("up", GOSUMDB="off")
    assert done.returncode != 0
    assert "GOSUMDB is off" in done.stderr and "go env -u GOSUMDB" in done.stderr


@pytest.mark.parametrize("name", ["mlflow", "jupyter", "minio"])
def test_each_page_has_a_host_name_of_its_own(stack: Clone, name: str) -> None:
    port = stack.values[{"mlflow": "MLFLOW_PORT", "jupyter": "JUPYTER_PORT", "minio": "MINIO_CONSOLE_PORT"}[name]]
    for host in (f"{name}.localhost:{port}", f"localhost:{port}", f"127.0.0.1:{port}"):
        account = settings.notebook_account(stack.values)
        auth = (account.username, account.password) if name == "mlflow" else None
        answer = requests.get(f"http://127.0.0.1:{port}/", headers={"Host": host}, auth=auth, timeout=60)
        assert answer.status_code == 200, host


def test_copied_env_with_another_name_gets_networks_of_its_own(stack: Clone, tmp_path: Path) -> None:
    before = stack.values["CLOSED_NETWORK"]
    networks.ensure_free(Stack.of(stack.folder))
    assert stack.values["CLOSED_NETWORK"] == before
    shutil.copy2(stack.folder / ".env", tmp_path / ".env")
    copy = Clone(tmp_path, f"{stack.name}-other")
    copy.set(COMPOSE_PROJECT_NAME=copy.name)
    networks.ensure_free(Stack.of(tmp_path))
    assert copy.values["CLOSED_NETWORK"] != before


@pytest.mark.refusal
def test_outbound_connections_follow_env_and_ports_stay_open(stack: Clone) -> None:
    """Last in this file: it restarts MLflow and Jupyter the other way round. The next file starts them as shipped."""
    former = f"{stack.name}_data"  # of a version that had no internal networks
    docker("network", "create", "--label", f"com.docker.compose.project={stack.name}", former)
    before = {name: stack.values[name] for name in ("MLFLOW_OUTBOUND", "JUPYTER_OUTBOUND")}
    stack.set(MLFLOW_OUTBOUND="on", JUPYTER_OUTBOUND="off")
    try:
        done = stack.make("up")
        assert done.returncode == 0, done.stderr
        with listening_on_the_host(stack) as (address, port):
            assert reaches(stack, "mlflow", address, port)
            assert not reaches(stack, "jupyter", address, port)
        assert not reaches(stack, "mlflow", METADATA, 80)
        for name in ("MLFLOW_PORT", "JUPYTER_PORT"):
            assert requests.get(f"http://127.0.0.1:{stack.values[name]}/health", timeout=60).status_code in (200, 404)
        stack.in_container("jupyter", "python3", "-c", "import mlflow; mlflow.log_metric('a', 1)")
        assert former not in docker("network", "ls", "--format", "{{.Name}}").split()
    finally:
        stack.set(**before)
