"""Attempts that the shipped stack denies. docs/security.md lists each with the promise that it proves."""

import io
import json
import secrets
import socket
import subprocess
import tarfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import psycopg2
import pytest
import requests
from minio import Minio
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException, S3Error
from minio.minioadmin import MinioAdmin

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host.compose import docker
from mlstack.postgres import connected
from mlstack.s3 import client_for
from mlstack.settings import Keys, Login, Roles
from tests.stack.conftest import SECRETS
from tests.support.clone import Clone

SERVICES = ("postgres", "minio", "mlflow", "jupyter")
ONE_SHOT = "bootstrap"
Auth = tuple[str, str]


@pytest.fixture(scope="module")
def roles(stack: Clone) -> Roles:
    here = {"host": "127.0.0.1", "port": int(stack.values["POSTGRES_PORT"])}
    all_roles = settings.database_roles(stack.values)
    return Roles(*(replace(login, **here) for login in (all_roles.tracking, all_roles.accounts, all_roles.reader)))


@pytest.fixture(scope="module")
def notebook(stack: Clone) -> Auth:
    account = settings.notebook_account(stack.values)
    return account.username, account.password


@pytest.fixture(scope="module")
def person(stack: Clone) -> Iterator[Auth]:
    """A colleague's account, created as a user would."""
    done = stack.make("user", "NAME=colleague")
    assert done.returncode == 0, done.stderr
    yield "colleague", done.stdout.split("has the password ")[1].split()[0]


def refused(login: Login, statement: str) -> None:
    with (
        connected(login, 5) as connection,
        connection.cursor() as cursor,
        pytest.raises((psycopg2.errors.InsufficientPrivilege, psycopg2.errors.ReadOnlySqlTransaction)),
    ):
        cursor.execute(statement)


def mlflow(stack: Clone, method: str, path: str, auth: Auth | None = None, body: Any = None, **headers: str) -> requests.Response:
    url = f"http://127.0.0.1:{stack.values['MLFLOW_PORT']}{path}"
    return requests.request(method, url, json=body, auth=auth, headers=headers, timeout=60, allow_redirects=False)


def api(stack: Clone, method: str, path: str, auth: Auth | None, body: Any = None, **headers: str) -> requests.Response:
    return mlflow(stack, method, f"/api/2.0/mlflow/{path}", auth, body, **headers)


# ---- the database --------------------------------------------------------------------------------


@pytest.mark.refusal
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT password_hash FROM accounts.users",
        "UPDATE accounts.users SET is_admin = true",
        "DROP SCHEMA accounts CASCADE",
        "CREATE TABLE accounts.mine (x int)",
        "SET ROLE mlflow_accounts",
    ],
)
def test_mlflows_login_cannot_access_the_accounts(roles: Roles, statement: str) -> None:
    refused(roles.tracking, statement)


@pytest.mark.refusal
@pytest.mark.parametrize("statement", ["SELECT * FROM public.runs", "CREATE TABLE public.mine (x int)", "CREATE SCHEMA mine"])
def test_accounts_login_cannot_access_the_runs(roles: Roles, statement: str) -> None:
    refused(roles.accounts, statement)


def test_reader_reads_the_runs(roles: Roles) -> None:
    with connected(roles.reader, 5) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM runs JOIN experiments USING (experiment_id)")
        cursor.execute("SELECT count(*) FROM latest_metrics")


@pytest.mark.refusal
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM runs",
        "SET default_transaction_read_only = off; DELETE FROM runs",
        "SET default_transaction_read_only = off; INSERT INTO experiments (name) VALUES ('mine')",
        "SET default_transaction_read_only = off; CREATE TABLE mine (x int)",
        "SELECT * FROM accounts.users",
        "SELECT secret FROM webhooks",
        "SELECT * FROM secrets",
        "COPY runs TO PROGRAM 'id'",
    ],
)
def test_reader_changes_nothing_and_reads_no_secret(roles: Roles, statement: str) -> None:
    refused(roles.reader, statement)


@pytest.mark.refusal
@pytest.mark.parametrize("name", ["tracking", "accounts", "reader"])
def test_only_the_owner_connects_to_another_database(roles: Roles, name: str) -> None:
    role: Login = getattr(roles, name)
    for other in ("postgres", "template1"):
        with pytest.raises(MlstackError, match="permission denied for database"):
            connected(replace(role, database=other), 1).__enter__()


