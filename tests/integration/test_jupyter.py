"""The notebooks' image of docker/python: logins, a kernel that runs code, and packages that persist."""

import base64
import json
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import requests
import websocket
from testcontainers.core.network import Network

from mlstack.host.compose import docker
from tests.support.clone import Clone
from tests.support.service import Service, wait_until


@pytest.fixture
def token(built: Clone) -> dict[str, str]:
    return {"Authorization": f"token {built.values['JUPYTER_TOKEN']}"}


def run_cell(jupyter: Service, token: dict[str, str], code: str) -> str:
    """What a cell prints, in a new kernel, over the protocol that JupyterLab and VS Code speak. Fails on an error."""
    url = f"http://{jupyter.address(8888)}/api/kernels"
    kernel = requests.post(url, headers=token, timeout=60).json()["id"]
    try:
        with closing(
            websocket.create_connection(f"{url.replace('http', 'ws')}/{kernel}/channels", header=token, timeout=120)
        ) as channel:
            return execute(channel, code)
    finally:
        requests.delete(f"{url}/{kernel}", headers=token, timeout=60).raise_for_status()


def execute(channel: websocket.WebSocket, code: str) -> str:
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "username": "",
        "session": uuid.uuid4().hex,
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
    channel.send(json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}))
    printed, replied, idle = "", False, False
    while not (replied and idle):  # they arrive on two channels, in either order
        message = json.loads(channel.recv())
        if message["parent_header"].get("msg_id") != header["msg_id"]:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            printed += content["text"]
        elif kind == "execute_reply":
            assert content["status"] == "ok", "\n".join(content["traceback"])
            replied = True
        elif kind == "status":
            idle = content["execution_state"] == "idle"
    return printed


def test_kernel_runs_code(jupyter: Service, token: dict[str, str]) -> None:
    assert run_cell(jupyter, token, "print(6 * 7)") == "42\n"


def test_kernel_imports_every_promised_package(jupyter: Service, token: dict[str, str]) -> None:
    packages = "mlflow, sklearn, pandas, pyarrow, matplotlib, tqdm, mlstack.logger"
    assert run_cell(jupyter, token, f"import {packages}; print('all')") == "all\n"
    assert jupyter.run("git", "--version").startswith("git version")


def test_logger_in_a_notebook_writes_to_the_stream_and_a_file(jupyter: Service, token: dict[str, str]) -> None:
    code = "from mlstack.logger import get_logger\nget_logger('cell', log_dir='/home/mlstack/logs').warning('seen')"
    assert " | WARNING | seen" in run_cell(jupyter, token, code)
    assert "| cell |" in jupyter.run("bash", "-c", "cat /home/mlstack/logs/*.log")


@pytest.mark.refusal
def test_jupyter_rejects_a_foreign_host_name(jupyter: Service, token: dict[str, str]) -> None:
    answer = requests.get(f"http://{jupyter.address(8888)}/api/kernels", headers=token | {"Host": "evil.example"}, timeout=60)
    assert answer.status_code == 403


@pytest.mark.refusal
def test_page_of_another_origin_gets_no_kernel_from_a_logged_in_browser(jupyter: Service, built: Clone) -> None:
    server = f"http://{jupyter.address(8888)}"
    with requests.Session() as browser:
        browser.get(f"{server}/lab?token={built.values['JUPYTER_TOKEN']}", timeout=60).raise_for_status()
        foreign = browser.post(f"{server}/api/kernels", headers={"Origin": "http://evil.example"}, timeout=60)
        assert foreign.status_code == 404  # how Jupyter answers a foreign origin
        own = browser.post(
            f"{server}/api/kernels", headers={"Origin": server, "X-XSRFToken": browser.cookies["_xsrf"]}, timeout=60
        )
        assert own.status_code == 201
        channels = f"{server.replace('http', 'ws')}/api/kernels/{own.json()['id']}/channels"
        cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in browser.cookies)
    assert handshake(channels, cookies, server) == 101
    assert handshake(channels, cookies, "http://evil.example") == 403


def handshake(url: str, cookies: str, origin: str) -> int:
    """The status with which a server answers a websocket's opening."""
    try:
        with closing(websocket.create_connection(url, cookie=cookies, origin=origin, timeout=60)) as channel:
            status: int = channel.getstatus()
    except websocket.WebSocketBadStatusException as refused:
        status = refused.status_code
    return status


def test_jupyters_log_contains_no_secret(built: Clone, jupyter: Service) -> None:
    assert built.values["JUPYTER_TOKEN"] not in jupyter.log()


@pytest.fixture
def another_user(built: Clone, network: Network, mlflow: Service) -> Iterator[Service]:
    """Jupyter as a host user that the image does not know, with a home volume of its own."""
    home = docker("volume", "create", f"{built.name}-home").strip()
    service = Service(built, "jupyter", network, 8888, volumes=[(home, "/home/mlstack", "rw")])
    service._kwargs["user"] = "4321:4321"
    with service:
        yield service
    docker("volume", "rm", home)


def test_packages_that_any_host_user_installs_survive_a_restart(
    another_user: Service, token: dict[str, str], tmp_path: Path
) -> None:
    assert run_cell(another_user, token, "import os; print(os.getuid(), os.access('.', os.W_OK))") == "4321 True\n"
    content = base64.b64encode(wheel(tmp_path)).decode()
    another_user.run("bash", "-c", f"base64 --decode <<<{content} >$HOME/added-1.0-py3-none-any.whl")
    another_user.run("pip", "install", "--no-index", "/home/mlstack/added-1.0-py3-none-any.whl")
    assert run_cell(another_user, token, "import added; print(added.__file__)").startswith("/home/mlstack/.local/")
    another_user.wrapped.restart()
    wait_until(lambda: another_user.health == "healthy")
    assert run_cell(another_user, token, "import added; print('still here')") == "still here\n"


def wheel(folder: Path) -> bytes:
    """The smallest package that pip installs."""
    path = folder / "added-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("added.py", "")
        archive.writestr("added-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: added\nVersion: 1.0\n")
        archive.writestr(
            "added-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("added-1.0.dist-info/RECORD", "")
    return path.read_bytes()
