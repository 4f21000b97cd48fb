"""The whole stack with VersityGW in the place of MinIO (docs/storage.md)."""

import json
from collections.abc import Iterator

import pytest
import requests
from minio.error import S3Error

from mlstack import s3
from mlstack.host.stack import Stack
from mlstack.settings import MINIO, VERSITYGW
from tests.support.clone import Clone
from tests.support.moved import command, content
from tests.support.versions import WORK, versions
from tests.support.work import admin, fill


@pytest.fixture(scope="module")
def stack(clone: Clone) -> Iterator[Clone]:
    clone.erase()
    clone.set(STORAGE=VERSITYGW)
    with clone.started():
        yield clone
    clone.set(STORAGE=MINIO)


@pytest.fixture(scope="module")
def trashed(stack: Clone) -> str:
    """The id of a run in the trash, of a stack with work of notebooks and of programs on the host."""
    fill(stack, runs=6, points=300, megabytes=1, models=1)
    return stack.in_container("jupyter", "python3", "-W", "ignore", "-c", WORK).split()[-1]


def test_stack_with_versitygw_keeps_work_and_passes_the_doctor(stack: Clone, trashed: str) -> None:
    assert trashed
    shown = json.loads(command(stack, "status", JSON="1").stdout)
    service = next(item for item in shown["services"] if item["name"] == "minio")
    assert (service["is_healthy"], service["version"]) == (True, "1.8.0")
    assert f"{stack.name}_versitygw" in {volume["name"] for volume in shown["volumes"]}
    results = json.loads(command(stack, "doctor", JSON="1").stdout)["checks"]
    assert [result for result in results if result["state"] == "failed"] == []


def test_backup_of_versitygw_is_verified_and_restored(stack: Clone, trashed: str) -> None:
    expected = content(stack)
    command(stack, "backup")
    assert "is good" in command(stack, "verify").stdout
    stack.in_container("jupyter", "python3", "-W", "ignore", "-c", WORK)
    assert content(stack)[1] != expected[1]
    command(stack, "restore", BACKUP="latest", YES="1")
    assert content(stack) == expected


def test_gc_removes_versions_and_trash_from_versitygw(stack: Clone, trashed: str) -> None:
    before, runs = versions(stack), in_trash(stack)
    assert trashed in runs
    assert [name for name in before if belongs_to(name, runs)]
    assert [name for name, history in before.items() if name.endswith("/changed.txt") and len(history) > 1]
    expected = content(stack)[1]
    command(stack, "gc", OLDER_THAN="0d", YES="1")
    after = versions(stack)
    assert [name for name in after if belongs_to(name, runs)] == []
    assert [name for name, history in after.items() if len(history) > 1] == []
    assert content(stack)[1] == {name: item for name, item in expected.items() if not belongs_to(name, runs)}


def in_trash(clone: Clone) -> list[str]:
    uri, account = admin(clone)
    wanted = {"experiment_ids": ["0", "1"], "run_view_type": "DELETED_ONLY"}
    answer = requests.post(f"{uri}/api/2.0/mlflow/runs/search", json=wanted, auth=account, timeout=60)
    return [run["info"]["run_id"] for run in answer.json()["runs"]]


def belongs_to(name: str, runs: list[str]) -> bool:
    return any(run in name for run in runs)


def test_rotated_keys_of_versitygw_open_the_same_objects(stack: Clone, trashed: str) -> None:
    before, old = content(stack), Stack.of(stack.folder)
    command(stack, "rotate", YES="1")
    assert content(stack)[1:] == before[1:]
    for keys in (old.keys, old.tracking_keys):
        with pytest.raises(S3Error, match=r"InvalidAccessKeyId|SignatureDoesNotMatch"):
            list(s3.client_for(keys).list_objects(keys.bucket))
