"""make storage: a stack with work moves to VersityGW and back (docs/storage.md)."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from minio.error import S3Error

from mlstack.host.backup.data_services import storage_client
from mlstack.host.compose import docker
from mlstack.host.stack import Stack
from mlstack.s3 import client_for
from mlstack.settings import MINIO, STORES, VERSITYGW
from tests.support.clone import Clone, users_environment
from tests.support.moved import command, content
from tests.support.versions import WORK, versions
from tests.support.work import fill


@pytest.fixture(scope="module")
def stack(clone: Clone) -> Iterator[Clone]:
    """A stack with work, whose objects have versions and delete markers."""
    with clone.started():
        fill(clone, runs=6, points=300, megabytes=1, models=1)
        work(clone)
        yield clone
        for store in STORES:  # erases the volumes of both
            clone.set(STORAGE=store)
            clone.erase()


def work(clone: Clone) -> None:
    run = clone.in_container("jupyter", "python3", "-W", "ignore", "-c", WORK).split()[-1]
    stack = Stack.of(clone.folder)
    name = next(name for name in versions(clone) if run in name).partition("/")[2]
    storage_client(stack.keys).remove_object(stack.keys.bucket, name)


def volumes(clone: Clone) -> set[str]:
    return {name.removeprefix(f"{clone.name}_") for name in Stack.of(clone.folder).engine.volumes(clone.name)}


def test_killed_move_leaves_the_present_store_in_use(stack: Clone) -> None:
    before = (versions(stack), content(stack))
    move = ["make", "storage", f"TO={VERSITYGW}", "YES=1"]
    with subprocess.Popen(
        move,
        cwd=stack.folder,
        env=users_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        assert next((line for line in process.stdout if "copying the bucket" in line), None)
        os.killpg(process.pid, signal.SIGKILL)
    assert stack.values["STORAGE"] == MINIO
    keys = Stack.of(stack.folder).tracking_keys
    with pytest.raises(S3Error, match="InvalidAccessKeyId"):  # nor do presigned URLs open anything
        list(client_for(keys).list_objects(keys.bucket))
    stack.up()
    assert (versions(stack), content(stack)) == before


def test_every_version_and_marker_moves_to_versitygw_and_back(stack: Clone, subtests: pytest.Subtests) -> None:
    for store in (VERSITYGW, MINIO):
        with subtests.test(store):
            expected, (tables, _, seen) = versions(stack), content(stack)
            assert any(None in history for history in expected.values())
            assert any(len(set(history)) > 1 for history in expected.values())
            printed = command(stack, "storage", TO=store, YES="1").stdout
            assert stack.values["STORAGE"] == store
            assert stack.config["services"]["minio"]["volumes"][0]["source"] == store
            assert versions(stack) == expected
            after = content(stack)
            assert (after[0], after[2]) == (tables, seen)
            assert volumes(stack) >= {*STORES}
            assert f"docker volume rm {stack.name}_{MINIO if store == VERSITYGW else VERSITYGW}" in " ".join(printed.split())
            assert not docker("ps", "--all", "--quiet", "--filter", f"name={stack.name}-storage").strip()
            work(stack)
