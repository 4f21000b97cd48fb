"""Work that leaves versions and delete markers, and what a store holds of it."""

import hashlib

from mlstack import s3
from mlstack.host.backup import data_services
from mlstack.host.stack import Stack
from tests.support.clone import Clone

# A data set of several parts and versions, artifacts in folders, an artifact that is overwritten, and a run in the trash.
WORK = """
import os, pathlib, tempfile, mlflow
from mlstack import datasets
def sha(folder):
    return {p.relative_to(folder): p.read_bytes() for p in pathlib.Path(folder).rglob("*") if p.is_file()}
source = pathlib.Path(tempfile.mkdtemp())
(source / "large.bin").write_bytes(os.urandom(20_000_000))
(source / "below").mkdir()
(source / "below/small ü.txt").write_text("small")
for text in ("first", "second"):
    (source / "below/changed.txt").write_text(text)
    put = datasets.put(source, "kept")
assert sha(datasets.get("kept", to=tempfile.mkdtemp())) == sha(source)
assert list(datasets.list().version).count(put.version) == 1
with mlflow.start_run() as run:
    mlflow.log_text("first", "changed.txt")
    mlflow.log_text("second", "changed.txt")
    mlflow.log_artifacts(str(source), "folder")
    mlflow.log_metric("loss", 1.0)
again = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="folder")
assert sha(again) == sha(source)
assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/changed.txt") == "second"
with mlflow.start_run() as trashed:
    mlflow.log_text("trash", "trash.txt")
mlflow.delete_run(trashed.info.run_id)
print(trashed.info.run_id)
"""


def versions(clone: Clone) -> dict[str, list[str | None]]:
    """The SHA-256 of each version of each object, the oldest first, and None for a delete marker."""
    stack = Stack.of(clone.folder)
    client = data_services.storage_client(stack.keys)
    dated: dict[str, list[tuple[float, str | None]]] = {}
    for bucket in stack.keys.buckets:
        for item in s3.versions(client, bucket):
            digest = None
            if not item.is_marker:
                response = client.get_object(bucket, item.name, version_id=item.id)
                digest = hashlib.sha256(response.data).hexdigest()
                response.release_conn()
            dated.setdefault(f"{bucket}/{item.name}", []).append((item.time.timestamp(), digest))
    return {name: [digest for _, digest in sorted(history, key=lambda pair: pair[0])] for name, history in dated.items()}
