"""Attempts to exceed an account's permissions through artifacts: forged headers, pages, locations, sources and names."""

import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests
from minio import Minio

from mlstack.s3 import client_for
from mlstack.settings import Keys
from tests.support.clone import Clone
from tests.support.service import Service

Auth = tuple[str, str]
Call = Callable[..., requests.Response]
PAGE = b"<script>fetch('/api/2.0/mlflow/users/get?username=admin')</script>"


@dataclass(frozen=True)
class Artifacts:
    """MLflow's API and MinIO, as clients on the host reach them."""

    uri: str
    minio: str
    notebook: Auth
    admin: Auth

    def call(self, method: str, path: str, body: Any = None, auth: Auth | None = None, **options: Any) -> requests.Response:
        return requests.request(method, f"{self.uri}{path}", json=body, auth=auth or self.notebook, timeout=60, **options)

    def experiment(self, auth: Auth | None = None, **fields: str) -> str:
        created = self.call("POST", "/api/2.0/mlflow/experiments/create", {"name": secrets.token_hex(8), **fields}, auth)
        assert created.status_code == 200, created.text
        return str(created.json()["experiment_id"])

    def run(self, experiment: str = "0", auth: Auth | None = None) -> dict[str, str]:
        created = self.call("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": experiment, "start_time": 1}, auth)
        info: dict[str, str] = created.json()["run"]["info"]
        return info

    def folder(self, experiment: str = "0", auth: Auth | None = None) -> str:
        return self.run(experiment, auth)["artifact_uri"].removeprefix("mlflow-artifacts:/")

    def upload(self, path: str, content: bytes, auth: Auth | None = None) -> requests.Response:
        url = f"{self.uri}/api/2.0/mlflow-artifacts/artifacts/{quote(path)}"
        return requests.put(url, data=content, auth=auth or self.notebook, timeout=60)

    def presigned(self, action: str, root: str, auth: Auth | None = None, **wanted: Any) -> requests.Response:
        return self.call("POST", f"/api/2.0/mlstack/artifacts/links-to-{action}", {"root": root, **wanted}, auth)

    def url_to_write(self, root: str, name: str) -> str:
        url: str = self.presigned("write", root, names=[name]).json()["links"][0]
        return url

    def url_to_read(self, root: str, path: str) -> str:
        url: str = self.presigned("read", root, path=path).json()["files"][0]["link"]
        return url

    def send(self, method: str, url: str, data: bytes = b"", **headers: str) -> requests.Response:
        """Sends a request to a presigned URL. It names the port of .env; the session's MinIO has another."""
        parts = urlsplit(url)
        at = parts._replace(netloc=self.minio).geturl()
        return requests.request(method, at, data=data or None, headers={"Host": parts.netloc, **headers}, timeout=60)


@pytest.fixture(scope="module")
def artifacts(built: Clone, mlflow: Service, minio: Service) -> Artifacts:
    values = built.values
    return Artifacts(
        f"http://{mlflow.address(5000)}",
        minio.address(9000),
        (values["MLFLOW_TRACKING_USERNAME"], values["MLFLOW_TRACKING_PASSWORD"]),
        (values["MLFLOW_ADMIN_USERNAME"], values["MLFLOW_ADMIN_PASSWORD"]),
    )


@pytest.fixture(scope="module")
def bucket(user_keys: Keys, bootstrapped: None) -> tuple[Minio, str]:
    return client_for(user_keys), user_keys.bucket


@pytest.fixture(scope="module")
def colleague(artifacts: Artifacts) -> Auth:
    """An account without any permission of its own."""
    account = f"colleague-{secrets.token_hex(4)}", secrets.token_urlsafe(16)
    body = dict(zip(("username", "password"), account, strict=True))
    assert artifacts.call("POST", "/api/2.0/mlflow/users/create", body, artifacts.admin).status_code == 200
    return account