@pytest.mark.refusal
@pytest.mark.parametrize("password", ["", "postgres", "mlflow", "password"])
def test_postgres_rejects_missing_and_common_passwords(stack: Clone, roles: Roles, password: str) -> None:
    for user in (stack.values["POSTGRES_USER"], "postgres", roles.tracking.user):
        with pytest.raises(MlstackError, match="rejects the password"):
            connected(replace(roles.tracking, user=user, password=password), 1).__enter__()


# ---- MinIO ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(stack: Clone) -> Keys:
    """MLflow's keys for MinIO, from the host."""
    return replace(settings.tracking_keys(stack.values), endpoint=f"127.0.0.1:{stack.values['MINIO_PORT']}")


@pytest.mark.refusal
def test_minio_denies_an_unauthenticated_client(stored: Keys) -> None:
    anonymous = Minio(stored.endpoint, secure=False)
    for attempt in (
        lambda: list(anonymous.list_objects(stored.bucket)),
        lambda: anonymous.get_object(stored.bucket, "anything"),
        lambda: anonymous.remove_object(stored.bucket, "anything"),
    ):
        with pytest.raises(S3Error, match="AccessDenied"):
            attempt()


@pytest.mark.refusal
@pytest.mark.parametrize("access_key", ["minioadmin", "minio", "admin", "mlflow"])
def test_minio_rejects_common_keys(stored: Keys, access_key: str) -> None:
    for secret_key in ("minioadmin", "minio123", "password"):
        with pytest.raises(S3Error, match="InvalidAccessKeyId"):
            client_for(replace(stored, access_key=access_key, secret_key=secret_key)).list_buckets()


@pytest.mark.refusal
def test_mlflows_keys_cannot_administer_minio(stored: Keys) -> None:
    admin = MinioAdmin(endpoint=stored.endpoint, credentials=StaticProvider(stored.access_key, stored.secret_key), secure=False)
    for attempt in (admin.user_list, admin.policy_list, admin.info, lambda: admin.user_add("mine", "a-long-secret")):
        with pytest.raises(MinioAdminException, match="AccessDenied"):
            attempt()


TRAILER = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"
TRAILER_HEADERS = {
    "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    "x-amz-decoded-content-length": "5",
    "x-amz-trailer": "x-amz-checksum-crc32",
}
# Every variant of the two unfixed CVEs: signed in the query, by a header, and with MinIO's unpacking of archives.
FORGERIES: dict[str, tuple[bool, dict[str, str]]] = {
    "query": (True, {}),
    "header": (False, {}),
    "query, to be unpacked": (True, {"X-Amz-Meta-Snowball-Auto-Extract": "true"}),
    "header, to be unpacked": (False, {"X-Amz-Meta-Snowball-Auto-Extract": "true"}),
}


@pytest.mark.refusal
@pytest.mark.parametrize("payload", ["STREAMING-UNSIGNED-PAYLOAD-TRAILER", "UNSIGNED-PAYLOAD"])
@pytest.mark.parametrize("way", FORGERIES)
def test_access_key_id_without_the_secret_stores_nothing(stored: Keys, way: str, payload: str) -> None:
    in_query, headers = FORGERIES[way]
    now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    credential = f"{stored.access_key}/{now[:8]}/us-east-1/s3/aws4_request"
    query = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": credential,
        "X-Amz-Date": now,
        "X-Amz-Expires": "604800",
        "X-Amz-SignedHeaders": "host",
        "X-Amz-Signature": "0" * 64,
    }
    signature = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature={'0' * 64}"
    name = f"forged-{secrets.token_hex(4)}"
    answer = requests.put(
        f"http://{stored.endpoint}/{stored.bucket}/{name}?{urllib.parse.urlencode(query) if in_query else ''}",
        data=TRAILER,
        headers={
            **TRAILER_HEADERS,
            "x-amz-content-sha256": payload,
            **({} if in_query else {"Authorization": signature, "x-amz-date": now}),
            **headers,
        },
        timeout=60,
    )
    assert answer.status_code in (400, 403), answer.text
    assert "<Code>AccessDenied</Code>" in answer.text or "<Code>SignatureDoesNotMatch</Code>" in answer.text, answer.text
    assert not [item.object_name for item in client_for(stored).list_objects(stored.bucket, prefix="forged-")]


def put_object(stored: Keys, key: str) -> None:
    client_for(stored).put_object(stored.bucket, key, io.BytesIO(b"theirs"), 6)


