"""Data sets in real containers: put, found again by each library, resumed, and led back to from a run."""

import json
from io import BytesIO
from typing import Any

import pytest

from mlstack.manifests import PART
from mlstack.s3 import MANIFESTS, client_for
from mlstack.settings import Keys
from tests.support.clone import ROOT
from tests.support.service import Service

PROGRAM = (ROOT / "tests/support/dataset_program.py").read_text()
DAMAGED = """
import pandas as pd
from mlstack import datasets
print(datasets.put(pd.DataFrame({"n": [1, 2, 3]}), "damaged").digest)
"""
LARGE = f"""
from pathlib import Path
from mlstack import datasets
Path("/tmp/large.bin").write_bytes(bytes({PART}) + b"x")
print(datasets.put("/tmp/large.bin", "repaired").digest)
"""
READ = """
import sys
from mlstack import datasets
from mlstack.errors import MlstackError
try:
    datasets.open("damaged")
except MlstackError as error:
    print("REJECTED", error)
"""


@pytest.fixture(scope="module")
def seen(jupyter: Service) -> dict[str, Any]:
    """What the program in the Jupyter container saw."""
    seen: dict[str, Any] = json.loads(jupyter.run("python3", "-W", "ignore", "-c", PROGRAM).splitlines()[-1])
    return seen


def test_each_kind_of_frame_is_read_back_by_each_library(seen: dict[str, Any]) -> None:
    assert seen["frames"] == {"pandas": True, "pyarrow": True, "duckdb": True}
    assert seen["csv"] is True


def test_folder_comes_back_with_every_name_and_byte(seen: dict[str, Any]) -> None:
    assert seen["folder"] is True


def test_upload_of_a_killed_kernel_is_invisible_and_resumes_with_the_missing_parts(seen: dict[str, Any]) -> None:
    resumed = seen["resumed"]
    assert resumed == {"killed": True, "visible": False, "sent": [PART, 1000], "received": 1000, "same": True}


def test_run_leads_back_to_the_bytes_that_it_used(seen: dict[str, Any]) -> None:
    assert seen["run"] is True


def test_newest_version_is_the_default_and_a_deleted_one_is_gone(seen: dict[str, Any]) -> None:
    assert "There is no data set counted" in seen["versions"].pop("deleted")
    assert seen["versions"] == {"newest": 2, "again": 1, "left": 2, "rows": 1}


def test_changed_bytes_and_changed_manifests_are_rejected(jupyter: Service, owner_keys: Keys, seen: dict[str, Any]) -> None:
    """Changed in MinIO itself, with its owner's keys."""
    digest = jupyter.run("python3", "-W", "ignore", "-c", DAMAGED).split()[-1]
    client, bucket = client_for(owner_keys), owner_keys.datasets
    key, manifest = f"damaged/{digest}/data.parquet", f"{MANIFESTS}damaged/{digest}.json"
    content = client.get_object(bucket, key).data
    put(owner_keys, key, content[:-1] + b"x")
    assert "arrived with other bytes than were put" in jupyter.run("python3", "-W", "ignore", "-c", READ)
    assert jupyter.run("python3", "-W", "ignore", "-c", DAMAGED).split()[-1] == digest  # put sends the file again
    assert client.get_object(bucket, key).data == content
    known = {
        name: value
        for name, value in (client.stat_object(bucket, manifest).metadata or {}).items()
        if name.startswith("x-amz-meta-")
    }
    text = client.get_object(bucket, manifest).data.replace(b'"size": ', b'"size": 1')
    put(owner_keys, manifest, text, known)
    assert "does not have its digest" in jupyter.run("python3", "-W", "ignore", "-c", READ)


@pytest.mark.parametrize("change", ["damaged", "deleted"])
def test_put_repairs_a_large_file_of_a_complete_version(jupyter: Service, owner_keys: Keys, change: str) -> None:
    digest = jupyter.run("python3", "-W", "ignore", "-c", LARGE).split()[-1]
    client, key = client_for(owner_keys), f"repaired/{digest}/large.bin"
    if change == "damaged":
        put(owner_keys, key, bytes(PART) + b"y")  # of equal size
    else:
        client.remove_object(owner_keys.datasets, key)
    assert jupyter.run("python3", "-W", "ignore", "-c", LARGE).split()[-1] == digest
    assert client.get_object(owner_keys.datasets, key).data == bytes(PART) + b"x"


def put(keys: Keys, key: str, content: bytes, metadata: dict[str, Any] | None = None) -> None:
    client_for(keys).put_object(keys.datasets, key, BytesIO(content), len(content), metadata=metadata)