@pytest.fixture(scope="module")
def denied(artifacts: Artifacts, colleague: Auth) -> str:
    """An experiment whose runs the colleague may not see."""
    experiment = artifacts.experiment()
    deny(artifacts, colleague, experiment)
    return experiment


def deny(artifacts: Artifacts, account: Auth, experiment: str) -> None:
    body = {"username": account[0], "resource_type": "experiment", "resource_id": experiment, "permission": "DENY"}
    assert artifacts.call("POST", "/api/3.0/mlflow/users/permissions/grant", body, artifacts.admin).status_code == 200


# ---- presigned URLs ------------------------------------------------------------------------------


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Minio-Source-MTime", "2040-01-01T00:00:00Z"),
        ("X-Minio-Source-MTime", "2001-01-01T00:00:00Z"),
        ("X-Minio-Source-Etag", "0" * 32),
        ("X-Minio-Source-Version-Id", "7d444840-9dc0-11d1-b245-5ffdce74fad2"),
        ("X-Minio-Source-Replication-Request", "true"),
        ("X-Amz-Tagging", "team=other"),
        ("X-Amz-Storage-Class", "REDUCED_REDUNDANCY"),
        ("Content-Encoding", "gzip"),
    ],
)
def test_presigned_upload_denies_headers_that_minio_would_obey(
    artifacts: Artifacts, bucket: tuple[Minio, str], header: str, value: str
) -> None:
    client, name = bucket
    root = artifacts.folder()
    url = artifacts.url_to_write(root, "model.bin")
    answer = artifacts.send("PUT", url, b"forged", **{header: value})
    assert answer.status_code == 403, answer.text
    assert not list(client.list_objects(name, f"{root}/", recursive=True))
    assert artifacts.send("PUT", url, b"good").status_code == 200
    stored = client.stat_object(name, f"{root}/model.bin")
    assert stored.size == 4 and not {"x-amz-tagging-count", "content-encoding"} & {key.lower() for key in stored.metadata or {}}


@pytest.mark.refusal
def test_presigned_read_is_saved_by_a_browser_and_never_shown(artifacts: Artifacts) -> None:
    root = artifacts.folder()
    url = artifacts.url_to_write(root, "page.html")
    headers = {"Content-Type": "text/html", "Content-Disposition": "inline"}
    assert artifacts.send("PUT", url, PAGE, **headers).status_code == 200
    url = artifacts.url_to_read(root, "page.html")
    answer = artifacts.send("GET", url)
    assert answer.content == PAGE
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"] == "attachment"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    for changed in (url.replace("attachment", "inline"), url.replace("application%2Foctet-stream", "text%2Fhtml")):
        assert changed != url
        assert artifacts.send("GET", changed).status_code == 403


@pytest.mark.refusal
def test_mlflow_serves_pages_as_attachments_on_each_of_its_routes(artifacts: Artifacts) -> None:
    """MLflow's page previews them in a frame without its origin; opening a link to one only downloads it."""
    run = artifacts.run()
    root = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
    for name in ("page.html", "image.svg", "page.xhtml", "page"):
        assert artifacts.upload(f"{root}/{name}", PAGE).status_code == 200
        for path in (
            f"/api/2.0/mlflow-artifacts/artifacts/{root}/{name}",
            f"/ajax-api/2.0/mlflow-artifacts/artifacts/{root}/{name}",
            f"/get-artifact?run_uuid={run['run_id']}&path={name}",
        ):
            answer = artifacts.call("GET", path)
            assert (answer.status_code, answer.content) == (200, PAGE)
            assert answer.headers["Content-Disposition"].startswith("attachment"), path
            assert answer.headers["X-Content-Type-Options"] == "nosniff", path