@pytest.fixture(scope="module")
def run(stack: Clone, notebook: Auth) -> str:
    """The artifact folder of a run of the notebooks' account."""
    created = api(stack, "POST", "runs/create", notebook, {"experiment_id": "0", "start_time": 1}).json()["run"]["info"]
    return str(created["artifact_uri"]).removeprefix("mlflow-artifacts:/")


def presigned(stack: Clone, route: str, auth: Auth | None, root: str, **wanted: Any) -> requests.Response:
    return mlflow(stack, "POST", f"/api/2.0/mlstack/artifacts/links-to-{route}", auth, {"root": root, **wanted})


def link_to_write(stack: Clone, notebook: Auth, run: str) -> str:
    url: str = presigned(stack, "write", notebook, run, names=["mine.bin"]).json()["links"][0]
    assert requests.put(url, data=b"mine", timeout=60).status_code == 200
    return url


def unpacked(name: str) -> bytes:
    """An archive that MinIO would unpack if a header asked for it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 6
        tar.addfile(entry, io.BytesIO(b"forged"))
    return archive.getvalue()


@pytest.mark.refusal
def test_presigned_url_allows_one_method_on_one_object(stack: Clone, stored: Keys, notebook: Auth, run: str) -> None:
    theirs = "0/secret/artifacts/theirs"
    put_object(stored, theirs)
    writing = link_to_write(stack, notebook, run)
    reading = presigned(stack, "read", notebook, run, path="mine.bin").json()["files"][0]["link"]
    assert requests.get(reading, timeout=60).content == b"mine"
    (version,) = (
        item.version_id for item in client_for(stored).list_objects(stored.bucket, f"{run}/mine.bin", include_version=True)
    )
    other = urllib.parse.urlsplit(writing)._replace(path=f"/{stored.bucket}/{theirs}").geturl()
    attempts: dict[str, tuple[str, str, bytes, dict[str, str]]] = {
        "another object": ("PUT", other, b"forged", {}),
        "reading with a URL to write": ("GET", writing, b"", {}),
        "writing with a URL to read": ("PUT", reading, b"forged", {}),
        "deleting": ("DELETE", writing, b"", {}),
        "an older version": ("GET", f"{reading}&versionId={version}", b"", {}),
        "a part": ("PUT", f"{writing}&partNumber=1&uploadId=x", b"forged", {}),
        "longer": ("PUT", writing.replace("X-Amz-Expires=900", "X-Amz-Expires=90000"), b"forged", {}),
        "a copy of theirs": ("PUT", writing, b"", {"x-amz-copy-source": f"/{stored.bucket}/{theirs}"}),
        "an archive": ("PUT", writing, unpacked(theirs), {"X-Amz-Meta-Snowball-Auto-Extract": "true"}),
        "CVE-2026-41145": ("PUT", other, TRAILER, TRAILER_HEADERS),
        "CVE-2026-41145 with a good URL": ("PUT", writing, TRAILER, TRAILER_HEADERS),
    }
    answers = {
        name: requests.request(method, url, data=data, headers=headers, timeout=60)
        for name, (method, url, data, headers) in attempts.items()
    }
    assert {name: answer.status_code for name, answer in answers.items() if answer.status_code not in (400, 403)} == {}
    client = client_for(stored)
    assert client.get_object(stored.bucket, theirs).data == b"theirs"
    assert client.get_object(stored.bucket, f"{run}/mine.bin").data == b"mine"


@pytest.mark.refusal
def test_expired_presigned_url_is_denied(stored: Keys) -> None:
    """As MLflow's server signs it, but dated yesterday."""
    put_object(stored, "0/old/artifacts/x")
    yesterday = datetime.now(UTC) - timedelta(days=1)
    signer = client_for(stored)
    for method in ("GET", "PUT"):
        url = signer.get_presigned_url(
            method, stored.bucket, "0/old/artifacts/x", expires=timedelta(minutes=15), request_date=yesterday
        )
        answer = requests.request(method, url, data=b"forged" if method == "PUT" else None, timeout=60)
        assert answer.status_code == 403 and "expired" in answer.text, answer.text


