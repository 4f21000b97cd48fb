"""The notebooks' image of docker/python: logins, and a kernel that runs code. Packages and tools: test_terminal.py."""

import json
import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest
import requests
import websocket
from testcontainers.core.network import Network

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


def send(channel: websocket.WebSocket, code: str) -> str:
    """Asks a kernel to run code, and returns the request's id."""
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "username": "",
        "session": uuid.uuid4().hex,
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
    channel.send(json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}))
    return header["msg_id"]


def execute(channel: websocket.WebSocket, code: str) -> str:
    """What a cell prints. Fails on an error."""
    request = send(channel, code)
    printed, replied, idle = "", False, False
    while not (replied and idle):  # they arrive on two channels, in either order
        message = json.loads(channel.recv())
        if message["parent_header"].get("msg_id") != request:
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
def notebook(jupyter: Service, token: dict[str, str]) -> Iterator[websocket.WebSocket]:
    """The kernel of a notebook of that name, as the page opens it."""
    url = f"http://{jupyter.address(8888)}"
    asked = {"path": "deep/mine.ipynb", "name": "mine.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
    session = requests.post(f"{url}/api/sessions", headers=token, json=asked, timeout=60).json()
    address = f"{url.replace('http', 'ws')}/api/kernels/{session['kernel']['id']}/channels"
    with closing(websocket.create_connection(address, header=token, timeout=120)) as channel:
        yield channel
    requests.delete(f"{url}/api/sessions/{session['id']}", headers=token, timeout=30).raise_for_status()


def test_a_run_and_a_line_of_the_log_have_the_notebooks_name(notebook: websocket.WebSocket) -> None:
    code = (
        "import mlflow, logging\nfrom mlstack.logger import get_logger\n"
        "with mlflow.start_run() as run:\n    get_logger('cell').info('here')\n"
        "tags = mlflow.get_run(run.info.run_id).data.tags\n"
        "print(tags['mlflow.source.name'], tags['mlflow.source.type'])"
    )
    printed = execute(notebook, code)
    assert "| mine.ipynb:4 | INFO | here" in printed
    assert printed.splitlines()[-1] == "mine.ipynb NOTEBOOK"


def test_a_cell_says_what_it_waits_for(notebook: websocket.WebSocket) -> None:
    # A port where nothing listens; six seconds of retries instead of six minutes.
    code = (
        "import os, mlflow\nos.environ |= {'MLFLOW_TRACKING_URI': 'http://mlflow:5999', 'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '3'}\n"
        "try:\n    mlflow.search_experiments()\nexcept Exception as error:\n    print('gave up')"
    )
    before, _, after = execute(notebook, code).partition("gave up")
    assert "waiting for MLflow at http://mlflow:5999" in before and "make doctor" in before and after


def test_a_password_that_was_replaced_is_named_in_the_cell(notebook: websocket.WebSocket) -> None:
    code = (
        "import os, mlflow\nos.environ['MLFLOW_TRACKING_PASSWORD'] = 'the one before make rotate'\n"
        "try:\n    mlflow.search_experiments()\nexcept Exception as error:\n    print(type(error).__name__)"
    )
    printed = execute(notebook, code)
    assert "restart the kernel" in printed and "make rotate" in printed


def test_a_kernel_that_needs_too_much_memory_says_so_in_its_cell(
    built: Clone, network: Network, mlflow: Service, token: dict[str, str]
) -> None:
    service = Service(built, "jupyter", network, 8888)
    service._kwargs |= {"mem_limit": "512m", "memswap_limit": "512m"}
    with service:
        url = f"http://{service.address(8888)}/api/kernels"
        kernel = requests.post(url, headers=token, timeout=60).json()["id"]
        address = f"{url.replace('http', 'ws')}/{kernel}/channels"
        with closing(websocket.create_connection(address, header=token, timeout=120)) as channel:
            assert execute(channel, "print(6 * 7)") == "42\n"
            send(channel, "b'x' * (4 << 30)")
            message = json.loads(channel.recv())
            while message["msg_type"] != "stream":
                message = json.loads(channel.recv())
    assert message["content"]["name"] == "stderr"
    assert "JUPYTER_MEMORY" in message["content"]["text"]
    assert message["parent_header"]["msg_type"] == "execute_request"  # below its cell


def test_an_idle_kernel_that_no_page_shows_is_ended(
    built: Clone, network: Network, mlflow: Service, token: dict[str, str]
) -> None:
    with Service(built, "jupyter", network, 8888).with_env("JUPYTER_IDLE_HOURS", "0.001") as service:
        url = f"http://{service.address(8888)}/api/kernels"
        assert requests.post(url, headers=token, timeout=60).status_code == 201
        wait_until(lambda: requests.get(url, headers=token, timeout=30).json() == [])