@pytest.mark.refusal
def test_presigned_urls_are_only_for_runs_models_and_traces_that_exist(artifacts: Artifacts) -> None:
    experiment = artifacts.experiment()
    run, trace = artifacts.run(experiment)["run_id"], f"tr-{uuid.uuid4().hex}"
    start_trace(artifacts, experiment, trace)
    created = artifacts.call("POST", "/api/2.0/mlflow/logged-models", {"experiment_id": experiment, "name": "m"})
    model = created.json()["model"]["info"]["model_id"]
    for root in (f"{run}/artifacts", f"models/{model}/artifacts", f"traces/{trace}/artifacts", f"{run}/artifacts/deep/er"):
        assert artifacts.presigned("write", f"{experiment}/{root}", names=["x"]).status_code == 200, root
    unknown = uuid.uuid4().hex
    roots = [
        f"{experiment}/{root}"
        for root in (f"{unknown}/artifacts", f"models/m-{unknown}/artifacts", f"traces/tr-{unknown}/artifacts")
    ]
    roots += [f"{experiment}/{run}", f"{experiment}/{run}/other", f"0/{run}/artifacts", f"0{experiment}/{run}/artifacts", "a/b/c"]
    roots += [
        f"workspaces/x/{experiment}/{run}/artifacts",
        f"{experiment}/{run}/artifacts2",
        f"{experiment}/{run.upper()}/artifacts",
    ]
    for root in roots:
        for action, wanted in (("write", {"names": ["x"]}), ("read", {"path": ""})):
            assert artifacts.presigned(action, root, **wanted).status_code == 404, root
    for path in ("runs/delete", "runs/restore"):
        assert artifacts.call("POST", f"/api/2.0/mlflow/{path}", {"run_id": run}, artifacts.admin).status_code == 200
        status = artifacts.presigned("write", f"{experiment}/{run}/artifacts", names=["x"]).status_code
        assert status == (404 if path == "runs/delete" else 200)
    assert artifacts.call("POST", "/api/2.0/mlflow/experiments/delete", {"experiment_id": experiment}, artifacts.admin).ok
    assert artifacts.presigned("write", f"{experiment}/models/{model}/artifacts", names=["x"]).status_code == 404


@pytest.mark.parametrize("name", ["a?b", "a b", "C:\\x", "C:/x", "./dot", "in/./dot", "a%20b", "a+b", "ä☂", "~;&=", ".hidden"])
def test_presigned_upload_stores_under_the_name_that_mlflows_proxy_uses(
    artifacts: Artifacts, bucket: tuple[Minio, str], name: str
) -> None:
    client, of = bucket
    ours, theirs = artifacts.folder(), artifacts.folder()
    assert artifacts.send("PUT", artifacts.url_to_write(ours, name), b"x").status_code == 200
    assert artifacts.upload(f"{theirs}/{name}", b"x").status_code == 200
    stored = [
        [item.object_name.removeprefix(root) for item in client.list_objects(of, f"{root}/", recursive=True) if item.object_name]
        for root in (ours, theirs)
    ]
    assert stored[0] == stored[1]
    assert artifacts.send("GET", artifacts.url_to_read(ours, name)).content == b"x"


@pytest.mark.parametrize("name", ["a#b", "new\nline", "tab\t", "..", "a/../b", "/a", "", ".", "d/"])
def test_presigned_upload_rejects_names_that_would_not_last(artifacts: Artifacts, name: str) -> None:
    assert artifacts.presigned("write", artifacts.folder(), names=["good", name]).status_code == 400


# ---- locations and sources -----------------------------------------------------------------------


def start_trace(artifacts: Artifacts, experiment: str, trace: str, auth: Auth | None = None, **tags: str) -> None:
    info = {
        "trace_id": trace,
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}},
        "request_time": "2026-01-01T00:00:00Z",
        "state": "OK",
        "tags": tags,
    }
    created = artifacts.call("POST", "/api/3.0/mlflow/traces", {"trace": {"trace_info": info}}, auth)
    assert created.status_code == 200, created.text


