"""A stack with work moves to an existing S3 store, over TLS, and every command works there."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from mlstack.host.stack import Stack
from tests.support.certificates import Authority
from tests.support.clone import Clone
from tests.support.external_postgres import external_postgres
from tests.support.external_s3 import ExternalS3, external_s3
from tests.support.moved import command, content, move
from tests.support.work import admin, fill


@pytest.fixture(scope="module")
def store(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExternalS3]:
    with clone.started():
        folder, authority = tmp_path_factory.mktemp("authority"), Authority("a provider's own authority")
        buckets = (clone.values["MINIO_BUCKET"], clone.values["DATASETS_BUCKET"])
        with external_s3(clone.image("minio"), folder, authority, *buckets) as store:
            yield store


@pytest.fixture(scope="module")
def moved(clone: Clone, store: ExternalS3) -> Clone:
    """The stack after backup, the settings, and restore; it holds what it held before."""
    fill(clone, runs=6, points=300, megabytes=1, models=1)
    tables, objects, seen = content(clone)
    command(clone, "backup")
    clone.set(**store.settings)
    command(clone, "restore", BACKUP="latest", YES="1")
    after = content(clone)
    assert (after[0], after[2]) == (tables, seen)
    assert {key: size for key, (_, size) in after[1].items()} == {key: size for key, (_, size) in objects.items()}
    return clone


def test_moved_stack_runs_without_minio(moved: Clone) -> None:
    assert "minio" not in Stack.of(moved.folder).containers
    shown = json.loads(command(moved, "status", JSON="1").stdout)
    service = next(item for item in shown["services"] if item["name"] == "minio")
    assert (service["state"], service["is_healthy"], service["url"]) == ("external", True, moved.values["EXTERNAL_S3"])


def test_presigned_urls_lead_to_the_public_endpoint_by_https(moved: Clone, store: ExternalS3) -> None:
    uri, account = admin(moved)
    run = requests.post(f"{uri}/api/2.0/mlflow/runs/create", json={"experiment_id": "0"}, auth=account, timeout=60).json()["run"]
    root = run["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
    wanted = {"root": root, "names": ["kept.txt"]}
    api = f"{uri}/api/2.0/mlstack/artifacts"
    (link,) = requests.post(f"{api}/links-to-write", json=wanted, auth=account, timeout=60).json()["links"]
    assert link.startswith(f"{store.keys.public}/")
    assert requests.put(link, data=b"kept", timeout=60, verify=store.keys.authorities).ok
    (file,) = requests.post(f"{api}/links-to-read", json={"root": root}, auth=account, timeout=60).json()["files"]
    assert requests.get(file["link"], timeout=60, verify=store.keys.authorities).content == b"kept"


def test_doctor_finds_nothing_wrong_and_transfers_directly(moved: Clone, store: ExternalS3) -> None:
    printed = command(moved, "doctor", JSON="1", SSL_CERT_FILE=store.keys.authorities).stdout
    results = json.loads(printed)["checks"]
    assert [result for result in results if result["state"] == "failed"] == []


def test_backup_gc_rotate_verify_and_upgrade_work_on_a_moved_stack(moved: Clone) -> None:
    command(moved, "gc", OLDER_THAN="0d", YES="1")
    before = content(moved)
    command(moved, "backup")
    assert "is good" in command(moved, "verify").stdout
    command(moved, "rotate", YES="1")
    assert "Upgraded" in command(moved, "upgrade").stdout
    assert content(moved)[1:] == before[1:]


def test_postgres_is_moved_too_and_comes_back_alone(moved: Clone, tmp_path: Path) -> None:
    with external_postgres(moved.image("postgres"), tmp_path, Authority("another provider's authority")) as server:
        move(moved, server, seed=2)
        assert not {"postgres", "minio"} & set(Stack.of(moved.folder).containers)
        before = content(moved)
        assert "is good" in command(moved, "verify").stdout
        moved.set(EXTERNAL_POSTGRES="")
        command(moved, "restore", BACKUP="latest", YES="1")
        assert content(moved) == before


def test_stack_moves_back_to_its_own_minio(moved: Clone) -> None:
    tables, objects, seen = content(moved)
    command(moved, "backup")
    moved.set(EXTERNAL_S3="")
    command(moved, "restore", BACKUP="latest", YES="1")
    after = content(moved)
    assert "minio" in Stack.of(moved.folder).containers
    assert (after[0], after[2]) == (tables, seen)
    assert {key: size for key, (_, size) in after[1].items()} == {key: size for key, (_, size) in objects.items()}
