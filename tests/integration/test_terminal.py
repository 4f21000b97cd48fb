"""The notebooks' container as a machine: its tools, packages as in any virtual environment, certificates, memory, a terminal."""

import base64
import json
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import requests
import websocket
from docker.types import Mount
from testcontainers.core.network import Network

from mlstack.host.compose import docker
from tests.support.clone import Clone
from tests.support.service import Service, wait_until

VENV = "/home/mlstack/.local"


def wheel(folder: Path, name: str = "added") -> Path:
    """The smallest package that pip installs."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", f"{name}.py,,\n{name}-1.0.dist-info/RECORD,,\n")
    return path


def copy_in(service: Service, path: Path, folder: str) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    service.run("bash", "-c", f"mkdir -p {folder} && base64 --decode <<<{content} >{folder}/{path.name}")
    return f"{folder}/{path.name}"


def packages(service: Service, *command: str) -> set[str]:
    printed = service.run("bash", "-c", f"{' '.join(command)} 2>/dev/null")  # uv says on stderr which environment it uses
    return {package["name"].replace("-", "_") for package in json.loads(printed)}


@pytest.mark.parametrize(
    "command", ["python --version", "pip --version", "uv --version", "git --version", "curl --version", "less --version",
                "nano --version", "unzip -v", "ssh -V", "ps --version"],
)  # fmt: skip
def test_a_tool_of_a_terminal_is_there(jupyter: Service, command: str) -> None:
    assert jupyter.run(*command.split())


def test_a_missing_compiler_says_how_to_get_one(jupyter: Service) -> None:
    for name in ("gcc", "cc", "c++"):
        code, output = jupyter.wrapped.exec_run([name, "hello.c"])
        assert (code, "JUPYTER_EXTRA_APT='gcc" in output.decode()) == (127, True)


def test_the_libraries_of_first_notebooks_are_there(jupyter: Service) -> None:
    libraries = "scipy, seaborn, plotly.express, statsmodels.api, duckdb, openpyxl, lightgbm, matplotlib, pandas"
    assert jupyter.run("python", "-c", f"import {libraries}; print('all')").splitlines()[-1] == "all"


def test_text_is_utf8_and_shared_memory_is_large(jupyter: Service) -> None:
    printed = jupyter.run("python", "-c", "import shutil, sys; print(sys.stdout.encoding, shutil.disk_usage('/dev/shm').total)")
    assert printed.split() == ["utf-8", str(1 << 30)]


def test_pip_and_uv_install_list_and_uninstall_as_in_any_environment(jupyter: Service, tmp_path: Path) -> None:
    of_pip, of_uv = (copy_in(jupyter, wheel(tmp_path, name), "/tmp/wheels") for name in ("of_pip", "of_uv"))  # noqa: S108
    jupyter.run("pip", "install", "--no-index", of_pip)
    jupyter.run("uv", "pip", "install", "--no-index", of_uv)
    assert jupyter.run("python", "-c", "import of_pip, of_uv, mlflow; print(of_pip.__file__)").startswith(VENV)
    assert {"of_pip", "of_uv", "mlflow", "numpy"} <= packages(jupyter, "pip", "list", "--format", "json")
    frozen = jupyter.run("pip", "freeze").lower().replace("_", "-")
    assert "of-pip" in frozen and "\nmlflow==" in frozen
    assert packages(jupyter, "uv", "pip", "list", "--format", "json") == {"of_pip", "of_uv"}
    jupyter.run("pip", "uninstall", "--yes", "of_uv")
    jupyter.run("uv", "pip", "uninstall", "of_pip")
    assert not {"of_pip", "of_uv"} & packages(jupyter, "pip", "list", "--format", "json")


def test_pip_uses_the_images_packages_and_cannot_remove_them(jupyter: Service) -> None:
    assert "Requirement already satisfied: numpy" in jupyter.run("pip", "install", "--no-index", "numpy")
    jupyter.wrapped.exec_run(["pip", "uninstall", "--yes", "numpy"])
    assert jupyter.run("python", "-c", "import numpy; print(numpy.__file__)").startswith("/usr/local/")


def test_another_environment_and_a_target_folder_work(jupyter: Service, tmp_path: Path) -> None:
    added = copy_in(jupyter, wheel(tmp_path), "/tmp/wheels")  # noqa: S108
    program = f"""set -e; cd /tmp; rm -rf own target; python3 -m venv own
        own/bin/pip install --quiet --no-index {added}; own/bin/python -c 'import added; print(added.__file__)'
        own/bin/python -c 'import numpy' 2>&1 | tail -1
        pip install --quiet --no-index --target target {added}; ls target"""
    printed = jupyter.run("bash", "-c", program).splitlines()
    assert printed[0].startswith("/tmp/own/") and "No module named 'numpy'" in printed[1] and "added.py" in printed[2:]  # noqa: S108


@pytest.fixture
def another_user(built: Clone, network: Network, mlflow: Service) -> Iterator[Service]:
    """Jupyter as a host user whom the image does not know, with a home volume of its own."""
    home = docker("volume", "create", f"{built.name}-packages").strip()
    service = Service(built, "jupyter", network, 8888, volumes=[(home, "/home/mlstack", "rw")])
    service._kwargs["user"] = "4321:4321"
    with service:
        yield service
    docker("volume", "rm", home)


def test_packages_survive_a_restart_and_an_environment_that_was_deleted_is_made_again(
    another_user: Service, tmp_path: Path
) -> None:
    assert another_user.run("bash", "-c", "id -u; touch mine notebooks/mine; ls mine notebooks/mine").split() == [
        "4321",
        "mine",
        "notebooks/mine",
    ]
    another_user.run("pip", "install", "--no-index", copy_in(another_user, wheel(tmp_path), "/home/mlstack"))
    another_user.restart()
    assert another_user.run("python", "-c", "import added; print(added.__file__)").startswith(VENV)
    another_user.run("rm", "-rf", VENV)
    another_user.restart()
    assert another_user.run("python", "-c", "import sys, mlflow; print(sys.prefix)").splitlines()[-1] == VENV


# A package index behind TLS that a company's own certificate authority signed.
SERVE = """
import http.server, ssl
server = http.server.ThreadingHTTPServer(("127.0.0.1", 9443), http.server.SimpleHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("server.pem", "server.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
INDEX = "https://localhost:9443/simple"
WAYS = {
    "pip": f"pip install --index-url {INDEX} added",
    "uv": f"uv pip install --default-index {INDEX} --reinstall added",
    "curl": f"curl --fail --silent {INDEX}/",
    "git": "git ls-remote https://localhost:9443/repository.git",
    "requests": f"python -c \"import requests; requests.get('{INDEX}/').raise_for_status()\"",
    "urllib": f"python -c \"import urllib.request; urllib.request.urlopen('{INDEX}/')\"",
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificates of a company: its authority, and a server that it signed."""
    folder = tmp_path_factory.mktemp("authority")
    # Python 3.13 rejects certificates without these two extensions.
    (folder / "server.ext").write_text("subjectAltName = DNS:localhost\nauthorityKeyIdentifier = keyid\n")
    usage = "-addext keyUsage=critical,keyCertSign,cRLSign"
    for line in (
        f"req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=authority -days 2 {usage}",
        "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile server.ext -out server.pem -days 2",
    ):
        subprocess.run(["openssl", *line.split()], cwd=folder, check=True, capture_output=True)
    (folder / "ca.pem").chmod(0o644)
    return folder


@pytest.fixture(scope="module")
def behind_a_proxy(built: Clone, network: Network, mlflow: Service, authority: Path) -> Iterator[Service]:
    service = Service(built, "jupyter", network, 8888)
    others = [mount for mount in service._kwargs["mounts"] if mount["Target"] != "/run/secrets/ca"]
    bundle = Mount("/run/secrets/ca", str(authority / "ca.pem"), type="bind", read_only=True)
    service._kwargs["mounts"] = [*others, bundle]
    with service:
        for name in ("server.pem", "server.key"):
            copy_in(service, authority / name, "/tmp/served")  # noqa: S108
        copy_in(service, wheel(authority), "/tmp/served/simple/added")  # noqa: S108
        prepare = "git init --quiet --bare repository.git && git -C repository.git update-server-info"
        service.run("bash", "-c", f"cd /tmp/served && {prepare}")
        service.wrapped.exec_run(["python", "-c", SERVE], workdir="/tmp/served", detach=True)  # noqa: S108
        listening = ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9443"]
        wait_until(lambda: service.wrapped.exec_run(listening).exit_code == 0)
        yield service


@pytest.mark.parametrize("way", WAYS)
def test_the_hosts_certificates_are_trusted_by(behind_a_proxy: Service, way: str) -> None:
    behind_a_proxy.run("bash", "-c", WAYS[way])


def test_the_hosts_certificates_are_read_only(behind_a_proxy: Service) -> None:
    code, output = behind_a_proxy.wrapped.exec_run(["bash", "-c", "echo >>/dev/shm/ca.pem"])
    assert code != 0, output


@pytest.fixture
def token(built: Clone) -> dict[str, str]:
    return {"Authorization": f"token {built.values['JUPYTER_TOKEN']}"}


def test_a_terminal_opens_among_the_notebooks_with_the_users_packages(jupyter: Service, token: dict[str, str]) -> None:
    url = f"http://{jupyter.address(8888)}"
    name = requests.post(f"{url}/api/terminals", headers=token, timeout=30).json()["name"]
    address = f"{url.replace('http', 'ws')}/terminals/websocket/{name}"
    with closing(websocket.create_connection(address, header=token, timeout=60)) as channel:
        channel.send(json.dumps(["stdin", "echo at=$PWD=$(command -v python)=\r"]))
        shown = ""
        while f"at=/home/mlstack/notebooks={VENV}/bin/python=" not in shown:
            kind, *text = json.loads(channel.recv())
            shown += text[0] if kind == "stdout" else ""
    requests.delete(f"{url}/api/terminals/{name}", headers=token, timeout=30).raise_for_status()


def test_server_reports_used_memory_and_its_limit(jupyter: Service, token: dict[str, str]) -> None:
    metrics = requests.get(f"http://{jupyter.address(8888)}/api/metrics/v1", headers=token, timeout=30).json()
    assert metrics["limits"]["memory"]["rss"] == 3 << 30
    assert metrics["rss"] > 0