@pytest.mark.refusal
def test_own_trace_gives_no_access_to_artifacts_of_others(artifacts: Artifacts, colleague: Auth, denied: str) -> None:
    theirs, attachment = artifacts.folder(denied), str(uuid.uuid4())
    assert artifacts.upload(f"{theirs}/traces.json", b'{"spans": ["secret"]}').status_code == 200
    assert artifacts.upload(f"{theirs}/attachments/{attachment}", b"secret").status_code == 200
    trace = f"tr-{uuid.uuid4().hex}"
    mine = artifacts.experiment(colleague)
    start_trace(artifacts, mine, trace, colleague)
    for location in (f"s3://mlflow/{theirs}", f"mlflow-artifacts:/{theirs}"):
        tag = {"key": "mlflow.artifactLocation", "value": location}
        assert artifacts.call("PATCH", f"/api/2.0/mlflow/traces/{trace}/tags", tag, colleague).status_code == 200
        for wanted in ({"request_id": trace}, {"request_id": trace, "path": attachment}):
            answer = artifacts.call("GET", "/ajax-api/2.0/mlflow/get-trace-artifact", None, colleague, params=wanted)
            assert answer.status_code >= 400 and b"secret" not in answer.content
    assert artifacts.upload(f"{mine}/traces/{trace}/artifacts/attachments/{attachment}", b"mine", colleague).status_code == 200
    wanted = {"request_id": trace, "path": attachment}
    assert artifacts.call("GET", "/ajax-api/2.0/mlflow/get-trace-artifact", None, colleague, params=wanted).content == b"mine"


@pytest.mark.refusal
@pytest.mark.parametrize(
    "location",
    [
        *(
            "file:///srv/x",
            "/srv/x",
            "x",
            "s3://mlflow/0",
            "S3://mlflow",
            "s3://other/x",
            "gs://other/x",
            "dbfs:/x",
            "https://x.example/",
        ),
        *(
            "mlflow-artifacts://host/x",
            "mlflow-artifacts:x",
            "mlflow-artifacts:/0",
            "mlflow-artifacts:/12/x",
            "mlflow-artifacts:/١",
        ),
        *(
            "mlflow-artifacts:/a/../0",
            "mlflow-artifacts:/%30",
            "mlflow-artifacts:/x?y=z",
            "mlflow-artifacts:/.doctor",
            " mlflow-artifacts:/x",
        ),
        *(
            "MLFLOW-ARTIFACTS:/x",
            "mlflow-artifacts://0",
            "mlflow-artifacts:/workspaces/x/0",
            "mlflow-artifacts:/a//b",
            "mlflow-artifacts:/a\n",
        ),
    ],
)
def test_experiment_keeps_artifacts_only_in_the_bucket(artifacts: Artifacts, location: str) -> None:
    body = {"name": secrets.token_hex(8), "artifact_location": location}
    answer = artifacts.call("POST", "/api/2.0/mlflow/experiments/create", body)
    assert answer.status_code == 400, location
    assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"


@pytest.mark.refusal
def test_experiment_with_a_location_of_its_own_gives_presigned_urls_by_its_own_permissions(
    artifacts: Artifacts, colleague: Auth
) -> None:
    for location in ("mlflow-artifacts:/team folder/project.x", f"mlflow-artifacts:/team{secrets.token_hex(4)}/"):
        experiment = artifacts.experiment(artifact_location=location)
        root = artifacts.folder(experiment)
        assert artifacts.send("PUT", artifacts.url_to_write(root, "x"), b"x").status_code == 200
        assert artifacts.presigned("read", root, colleague, path="x").status_code == 200
        deny(artifacts, colleague, experiment)
        assert artifacts.presigned("read", root, colleague, path="x").status_code == 403
        assert artifacts.presigned("write", root, colleague, names=["x"]).status_code == 403