@pytest.mark.refusal
def test_presigned_urls_follow_the_permissions_of_artifacts(stack: Clone, notebook: Auth, person: Auth, run: str) -> None:
    admin = settings.admin_account(stack.values)
    for wrong in (None, (notebook[0], "wrong-password"), ("unknown", "unknown")):
        for route, wanted in (("write", {"names": ["x"]}), ("read", {"path": "x"})):
            assert presigned(stack, route, wrong, run, **wanted).status_code == 401
    experiment, _, _ = run.partition("/")
    created = api(stack, "POST", "experiments/create", notebook, {"name": f"hidden-{secrets.token_hex(4)}"}).json()
    hidden = created["experiment_id"]
    denial = {"username": person[0], "resource_type": "experiment", "resource_id": hidden, "permission": "DENY"}
    granting = mlflow(stack, "POST", "/api/3.0/mlflow/users/permissions/grant", (admin.username, admin.password), denial)
    assert granting.status_code == 200, granting.text
    created = api(stack, "POST", "runs/create", notebook, {"experiment_id": hidden, "start_time": 1}).json()
    theirs = created["run"]["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
    for route, wanted in (("write", {"names": ["x"]}), ("read", {"path": ""})):
        assert presigned(stack, route, person, theirs, **wanted).status_code == 403
        assert presigned(stack, route, notebook, theirs, **wanted).status_code == 200
    for name in ("../x", "..%2fx", "%2e%2e/x", "/etc/passwd", "a/../../x", "", "a//b", "a#b"):
        assert presigned(stack, "write", notebook, run, names=["good", name]).status_code == 400, name
        assert not name or presigned(stack, "read", notebook, run, path=name).status_code == 400, name
    for root in ("", "/", experiment, f"{experiment}/..", f"{experiment}/x", "../x/y/z"):
        assert presigned(stack, "read", notebook, root, path="").status_code in (400, 403, 404), root


@pytest.mark.refusal
def test_minios_console_requires_a_login(stack: Clone) -> None:
    console = f"http://127.0.0.1:{stack.values['MINIO_CONSOLE_PORT']}/api/v1"
    assert requests.get(f"{console}/buckets", timeout=60).status_code == 403
    wrong = {"accessKey": "minioadmin", "secretKey": "minioadmin"}
    assert requests.post(f"{console}/login", json=wrong, timeout=60).status_code == 401


# ---- MLflow --------------------------------------------------------------------------------------


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/signup"),
        ("GET", "/api/2.0/mlflow/experiments/search?max_results=1"),
        ("GET", "/ajax-api/2.0/mlflow/experiments/search?max_results=1"),
        ("POST", "/graphql"),
        ("GET", "/api/2.0/mlflow-artifacts/artifacts?path=0"),
        ("GET", "/api/2.0/mlflow-artifacts/artifacts/0/x"),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/0/x"),
        ("DELETE", "/api/2.0/mlflow-artifacts/artifacts/0/x"),
        ("GET", "/get-artifact?path=x&run_uuid=x"),
        ("GET", "/api/2.0/mlflow/webhooks"),
    ],
)
def test_mlflow_denies_an_unauthenticated_client(stack: Clone, method: str, path: str) -> None:
    for auth in (None, ("admin", "password1234"), ("notebook", ""), ("healthcheck", "")):
        assert mlflow(stack, method, path, auth, {} if method == "POST" else None).status_code == 401, auth


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "users/create", {"username": "mallory", "password": "a-long-password"}),
        ("PATCH", "users/update-admin", {"username": "notebook", "is_admin": True}),
        ("PATCH", "users/update-password", {"username": "admin", "password": "a-long-password"}),
        ("DELETE", "users/delete", {"username": "admin"}),
        ("GET", "users/get?username=admin", None),
    ],
)
def test_notebook_account_cannot_administer(stack: Clone, notebook: Auth, method: str, path: str, body: Any) -> None:
    assert api(stack, method, path, notebook, body).status_code == 403


@pytest.mark.refusal
def test_other_account_edits_but_cannot_delete(stack: Clone, notebook: Auth, person: Auth) -> None:
    created = api(stack, "POST", "experiments/create", notebook, {"name": f"mine-{secrets.token_hex(4)}"}).json()
    experiment = created["experiment_id"]
    run = api(stack, "POST", "runs/create", notebook, {"experiment_id": experiment, "start_time": 1}).json()
    run_id = run["run"]["info"]["run_id"]
    point = {"run_id": run_id, "key": "theirs", "value": 1, "timestamp": 1}
    assert api(stack, "POST", "runs/log-metric", person, point).status_code == 200
    assert api(stack, "POST", "runs/delete", person, {"run_id": run_id}).status_code == 403
    assert api(stack, "POST", "experiments/delete", person, {"experiment_id": experiment}).status_code == 403
    assert api(stack, "POST", "runs/delete", notebook, {"run_id": run_id}).status_code == 200


