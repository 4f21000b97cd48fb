"""Jupyter: its token, a kernel, the folders, and what a notebook must not be able to reach."""

import json

import urllib3

from mlstack.errors import MlstackError
from mlstack.host import http
from mlstack.host.doctor.check import check
from mlstack.host.doctor.context import Subject
from mlstack.host.doctor.stack import service

REACH = "notebooks"
WHY = "Notebooks run there."
CREATED, DELETED, FORBIDDEN = 201, 204, 403

_FOLDERS = """
import os, pathlib, uuid
for folder in ("/home/mlstack", "/home/mlstack/notebooks", os.environ["LOG_DIR"]):
    probe = pathlib.Path(folder, f".doctor-{uuid.uuid4().hex}")
    try:
        probe.write_text("42")
        probe.unlink()
    except OSError as error:
        print(f"{folder}: {error.strerror}")
"""
_GPUS = """
import shutil, subprocess
if shutil.which("nvidia-smi"):
    subprocess.run(["nvidia-smi", "--list-gpus"], check=False, stderr=subprocess.DEVNULL)
"""
_WAYS = """
import socket, sys, urllib.error, urllib.request
try:
    socket.create_connection(("postgres", 5432), 2).close()
    print("the database")
except OSError:
    pass
for bucket in sys.argv[1:]:
    try:
        urllib.request.urlopen(f"http://minio:9000/{bucket}?list-type=2", timeout=5).close()
        print(f"the bucket {bucket} without a presigned URL")
    except OSError:
        pass
"""
_SECRETS = """
import os
prefixes = ("AWS_", "MINIO_", "POSTGRES_", "PG", "MLFLOW_S3", "MLFLOW_ADMIN", "ACCOUNTS_", "READER_")
print(*sorted(name for name in os.environ if name.startswith(prefixes)))
"""


@check(REACH, "Jupyter takes its token and no other", service("jupyter"))
def token(subject: Subject) -> None:
    if (status := _call(subject, "GET", "/api/kernels").status) != 200:  # noqa: PLR2004
        raise MlstackError(
            f"Jupyter rejects JUPYTER_TOKEN ({status}).", "Nobody can log in.", "make up starts it with the one of .env"
        )
    if (status := _call(subject, "GET", "/api/kernels", "nobody").status) != FORBIDDEN:
        raise MlstackError(
            f"Jupyter answers a wrong token with {status}.",
            "Every user of the host can run code.",
            "make up starts it as shipped",
        )


@check(REACH, "a kernel starts and ends", token)
def kernel(subject: Subject) -> None:
    started = _call(subject, "POST", "/api/kernels")
    if started.status != CREATED:
        raise MlstackError(f"no kernel starts ({started.status}): {started.data[:200]!r}", WHY, "make logs SERVICE=jupyter")
    ended = _call(subject, "DELETE", f"/api/kernels/{json.loads(started.data)['id']}")
    if ended.status != DELETED:
        raise MlstackError(f"a kernel does not end ({ended.status}).", "It holds memory.", "docker compose restart jupyter")


@check(REACH, "notebooks see a GPU where JUPYTER_GPU is on", service("jupyter"))
def gpu(subject: Subject) -> None:
    if subject.stack.values["JUPYTER_GPU"] == "on" and not subject.python_inside("jupyter", _GPUS).strip():
        raise MlstackError(
            "Jupyter sees no GPU.",
            "Models train on the processor, slower, and nothing else says so.",
            "nvidia-smi on the host shows whether its driver works; or set JUPYTER_GPU=off in .env, then make up",
        )


@check(REACH, "notebooks, home and logs can be written", service("jupyter"))
def folders(subject: Subject) -> None:
    if problems := subject.python_inside("jupyter", _FOLDERS).strip():
        raise MlstackError(
            f"Jupyter cannot write {'; '.join(problems.splitlines())}.",
            "Notebooks cannot be saved, or logs are lost.",
            f"sudo chown -R {subject.values['HOST_UID']} notebooks {subject.values['LOG_DIR']}/jupyter",
        )


@check(REACH, "no way from notebooks to the data", service("jupyter"))
def isolation(subject: Subject) -> None:
    if reached := subject.python_inside("jupyter", _WAYS, *subject.stack.tracking_keys.buckets).splitlines():
        raise MlstackError(
            f"a notebook reaches {' and '.join(reached)}.",
            "Notebooks run anybody's code.",
            "keep jupyter out of the network data in docker-compose.yml (docker network disconnect), and take public policies"
            " from the bucket with the owner's keys; then make up",
        )
    if names := subject.python_inside("jupyter", _SECRETS).split():
        raise MlstackError(
            f"Jupyter's environment holds {', '.join(names)}.",
            "Notebooks run anybody's code.",
            "take it out of docker-compose.yml, then make up",
        )


def _call(subject: Subject, method: str, path: str, token: str | None = None) -> urllib3.BaseHTTPResponse:
    header = {"Authorization": f"token {token or subject.values['JUPYTER_TOKEN']}"}
    return http.call("Jupyter", method, subject.url("JUPYTER_PORT") + path, why=WHY, timeout=20, headers=header)
