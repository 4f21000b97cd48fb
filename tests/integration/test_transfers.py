"""Artifacts through presigned URLs: byte for byte equal to MLflow's proxy, which is used where MinIO is unreachable."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import requests
from testcontainers.core.container import DockerContainer

from mlstack.client import transfers
from mlstack.client.transfers import Patience, Transfers, receive, send
from mlstack.errors import MlstackError
from mlstack.s3 import client_for
from mlstack.settings import Keys
from tests.support import transfers as exchanged
from tests.support.clone import Clone, free_ports
from tests.support.service import Service, wait_until

MEGABYTE = 1024**2
PATIENT = Patience(retries=12, backoff=0.1, silence=30)


def test_notebook_gets_the_same_files_directly_and_through_mlflow(jupyter: Service) -> None:
    printed = jupyter.run("python3", "-c", exchanged.PROGRAM)
    exchanged.assert_equal(exchanged.result_of(printed), through_urls=True)


def test_client_that_cannot_reach_minio_transfers_through_mlflow(built: Clone, mlflow: Service) -> None:
    """As through a tunnel to MLflow's port only: nothing listens on MinIO's port."""
    result = exchanged.here(f"http://{mlflow.address(5000)}", *exchanged.account(built))
    exchanged.assert_equal(result, through_urls=False)
    assert result["log"].count(f"MinIO does not answer at 127.0.0.1:{built.values['MINIO_PORT']}") == 1


@pytest.fixture
def other_program(built: Clone) -> Iterator[None]:
    """A program on MinIO's port that accepts every request and answers 200."""
    program = (
        "import http.server, sys\n"
        "class Yes(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.rfile.read(int(self.headers.get('Content-Length', 0)))\n"
        "        self.send_response(200); self.send_header('Content-Length', '0'); self.end_headers()\n"
        "    do_PUT = do_HEAD = do_GET\n"
        "http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Yes).serve_forever()\n"
    )
    port = built.values["MINIO_PORT"]
    with subprocess.Popen([sys.executable, "-c", program, port], stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}"))
            yield
        finally:
            process.kill()


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).status_code == 200
    except (requests.ConnectionError, requests.Timeout):
        return False


def test_no_artifact_is_sent_to_another_program_on_minios_port(built: Clone, mlflow: Service, other_program: None) -> None:
    result = exchanged.here(f"http://{mlflow.address(5000)}", *exchanged.account(built))
    exchanged.assert_equal(result, through_urls=False)
    assert result["log"].count(f"MinIO does not answer at 127.0.0.1:{built.values['MINIO_PORT']}") == 1


@pytest.fixture
def plain_server(built: Clone) -> Iterator[str]:
    """Genuine MLflow, without accounts and presigned URLs, and without its jobs: ten processes start for them."""
    container = DockerContainer(
        built.image("mlflow"),
        command=[
            *("mlflow", "server", "--host=0.0.0.0", "--port=5000", "--workers=1", "--allowed-hosts=*"),
            *("--backend-store-uri=sqlite:////tmp/mlflow.db", "--artifacts-destination=/tmp/artifacts"),
        ],
    )
    container.with_env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    port = free_ports(1)[0]
    container.ports["5000"] = ("127.0.0.1", port)  # type: ignore[assignment] # docker's own type
    uri = f"http://127.0.0.1:{port}"
    with container:
        wait_until(lambda: answers(f"{uri}/health"), 120)
        yield uri


def test_client_of_a_server_without_presigned_urls_transfers_through_it(plain_server: str) -> None:
    exchanged.assert_equal(exchanged.here(plain_server), through_urls=False)


