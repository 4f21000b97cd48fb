"""Attempts to forge, change, reach or delete data sets, through the server's routes and its presigned URLs."""

import hashlib
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests

from mlstack import settings
from mlstack.manifests import PART, File
from mlstack.s3 import MANIFESTS, UPLOADS, client_for
from mlstack.settings import Account, Keys
from tests.support.clone import Clone
from tests.support.service import Service

ROUTES = ("begin", "check", "upload", "links-to-write", "assemble", "finish", "list", "manifest", "links-to-read", "delete")
CONTENT, OTHER = b"the content", b"other bytes"


@dataclass(frozen=True)
class Server:
    """MLflow's server and MinIO, as an account on the host reaches them."""

    uri: str
    minio: str
    account: Account

    def ask(self, route: str, **body: Any) -> requests.Response:
        url = f"{self.uri}/api/2.0/mlstack/datasets/{route}"
        return requests.post(url, json=body, auth=(self.account.username, self.account.password), timeout=60)

    def answer(self, route: str, **body: Any) -> Any:
        answer = self.ask(route, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def send(self, method: str, url: str, data: bytes = b"", **headers: str) -> requests.Response:
        """Sends a request to a presigned URL. It names the port of .env; the session's MinIO has another."""
        parts = urlsplit(url)
        at = parts._replace(netloc=self.minio).geturl()
        return requests.request(method, at, data=data or None, headers={"Host": parts.netloc, **headers}, timeout=60)

    def begin(self, *files: File) -> dict[str, str]:
        """Begins an upload of a new data set."""
        name = f"data-{secrets.token_hex(4)}"
        begun = self.answer("begin", name=name, files=[asdict(file) for file in files])
        return {"name": name, "version": begun["version"]}

    def url_to_write(self, version: dict[str, str], **piece: Any) -> str:
        (url,) = self.answer("links-to-write", **version, pieces=[{"file": 0, **piece}])
        return str(url)

    def put(self) -> dict[str, str]:
        """A complete version with one file."""
        version = self.begin(FILE)
        assert self.send("PUT", self.url_to_write(version), CONTENT).status_code == 200
        self.answer("finish", **version)
        return version


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


FILE = File("data.bin", len(CONTENT), sha256(CONTENT))
LARGE = File("large.bin", PART + 1, "0" * 64, (sha256(CONTENT), sha256(b"x")))


@pytest.fixture(scope="module")
def server(built: Clone, mlflow: Service, minio: Service) -> Server:
    account = settings.notebook_account(built.values)
    return Server(f"http://{mlflow.address(5000)}", minio.address(9000), account)


@pytest.fixture(scope="module")
def admin(built: Clone, server: Server) -> Server:
    return replace(server, account=settings.admin_account(built.values))


@pytest.fixture(scope="module")
def colleague(server: Server, admin: Server) -> Server:
    """An account without any permission of its own."""
    account = Account(f"colleague-{secrets.token_hex(4)}", secrets.token_urlsafe(16), is_admin=False)
    created = requests.post(
        f"{server.uri}/api/2.0/mlflow/users/create",
        json={"username": account.username, "password": account.password},
        auth=(admin.account.username, admin.account.password),
        timeout=60,
    )
    assert created.status_code == 200, created.text
    return replace(server, account=account)


def keys_in(bucket: Keys) -> set[str]:
    objects = client_for(bucket).list_objects(bucket.datasets, recursive=True)
    return {item.object_name or "" for item in objects}


def is_listed(server: Server, version: dict[str, str]) -> bool:
    return version["version"] in [row["version"] for row in server.answer("list") if row["name"] == version["name"]]


@pytest.mark.refusal
def test_every_route_for_data_sets_requires_an_account(server: Server, subtests: pytest.Subtests) -> None:
    version = server.put()
    body = {**version, "file": 0, "files": [0], "pieces": [{"file": 0}], "upload": "x"}
    for route in ROUTES:
        with subtests.test(route=route):
            url = f"{server.uri}/api/2.0/mlstack/datasets/{route}"
            for auth in (None, ("notebook", "wrong"), ("nobody", "nobody")):
                assert requests.post(url, json=body, auth=auth, timeout=60).status_code == 401
    assert is_listed(server, version)


@pytest.mark.refusal
def test_names_versions_and_paths_of_data_sets_reach_no_other_object(
    server: Server, owner_keys: Keys, subtests: pytest.Subtests
) -> None:
    version = server.put()
    before = keys_in(owner_keys)
    for path in ("../x", "a/../../x", "/x", "a//x", "", ".", "a\x00", "a\\b", "a\n", "b" * 300):
        with subtests.test(path=path):
            assert server.ask("begin", name="trips", files=[asdict(replace(FILE, path=path))]).status_code == 400
    names = ("", "..", ".manifests", ".uploads", ".doctor", "a/b", "../mlflow", "a\x00", f"{MANIFESTS}{version['name']}")
    for name in names:
        with subtests.test(name=name):
            assert server.ask("begin", name=name, files=[asdict(FILE)]).status_code == 400
            for route in ("links-to-read", "links-to-write", "upload", "finish", "assemble", "manifest", "delete"):
                body = {"version": version["version"], "file": 0, "files": [0], "pieces": [{"file": 0}], "upload": "x"}
                fields = FIELDS[route]
                assert server.ask(route, name=name, **{field: body[field] for field in fields}).status_code in (400, 404), route
    for wrong in ("..", f"../{version['version']}", f"{version['version']}/..", "%2e%2e", "\x00", version["version"].upper()):
        with subtests.test(version=wrong):
            for route in ("links-to-read", "manifest", "delete", "finish"):
                files = {"files": [0]} if route == "links-to-read" else {}
                assert server.ask(route, name=version["name"], version=wrong, **files).status_code in (400, 404), route
    for number in (1, -1, 10**9):
        assert server.ask("links-to-read", **version, files=[number]).status_code == 400
    assert keys_in(owner_keys) == before


FIELDS = {
    "links-to-read": ("version", "files"),
    "links-to-write": ("version", "pieces"),
    "upload": ("version", "file"),
    "assemble": ("version", "file", "upload"),
    "finish": ("version",),
    "manifest": ("version",),
    "delete": ("version",),
}


@pytest.mark.refusal
def test_presigned_upload_of_a_data_set_accepts_its_own_bytes_only(
    server: Server, owner_keys: Keys, subtests: pytest.Subtests
) -> None:
    theirs = server.put()
    version = server.begin(FILE)
    url = server.url_to_write(version)
    key = f"{version['name']}/{version['version']}/data.bin"
    other_key = url.replace(quote(key), quote(f"{theirs['name']}/{theirs['version']}/data.bin"))
    manifest = url.replace(quote(key), quote(f"{MANIFESTS}{version['name']}/{version['version']}.json"))
    before = keys_in(owner_keys)
    attempts: dict[str, tuple[str, str, bytes, dict[str, str]]] = {
        "other bytes": ("PUT", url, OTHER, {}),
        "no bytes": ("PUT", url, b"", {"Content-Length": "0"}),
        "an unsigned payload": ("PUT", url, OTHER, {"X-Amz-Content-Sha256": "UNSIGNED-PAYLOAD"}),
        "the checksum of other bytes": ("PUT", url, OTHER, {"X-Amz-Content-Sha256": sha256(OTHER)}),
        "the checksum of other bytes in the URL": ("PUT", url.replace(FILE.sha256, sha256(OTHER)), OTHER, {}),
        "no checksum in the URL": ("PUT", url.replace(f"X-Amz-Content-Sha256={FILE.sha256}&", ""), OTHER, {}),
        "another object": ("PUT", other_key, CONTENT, {}),
        "the manifest": ("PUT", manifest, CONTENT, {}),
        "another bucket": ("PUT", url.replace(f"/{owner_keys.datasets}/", f"/{owner_keys.bucket}/"), CONTENT, {}),
        "reading": ("GET", url, b"", {}),
        "deleting": ("DELETE", url, b"", {}),
        "a part": ("PUT", f"{url}&partNumber=1&uploadId=x", CONTENT, {}),
        "longer": ("PUT", url.replace("X-Amz-Expires=900", "X-Amz-Expires=90000"), CONTENT, {}),
        "a copy": ("PUT", url, b"", {"x-amz-copy-source": f"/{owner_keys.bucket}/secret"}),
        "an older date": ("PUT", url, CONTENT, {"X-Minio-Source-MTime": "2001-01-01T00:00:00Z"}),
        "tags": ("PUT", url, CONTENT, {"X-Amz-Tagging": "team=other"}),
        "an encoding": ("PUT", url, CONTENT, {"Content-Encoding": "gzip"}),
        "an archive": ("PUT", url, OTHER, {"X-Amz-Meta-Snowball-Auto-Extract": "true"}),
    }
    for name, (method, at, data, headers) in attempts.items():
        with subtests.test(name=name):
            answer = server.send(method, at, data, **headers)
            assert answer.status_code in (400, 403), answer.text
    assert keys_in(owner_keys) == before
    assert server.send("PUT", url, CONTENT).status_code == 200
    assert keys_in(owner_keys) == before | {key}


@pytest.mark.refusal
def test_presigned_upload_of_a_part_is_for_that_part_and_its_bytes(server: Server, subtests: pytest.Subtests) -> None:
    version = server.begin(LARGE)
    upload = server.answer("upload", **version, file=0)["upload"]
    other = server.begin(replace(LARGE, path="other.bin"))
    theirs = server.answer("upload", **other, file=0)["upload"]
    url = server.url_to_write(version, part=1, upload=upload)
    for name, at, data in (
        ("other bytes", url, OTHER),
        ("another part", url.replace("partNumber=1", "partNumber=2"), CONTENT),
        ("another upload", url.replace(quote(upload), quote(theirs)), CONTENT),
        ("the whole file", url.replace("partNumber=1&", "").replace(f"&uploadId={quote(upload)}", ""), CONTENT),
    ):
        with subtests.test(name=name):
            assert at != url or data != CONTENT
            assert server.send("PUT", at, data).status_code in (400, 403)
    for piece in ({"part": 0}, {"part": 3, "upload": upload}, {"part": 1}):
        with subtests.test(piece=piece):
            assert server.ask("links-to-write", **version, pieces=[{"file": 0, **piece}]).status_code == 400
    # A part of another size than the manifest's does not count, and an incomplete file is not assembled.
    assert server.send("PUT", url, CONTENT).status_code == 200
    assert server.answer("upload", **version, file=0) == {"upload": upload, "parts": []}
    assert server.ask("assemble", **version, file=0, upload=upload).status_code == 409
    assert server.ask("finish", **version).status_code == 409
    assert not is_listed(server, version)


@pytest.mark.refusal
def test_incomplete_version_is_not_visible(server: Server) -> None:
    second = replace(FILE, path="second.bin")
    version = server.begin(FILE, second)
    assert server.send("PUT", server.url_to_write(version), CONTENT).status_code == 200
    assert server.ask("finish", **version).status_code == 409
    assert not is_listed(server, version)
    assert server.ask("manifest", **version).status_code == 404
    assert server.ask("links-to-read", **version, files=[0]).status_code == 404


@pytest.mark.refusal
def test_complete_version_is_immutable(server: Server, colleague: Server, owner_keys: Keys) -> None:
    version = server.begin(FILE)
    url = server.url_to_write(version)
    assert server.send("PUT", url, CONTENT).status_code == 200
    server.answer("finish", **version)
    before = server.answer("manifest", **version)
    assert server.ask("begin", name=version["name"], files=[asdict(FILE)]).status_code == 200
    for caller in (server, colleague):
        assert caller.ask("links-to-write", **version, pieces=[{"file": 0}]).status_code == 409
        assert caller.ask("upload", **version, file=0).status_code == 409
        assert caller.ask("assemble", **version, file=0, upload="x").status_code == 409
        assert caller.answer("check", **version, file=0) == {"is_damaged": False}
    assert server.send("PUT", url, OTHER).status_code in (400, 403)  # a URL from before the version was complete
    assert server.answer("manifest", **version) == before
    (reading,) = server.answer("links-to-read", **version, files=[0])
    assert server.send("GET", reading).content == CONTENT
    for method, at, data in (("PUT", reading, CONTENT), ("DELETE", reading, b"")):
        assert server.send(method, at, data).status_code == 403
    assert server.send("GET", reading, Range="bytes=4-").content == CONTENT[4:]


@pytest.mark.refusal
def test_data_set_is_deleted_only_by_the_account_that_put_it_and_by_an_admin(
    server: Server, colleague: Server, admin: Server
) -> None:
    version = server.put()
    assert colleague.ask("delete", **version).status_code == 403
    # Putting the same bytes again does not make it the colleague's.
    assert colleague.answer("begin", name=version["name"], files=[asdict(FILE)])["missing"] == []
    assert colleague.answer("finish", **version)["by"] == server.account.username
    assert colleague.ask("delete", **version).status_code == 403
    assert is_listed(server, version)
    server.answer("delete", **version)
    assert not is_listed(server, version)
    assert server.ask("links-to-read", **version, files=[0]).status_code == 404
    theirs = server.put()
    admin.answer("delete", **theirs)
    assert not is_listed(server, theirs)


@pytest.mark.refusal
def test_expired_presigned_url_of_a_data_set_is_denied(user_keys: Keys, bootstrapped: None) -> None:
    """As MLflow's server signs it, but dated yesterday."""
    yesterday = datetime.now(UTC) - timedelta(days=1)
    for method in ("GET", "PUT"):
        url = client_for(user_keys).get_presigned_url(
            method, user_keys.datasets, f"{UPLOADS}x", expires=timedelta(minutes=15), request_date=yesterday
        )
        answer = requests.request(method, url, data=b"forged" if method == "PUT" else None, timeout=60)
        assert answer.status_code == 403 and "expired" in answer.text, answer.text


@pytest.mark.refusal
def test_presigned_read_of_a_data_set_is_saved_by_a_browser_and_never_shown(server: Server) -> None:
    version = server.put()
    (url,) = server.answer("links-to-read", **version, files=[0])
    answer = server.send("GET", url)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"] == "attachment"
    for changed in (url.replace("attachment", "inline"), url.replace("application%2Foctet-stream", "text%2Fhtml")):
        assert changed != url
        assert server.send("GET", changed).status_code == 403