@pytest.mark.refusal
def test_older_experiment_with_a_location_outside_the_bucket_stores_nothing(
    artifacts: Artifacts, postgres: Service, built: Clone
) -> None:
    experiment = artifacts.experiment()
    statement = f"UPDATE experiments SET artifact_location = 'file:///srv/x' WHERE experiment_id = {experiment}"  # noqa: S608
    postgres.run("psql", "-U", built.values["POSTGRES_USER"], "-d", built.values["POSTGRES_DB"], "-c", statement)
    run = artifacts.run(experiment)
    assert run["artifact_uri"].startswith("file:///srv/x")
    query = {"run_uuid": run["run_id"], "path": "x"}
    url = f"{artifacts.uri}/ajax-api/2.0/mlflow/upload-artifact"
    answer = requests.post(url, params=query, data=b"x", auth=artifacts.notebook, timeout=60)
    assert answer.status_code == 400 and "outside of this server's bucket" in answer.text
    assert artifacts.presigned("write", run["artifact_uri"].removeprefix("file:///"), names=["x"]).status_code == 404


@pytest.mark.refusal
def test_model_version_rejects_a_source_that_no_permission_covers(artifacts: Artifacts, colleague: Auth, denied: str) -> None:
    theirs = artifacts.run(denied)
    root = theirs["artifact_uri"].removeprefix("mlflow-artifacts:/")
    assert artifacts.upload(f"{root}/secret", b"secret").status_code == 200
    name, mine = secrets.token_hex(8), artifacts.run("0", colleague)["run_id"]
    assert artifacts.call("POST", "/api/2.0/mlflow/registered-models/create", {"name": name}, colleague).status_code == 200
    for source in (
        *(f"s3://mlflow/{root}", f"S3://mlflow/{root}", f"mlflow-artifacts:/{root}", f"Mlflow-Artifacts:/{root}"),
        *(
            f"runs:/{theirs['run_id']}/x",
            f"file:///{root}",
            "/etc",
            "gs://x/y",
            "http://minio:9000/mlflow",
            "dbfs:/x",
            "dummy-source",
        ),
    ):
        for run in ({}, {"run_id": mine}, {"run_id": theirs["run_id"]}):
            body = {"name": name, "source": source, **run}
            answer = artifacts.call("POST", "/api/2.0/mlflow/model-versions/create", body, colleague)
            assert answer.status_code in (400, 403), (source, run)
    versions = artifacts.call("GET", f"/api/2.0/mlflow/registered-models/get?name={name}", None, colleague).json()
    assert "latest_versions" not in versions["registered_model"]


def test_model_version_accepts_runs_models_and_other_versions(artifacts: Artifacts) -> None:
    name, run = secrets.token_hex(8), artifacts.run()
    created = artifacts.call("POST", "/api/2.0/mlflow/logged-models", {"experiment_id": "0", "name": "m"}).json()
    model = created["model"]["info"]
    assert artifacts.call("POST", "/api/2.0/mlflow/registered-models/create", {"name": name}).status_code == 200
    for number, body in enumerate(
        (
            {"source": f"{run['artifact_uri']}/model", "run_id": run["run_id"]},
            {"source": f"runs:/{run['run_id']}/model", "run_id": run["run_id"]},
            {"source": f"models:/{model['model_id']}", "model_id": model["model_id"]},
            {"source": model["artifact_uri"], "model_id": model["model_id"]},
            {"source": f"models:/{name}/1"},
        ),
        1,
    ):
        answer = artifacts.call("POST", "/api/2.0/mlflow/model-versions/create", {"name": name, **body})
        assert answer.status_code == 200, (body, answer.text)
        assert answer.json()["model_version"]["version"] == str(number)
    tag = {"key": "mlflow.prompt.is_prompt", "value": "true"}
    prompt = {"name": f"{name}-prompt", "tags": [tag]}
    assert artifacts.call("POST", "/api/2.0/mlflow/registered-models/create", prompt).status_code == 200
    for source in ("dummy-source", "prompt-template"):
        body = {**prompt, "source": source, "tags": [tag, {"key": "mlflow.prompt.text", "value": "x"}]}
        assert artifacts.call("POST", "/api/2.0/mlflow/model-versions/create", body).status_code == 200