@pytest.mark.refusal
def test_artifact_path_cannot_leave_its_run(stack: Clone, notebook: Auth) -> None:
    for path in ("..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "0/..%2f..%2f..%2fetc%2fpasswd"):
        answer = mlflow(stack, "GET", f"/api/2.0/mlflow-artifacts/artifacts/{path}", notebook)
        assert answer.status_code in (400, 403, 404), (path, answer.status_code)
        assert "root:" not in answer.text


@pytest.mark.refusal
@pytest.mark.parametrize("host", ["evil.example", "evil.example:5000", "mlflow.evil.example", "169.254.169.254"])
def test_mlflow_rejects_a_foreign_host_name(stack: Clone, notebook: Auth, host: str) -> None:
    assert api(stack, "GET", "experiments/get?experiment_id=0", notebook, Host=host).status_code == 403


@pytest.mark.refusal
def test_page_of_another_origin_cannot_use_mlflow(stack: Clone, notebook: Auth) -> None:
    evil = {"Origin": "http://evil.example"}
    assert api(stack, "POST", "runs/create", notebook, {"experiment_id": "0", "start_time": 1}, **evil).status_code == 403
    reading = api(stack, "GET", "experiments/get?experiment_id=0", notebook, **evil)
    assert "Access-Control-Allow-Origin" not in reading.headers or reading.status_code == 403
    asked = {**evil, "Access-Control-Request-Method": "POST"}
    assert "Access-Control-Allow-Origin" not in api(stack, "OPTIONS", "runs/create", None, **asked).headers
    own = f"http://localhost:{stack.values['MLFLOW_PORT']}"
    assert api(stack, "POST", "experiments/create", notebook, {"name": secrets.token_hex(4)}, Origin=own).status_code == 200


@pytest.mark.refusal
def test_removed_account_is_rejected_at_once(stack: Clone, person: Auth) -> None:
    for _ in range(20):
        assert api(stack, "GET", "experiments/get?experiment_id=0", person).status_code == 200
    done = stack.make("user-remove", "NAME=colleague")
    assert done.returncode != 0 and "no terminal" in done.stderr
    done = stack.make("user-remove", "NAME=colleague", "YES=1")
    assert done.returncode == 0, done.stderr

    for _ in range(20):  # each worker has cached the password
        assert api(stack, "GET", "experiments/get?experiment_id=0", person).status_code == 401


def test_user_renews_the_password_of_an_existing_account_once_confirmed(stack: Clone) -> None:
    def password(*arguments: str) -> str:
        done = stack.make("user", "NAME=newcomer", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("has the password ")[1].split()[0]

    first = password()
    unanswered = stack.make("user", "NAME=newcomer")
    assert unanswered.returncode != 0 and "make user NAME=newcomer YES=1" in unanswered.stderr
    assert api(stack, "GET", "experiments/get?experiment_id=0", ("newcomer", first)).status_code == 200
    second = password("YES=1")
    assert api(stack, "GET", "experiments/get?experiment_id=0", ("newcomer", second)).status_code == 200
    assert api(stack, "GET", "experiments/get?experiment_id=0", ("newcomer", first)).status_code == 401


def test_user_remove_checks_the_name_before_it_asks(stack: Clone) -> None:
    for name, wrong in {"nobody": "there is no account nobody", "notebook": "notebook is an account of the stack itself"}.items():
        done = stack.make("user-remove", f"NAME={name}")
        assert done.returncode != 0 and wrong in done.stderr and "no terminal" not in done.stderr


# ---- Jupyter -------------------------------------------------------------------------------------


@pytest.mark.refusal
@pytest.mark.parametrize("token", [None, "wrong", ""])
def test_jupyter_rejects_a_client_without_the_token(stack: Clone, token: str | None) -> None:
    server = f"http://127.0.0.1:{stack.values['JUPYTER_PORT']}"
    headers = {} if token is None else {"Authorization": f"token {token}"}
    for path in ("/api/contents", "/api/kernels", "/api/terminals", "/api/sessions", "/files/01_first_run.ipynb"):
        answer = requests.get(f"{server}{path}", headers=headers, timeout=60, allow_redirects=False)
        assert answer.status_code in (302, 403), path
        assert "01_first_run" not in answer.text.replace(urllib.parse.quote_plus(path), "")


@pytest.mark.refusal
def test_notebook_cannot_reach_postgres(stack: Clone) -> None:
    container = stack.compose("ps", "--quiet", "postgres").strip()
    networks = json.loads(docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", container))
    for address in ("postgres", *(network["IPAddress"] for network in networks.values())):
        # Postgres answers a request for TLS with one letter; outside, something else may accept any connection.
        attempt = (
            f"import socket; postgres = socket.create_connection(({address!r}, 5432), timeout=3); postgres.settimeout(3);"
            " postgres.sendall(bytes.fromhex('0000000804d2162f')); print('answer:', postgres.recv(1))"
        )
        done = in_service(stack, "jupyter", "python3", "-c", attempt)
        assert "answer: b'N'" not in done.stdout and "answer: b'S'" not in done.stdout, f"{address} was reached"


# MinIO's answers to a notebook without a presigned URL: status and code of each.
WITHOUT_A_LINK = """
import json, sys, urllib.error, urllib.request
answers = []
for method, path in (("GET", ""), ("GET", sys.argv[1] + "?list-type=2"), ("GET", sys.argv[2]), ("PUT", sys.argv[2]),
                     ("DELETE", sys.argv[2]), ("GET", "minio/admin/v3/info"), ("GET", "minio/v2/metrics/cluster")):
    request = urllib.request.Request("http://minio:9000/" + path, b"x" if method == "PUT" else None, method=method)
    try:
        answers.append((method, path, urllib.request.urlopen(request, timeout=60).status))
    except urllib.error.HTTPError as error:
        answers.append((method, path, error.code))
print(json.dumps(answers))
"""


@pytest.mark.refusal
def test_minio_denies_a_notebook_without_a_presigned_url(stack: Clone, stored: Keys) -> None:
    stored_object = f"{stored.bucket}/0/secret/artifacts/x"
    put_object(stored, "0/secret/artifacts/x")
    printed = stack.in_container("jupyter", "python3", "-c", WITHOUT_A_LINK, stored.bucket, stored_object)
    answers = json.loads(printed)
    assert len(answers) == 7
    assert {status for _, _, status in answers} == {403}, answers
    assert client_for(stored).get_object(stored.bucket, "0/secret/artifacts/x").data == b"theirs"


@pytest.mark.refusal
def test_notebook_has_no_database_or_s3_credentials(stack: Clone) -> None:
    environment = stack.in_container("jupyter", "env")
    own = {"MLFLOW_TRACKING_PASSWORD", "JUPYTER_TOKEN"}
    assert {name for name in SECRETS if stack.values[name] in environment} == own


# ---- the containers ------------------------------------------------------------------------------


def in_service(stack: Clone, service: str, *command: str) -> subprocess.CompletedProcess[str]:
    """A command in a running container; a one-shot is started for it."""
    verb = ["run", "--rm", "--no-deps", "-T"] if service == ONE_SHOT else ["exec", "-T"]
    return subprocess.run(
        ["docker", "compose", *verb, service, *command], cwd=stack.folder, capture_output=True, text=True, check=False
    )


@pytest.mark.refusal
@pytest.mark.parametrize("service", [*SERVICES, ONE_SHOT])
def test_no_process_is_or_can_become_root(stack: Clone, service: str) -> None:
    shown = in_service(stack, service, "bash", "-c", "id -u; grep -E 'Cap(Prm|Eff|Bnd)|NoNewPrivs' /proc/self/status").stdout
    uid, *lines = shown.splitlines()
    assert uid != "0"
    assert {line.split()[1] for line in lines if line.startswith("Cap")} == {"0" * 16}
    assert "NoNewPrivs:\t1" in lines
    for attempt in ("chown 0:0 /proc/self/fd", "mount -t tmpfs none /mnt", "su -c id"):
        assert in_service(stack, service, "bash", "-c", attempt).returncode != 0, attempt


@pytest.mark.refusal
@pytest.mark.parametrize("service", [*SERVICES, ONE_SHOT])
def test_programs_of_an_image_cannot_be_replaced(stack: Clone, service: str) -> None:
    for place in ("/usr/local/bin/mine", "/etc/mine", "/mine", "/opt/mine"):
        done = in_service(stack, service, "bash", "-c", f"echo x > {place}")
        assert done.returncode != 0
        assert "Read-only file system" in done.stderr, done.stderr


@pytest.mark.refusal
def test_container_is_limited_in_memory_and_processes(stack: Clone) -> None:
    greedy = in_service(stack, ONE_SHOT, "python3", "-c", "b'x' * (8 << 30)")
    assert greedy.returncode == 137  # only this process was killed
    forks = "for i in {1..300}; do sleep 20 & done 2>&1"
    assert "Resource temporarily unavailable" in in_service(stack, ONE_SHOT, "bash", "-c", forks).stdout
    assert stack.make("status").returncode == 0


@pytest.mark.refusal
def test_ports_are_closed_on_every_address_but_loopback(stack: Clone) -> None:
    addresses = {
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET and not entry.address.startswith("127.")
    }
    assert addresses  # at least Docker's bridge
    for name in ("POSTGRES_PORT", "MINIO_PORT", "MINIO_CONSOLE_PORT", "MLFLOW_PORT", "JUPYTER_PORT"):
        socket.create_connection(("127.0.0.1", int(stack.values[name])), timeout=5).close()
        for address in addresses:
            with pytest.raises((ConnectionRefusedError, TimeoutError)):
                socket.create_connection((address, int(stack.values[name])), timeout=5)


# ---- the secrets ---------------------------------------------------------------------------------


@pytest.mark.refusal
@pytest.mark.parametrize("service", SERVICES)
def test_images_contain_no_secret(stack: Clone, service: str) -> None:
    patterns = "\n".join(stack.values[name] for name in SECRETS)
    assert not [name for name in SECRETS if stack.values[name] in docker("history", "--no-trunc", stack.image(service))]
    search = "exec grep -rlFf - / --exclude-dir=proc --exclude-dir=sys --exclude-dir=dev -s"
    command = ["docker", "run", "--rm", "-i", "--network", "none", "--user", "0", "--entrypoint", "bash", stack.image(service)]
    search_result = subprocess.run([*command, "-c", search], input=patterns, capture_output=True, text=True, check=False)
    assert (search_result.returncode, search_result.stdout) == (1, ""), search_result.stderr  # grep's exit code for no match


@pytest.mark.refusal
def test_logs_and_process_lists_contain_no_secret(stack: Clone) -> None:
    containers = stack.compose("ps", "--quiet").split()
    shown = {
        "docker logs": stack.compose("logs", "--no-color"),
        "processes": "".join(docker("top", container, "-eo", "pid,args") for container in containers),
        "files": "".join(path.read_text() for path in (stack.folder / "logs").rglob("*.log")),
    }
    assert all(shown.values())
    assert {place: name for place, text in shown.items() for name in SECRETS if stack.values[name] in text} == {}


@pytest.mark.refusal
def test_env_file_is_readable_by_its_owner_only(stack: Clone) -> None:
    env = stack.folder / ".env"
    assert env.stat().st_mode & 0o077 == 0
    env.chmod(0o644)
    done = stack.make("env")
    assert done.returncode == 0 and "by you alone" in done.stderr
    assert env.stat().st_mode & 0o077 == 0


@pytest.mark.refusal
@pytest.mark.parametrize("command", ["reset", "rotate"])
def test_nothing_is_deleted_or_replaced_without_confirmation(stack: Clone, command: str) -> None:
    done = stack.make(*command.split())
    assert done.returncode != 0
    assert "there is no terminal to ask at" in done.stderr and "YES=1" in done.stderr


def test_mlflow_without_accounts_warns_at_every_start_and_serves_the_same_clients(stack: Clone) -> None:
    """Last in this file: it turns MLflow's accounts off, and on again."""
    stack.set(MLFLOW_AUTH="off")
    try:
        done = stack.make("up")
        assert done.returncode == 0, done.stderr
        assert "MLFLOW_AUTH=off" in done.stderr and "open to everybody here" in done.stdout
        assert api(stack, "GET", "experiments/get?experiment_id=0", None).status_code == 200
        stack.in_container("jupyter", "python3", "-c", "import mlflow; mlflow.log_metric('a', 1)")
        done = stack.make("user", "NAME=colleague")
        assert done.returncode != 0 and "MLFLOW_AUTH is off" in done.stderr
    finally:
        stack.set(MLFLOW_AUTH="on")
        done = stack.make("up")
    assert done.returncode == 0, done.stderr
    assert api(stack, "GET", "experiments/get?experiment_id=0", None).status_code == 401