def test_host_that_cannot_reach_minio_gets_no_presigned_url(built: Clone, mlflow: Service) -> None:
    account = exchanged.account(built)
    api = f"http://{mlflow.address(5000)}/api/2.0"
    new = {"experiment_id": "0", "start_time": 1}
    run = requests.post(f"{api}/mlflow/runs/create", json=new, auth=account, timeout=60).json()["run"]["info"]["run_id"]
    url, wanted = f"{api}/mlstack/artifacts/links-to-write", {"root": f"0/{run}/artifacts", "names": ["x"]}
    port = built.values["MINIO_PORT"]
    for host, leads_to in (("mlflow:5000", "http://minio:9000/"), ("localhost:1", f"http://127.0.0.1:{port}/")):
        (link,) = requests.post(url, json=wanted, auth=account, headers={"Host": host}, timeout=60).json()["links"]
        assert link.startswith(leads_to)
    assert requests.post(url, json=wanted, auth=account, headers={"Host": "evil.example"}, timeout=60).status_code == 403


# ---- one transfer --------------------------------------------------------------------------------


client_of = lru_cache(client_for)  # it asks MinIO for the bucket's region once: MinIO may be starting when another URL is made


def link(keys: Keys, method: str, name: str, of: datetime | None = None) -> str:
    return client_of(keys).get_presigned_url(method, keys.bucket, name, expires=timedelta(minutes=15), request_date=of)


def finish(transfer: Any, name: str, first: str, again: Any) -> None:
    with Transfers(PATIENT) as queue:
        queue.begin(transfer, name, first, again)
        queue.finish()


def test_expired_presigned_url_is_requested_again(user_keys: Keys, bootstrapped: None, tmp_path: Path) -> None:
    file, asked = tmp_path / "file", []
    file.write_bytes(os.urandom(MEGABYTE))

    def again(method: str, name: str) -> str:
        asked.append(method)
        return link(user_keys, method, name)

    for method, transfer in (("PUT", partial(send, file)), ("GET", partial(receive, str(tmp_path / "down")))):
        old = link(user_keys, method, "old/x", datetime.now(UTC) - timedelta(days=1))
        finish(transfer, "old/x", old, partial(again, method))
    assert asked == ["PUT", "GET"]
    assert (tmp_path / "down").read_bytes() == file.read_bytes()


def test_presigned_url_that_is_denied_twice_is_an_error_at_once(user_keys: Keys, bootstrapped: None, tmp_path: Path) -> None:
    asked: list[str] = []

    def again(name: str) -> str:
        asked.append(name)
        return link(user_keys, "GET", "wrong/x")  # for another method

    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(MlstackError, match="wrong/x was not transferred: MinIO answered 403 SignatureDoesNotMatch"):
        finish(partial(send, tmp_path / "file"), "wrong/x", again("first"), again)
    assert asked == ["first", "wrong/x"]


def test_download_survives_a_restart_of_minio_or_leaves_no_file(
    minio: Service, user_keys: Keys, bootstrapped: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, down = tmp_path / "file", tmp_path / "down"
    down.mkdir()
    file.write_bytes(os.urandom(MEGABYTE) * 400)
    finish(partial(send, file), "large", link(user_keys, "PUT", "large"), partial(link, user_keys, "PUT"))
    target, attempts = down / "large", 0

    def again(name: str) -> str:
        nonlocal attempts
        attempts += 1
        assert not target.exists()
        return link(user_keys, "GET", name)

    has_begun, is_killed = threading.Event(), threading.Event()

    def pause(ended: threading.Event) -> None:
        """After a block: however fast the host is, MinIO is killed in the middle of the download."""
        has_begun.set()
        is_killed.wait(180)

    monkeypatch.setattr(transfers, "_check_running", pause)
    first = link(user_keys, "GET", "large")
    download = threading.Thread(target=finish, args=(partial(receive, str(target)), "large", first, again))
    download.start()
    assert has_begun.wait(180)
    minio.wrapped.kill()
    is_killed.set()
    assert not target.exists()
    minio.wrapped.start()
    download.join()
    assert attempts >= 1
    assert list(down.iterdir()) == [target]
    assert target.read_bytes() == file.read_bytes()
    wait_until(minio.is_healthy)


def test_download_that_fails_leaves_no_file(user_keys: Keys, bootstrapped: None, tmp_path: Path) -> None:
    client_for(user_keys).fput_object(user_keys.bucket, "there", __file__)
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        finish(
            partial(receive, str(tmp_path / "taken")), "there", link(user_keys, "GET", "there"), partial(link, user_keys, "GET")
        )
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]
