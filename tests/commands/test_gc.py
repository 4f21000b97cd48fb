"""`make gc` on a stack with trash, old versions, orphans and old images, and with what must be kept."""

import os
import pty
import signal
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from io import BytesIO

import pytest
import requests

from mlstack import s3
from mlstack.errors import MlstackError
from mlstack.host.commands import gc
from mlstack.host.compose import docker
from mlstack.host.engine import PROJECT_LABEL
from mlstack.host.stack import Stack
from mlstack.jobs.gc import datasets, versions
from mlstack.s3 import Folder, client_for
from mlstack.settings import Keys, Login
from tests.stack.conftest import rows
from tests.support.clone import Clone
from tests.support.confirmation import decline

# A user's work: a run in the trash, one in the trash that a registered model uses, one that is active.
LIFE = """
import mlflow
from mlflow import MlflowClient
client = MlflowClient()
def made(experiment, text):
    run = client.create_run(experiment).info.run_id
    client.log_text(run, text, "model/weights.txt")
    client.log_metric(run, "loss", 1)
    return run
trashed, used, going_on = (made("0", text) for text in ("trashed" * 1000, "used", "first"))
client.log_text(going_on, "second", "model/weights.txt")
client.create_registered_model("classifier")
client.create_model_version("classifier", client.get_run(used).info.artifact_uri + "/model", used)
client.delete_run(trashed)
client.delete_run(used)
experiment = client.create_experiment("given up")
within = made(experiment, "within")
client.delete_experiment(experiment)
needed = client.create_experiment("given up, and needed")
within_needed = made(needed, "needed")
client.create_model_version("classifier", client.get_run(within_needed).info.artifact_uri + "/model", within_needed)
client.delete_experiment(needed)
hollow = client.create_logged_model("0", "hollow")
client.finalize_logged_model(hollow.model_id, "READY")
print(trashed, used, going_on, experiment, within, needed, within_needed, hollow.model_id)
"""


@dataclass(frozen=True)
class Life:
    """The ids that LIFE created."""

    trashed: str
    used: str
    going_on: str
    experiment: str
    within: str
    needed: str
    within_needed: str
    hollow: str


@pytest.fixture(scope="module")
def life(stack: Clone) -> Life:
    stack.make("gc", YES="1").check_returncode()  # the images that this worker's earlier tests replaced
    return Life(*stack.in_container("jupyter", "python3", "-W", "ignore", "-c", LIFE).split()[-8:])


@pytest.fixture(scope="module")
def images(stack: Clone) -> Iterator[tuple[str, str]]:
    """An untagged image of this project, and one of another project."""

    def build(project: str) -> str:
        dockerfile = f"FROM debian:trixie-slim\nLABEL {PROJECT_LABEL}={project} made={uuid.uuid4()}\n"
        done = subprocess.run(["docker", "build", "-q", "-"], input=dockerfile, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    ours, theirs = build(stack.name), build(f"{stack.name}-other")
    yield ours, theirs
    for image in {ours, theirs} & set(all_images()):
        docker("image", "rm", image)


def all_images() -> list[str]:
    return docker("image", "ls", "--all", "--quiet", "--no-trunc").split()


def put(keys: Keys, name: str, content: bytes = b"x") -> str:
    client_for(keys).put_object(keys.bucket, name, BytesIO(content), len(content))
    return name


def everything(keys: Keys) -> dict[str, int]:
    """The number of versions of each object in the bucket."""
    return {history[0].name: len(history) for history in versions.histories(client_for(keys), keys.bucket)}


def test_gc_keeps_what_is_younger_than_30_days(stack: Clone, life: Life, keys: Keys, owner_keys: Keys) -> None:
    orphan = put(keys, f"0/{uuid.uuid4().hex}/artifacts/file")
    before = everything(owner_keys)
    done = stack.make("gc", YES="1")
    assert done.returncode == 0, done.stderr
    assert "Nothing to delete." in done.stdout
    assert "1 folders of no run, model, trace or data set are too young" in done.stdout
    assert everything(owner_keys) == before
    client_for(owner_keys).remove_object(owner_keys.bucket, orphan)
    versions.purge(client_for(owner_keys), owner_keys.bucket, versions.folder_of(orphan))


def test_gc_without_a_terminal_is_rejected(stack: Clone, life: Life, images: tuple[str, str], owner_keys: Keys) -> None:
    before = everything(owner_keys)
    done = stack.make("gc", OLDER_THAN="0s", COLUMNS="120")
    assert done.returncode != 0
    assert "no terminal" in done.stderr and "make gc YES=1" in done.stderr
    assert "deleted runs" in done.stdout and "images that newer ones" in done.stdout
    assert life.used in done.stdout  # and the reason why it is kept
    assert everything(owner_keys) == before
    assert images[0] in all_images()


@pytest.mark.parametrize("answer", [b"n\n", None], ids=["no", "Ctrl-C"])
def test_gc_that_is_not_confirmed_deletes_nothing(stack: Clone, life: Life, owner_keys: Keys, answer: bytes | None) -> None:
    before = everything(owner_keys)
    decline(lambda its_end: stack.start("gc", "--older-than", "0s", stdin=its_end), answer)
    assert everything(owner_keys) == before


def test_gc_keeps_a_run_that_is_restored_meanwhile(stack: Clone, life: Life, role: Login, owner_keys: Keys) -> None:
    agreed = gc.plan(Stack.of(stack.folder), timedelta(0))
    assert life.trashed in agreed.runs
    client = "import sys, mlflow; getattr(mlflow.MlflowClient(), sys.argv[1])(sys.argv[2])"
    stack.in_container("jupyter", "python3", "-c", client, "restore_run", life.trashed)
    try:
        with pytest.raises(MlstackError, match=r"cleaning up failed: .*not in `deleted` lifecycle stage"):
            gc.carry_out(Stack.of(stack.folder), agreed)
        assert rows(role, f"SELECT lifecycle_stage FROM runs WHERE run_uuid = '{life.trashed}'") == [("active",)]  # noqa: S608
        assert any(life.trashed in name for name in everything(owner_keys))
    finally:
        stack.in_container("jupyter", "python3", "-c", client, "delete_run", life.trashed)


def test_gc_keeps_an_orphan_that_gets_a_row_meanwhile(stack: Clone, life: Life, owner_keys: Keys) -> None:
    before = everything(owner_keys)
    gc.carry_out(Stack.of(stack.folder), gc.Plan(age=timedelta(0), orphans=(versions.Folder(f"0/{life.going_on}/", 1, 6),)))
    assert everything(owner_keys) == before


def test_gc_resumes_after_ctrl_c(stack: Clone, life: Life, owner_keys: Keys) -> None:
    """Ctrl-C at a terminal also reaches docker."""
    before = everything(owner_keys)
    output, code = interrupted(stack, b"runs: 0 of", "gc", "--older-than", "0s", "--yes")
    assert code == 130, output
    assert "Nothing is broken" in output and "Traceback" not in output
    left = everything(owner_keys)
    assert left.items() <= before.items()
    assert f"0/{life.used}/artifacts/model/weights.txt" in left


def interrupted(stack: Clone, at: bytes, *arguments: str) -> tuple[str, int]:
    """The output and exit code of a command at a terminal where Ctrl-C is pressed once it has shown `at`."""
    terminal, its_end = pty.openpty()
    with stack.start(*arguments, stdin=its_end, output=its_end) as process:
        os.close(its_end)
        output = b""
        while chunk := shown(terminal):
            output += chunk
            if at in output:
                os.killpg(process.pid, signal.SIGINT)
                at = b"never again"
    os.close(terminal)
    return output.decode(errors="replace"), process.returncode


def shown(terminal: int) -> bytes:
    """The next output of a terminal; nothing once the other end is closed, which is an error on Linux."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def test_gc_deletes_the_plan_and_nothing_else(
    stack: Clone, life: Life, images: tuple[str, str], role: Login, keys: Keys, owner_keys: Keys
) -> None:
    orphans = [
        put(keys, f"0/{uuid.uuid4().hex}/artifacts/a"),
        put(keys, f"7/models/m-{uuid.uuid4().hex}/artifacts/b"),
        put(keys, f"7/traces/tr-{uuid.uuid4().hex}/artifacts/c"),
    ]
    foreign = [put(keys, "my/own/table.csv"), put(keys, f"my/{uuid.uuid4().hex}/table.csv"), put(keys, "0/notes.txt")]
    deleted = put(keys, f"0/{life.going_on}/artifacts/deleted.txt")
    client_for(keys).remove_object(keys.bucket, deleted)
    done = stack.make("gc", OLDER_THAN="0s", YES="1", COLUMNS="120")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"model hollow ({life.hollow})" in done.stdout
    assert all(versions.folder_of(orphan) in done.stdout for orphan in orphans)
    left = everything(owner_keys)
    assert left == {
        f"0/{life.going_on}/artifacts/model/weights.txt": 1,
        f"0/{life.used}/artifacts/model/weights.txt": 1,
        f"{life.needed}/{life.within_needed}/artifacts/model/weights.txt": 1,
        **dict.fromkeys(foreign, 1),
    }
    answer = client_for(keys).get_object(keys.bucket, f"0/{life.going_on}/artifacts/model/weights.txt")
    assert answer.read() == b"second"
    answer.release_conn()
    runs = {run for (run,) in rows(role, "SELECT run_uuid FROM runs")}
    assert {life.going_on, life.used, life.within_needed} <= runs
    assert {life.trashed, life.within} & runs == set()
    experiments = {experiment for (experiment,) in rows(role, "SELECT experiment_id FROM experiments")}
    assert (int(life.experiment) in experiments, int(life.needed) in experiments) == (False, True)
    assert rows(role, f"SELECT count(*) FROM metrics WHERE run_uuid = '{life.trashed}'") == [(0,)]  # noqa: S608
    assert images[0] not in all_images()
    assert images[1] in all_images()
    assert stack.make("doctor").returncode == 0


DATASETS = """
import pandas as pd
from mlstack import datasets
from mlstack.client.dataset_versions import call
def frame(number): return pd.DataFrame({"n": [number]})
kept, deleted = datasets.put(frame(1), "trips"), datasets.put(frame(2), "trips")
datasets.delete("trips", deleted.version)
begun = call("begin", name="unfinished", files=[{"path": "x", "size": 1, "sha256": "0" * 64, "parts": []}])
print(kept.digest, deleted.digest, begun["version"])
"""


def test_gc_deletes_versions_of_data_sets_that_are_deleted_or_incomplete_and_no_other(stack: Clone, owner_keys: Keys) -> None:
    kept, deleted, begun = stack.in_container("jupyter", "python3", "-W", "ignore", "-c", DATASETS).split()[-3:]
    agreed = gc.plan(Stack.of(stack.folder), timedelta(hours=1))
    assert (agreed.datasets, agreed.young) == ((), 2)
    client, bucket = client_for(owner_keys), owner_keys.datasets
    agreed = gc.plan(Stack.of(stack.folder), timedelta(0))
    assert {folder.name for folder in agreed.datasets} == {f"trips/{deleted}/", f"unfinished/{begun}/"}
    too_many = replace(agreed, datasets=(*agreed.datasets, Folder(f"trips/{kept}/")))  # as if it had become complete meanwhile
    gc.carry_out(Stack.of(stack.folder), too_many)
    left = {history[0].name: len(history) for history in versions.histories(client, bucket)}
    assert left == {f"trips/{kept}/data.parquet": 1, f".manifests/trips/{kept}.json": 1}
    for folder in ("", "trips/", ".manifests/", f".manifests/trips/{kept}.json"):
        with pytest.raises(MlstackError, match="no folder of a data set's version"):
            datasets.purge(client, bucket, folder)


# Traces that began so many days ago. A client that is not told the server's version stores spans as files: it waits for it.
TRACES = """
import sys, time, mlflow
from mlflow.tracking._tracking_service.utils import _get_store
store = _get_store()
while store._get_server_version(store.get_host_creds()) is None:
    store._get_server_version.cache_clear()
mlflow.set_experiment(sys.argv[1])
for days in map(int, sys.argv[2:]):
    start = time.time_ns() - days * 86400 * 10**9
    span = mlflow.start_span_no_context("answer", inputs={"days": days}, start_time_ns=start)
    child = mlflow.start_span_no_context("child", parent_span=span, inputs="x" * 1000, start_time_ns=start)
    child.end()
    span.end(outputs="done")
    print(span.trace_id)
mlflow.flush_trace_async_logging()
"""
SPANS = "import sys, mlflow; print([(s.name, s.inputs, s.outputs) for s in mlflow.get_trace(sys.argv[1]).data.spans])"
# Another account could send a new trace whose tags say that its spans are those of a trace it may not read.
FORGED = """
import sys, mlflow
from mlflow.entities import TraceInfo, TraceLocation, TraceState
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service.utils import _get_store
trace, location = sys.argv[1:]
tags = {"mlflow.trace.spansLocation": "ARCHIVE_REPO", "mlflow.trace.archiveLocation": location}
client, store = mlflow.MlflowClient(), _get_store()
for key, value in tags.items():
    try:
        store.set_trace_tag(trace, key, value)
    except MlflowException as error:
        print("immutable" in str(error))
experiment = mlflow.set_experiment("forged").experiment_id
info = TraceInfo("tr-" + "f" * 32, TraceLocation.from_experiment_id(experiment), 0, TraceState.OK, tags=tags)
forged = store.start_trace(info)
print(len(mlflow.get_trace(forged.trace_id).data.spans))
client.delete_traces(experiment, trace_ids=[forged.trace_id])
"""


def traces_made(stack: Clone, experiment: str, *days: int) -> list[str]:
    return stack.in_container("jupyter", "python3", "-c", TRACES, experiment, *map(str, days)).split()[-len(days) :]


def archive_of(stack: Clone, role: Login, trace: str) -> str:
    """The object with the archived spans of a trace."""
    [(uri,)] = rows(role, f"SELECT value FROM trace_tags WHERE request_id = '{trace}' AND key = 'mlflow.trace.archiveLocation'")  # noqa: S608
    return f"{uri}/traces.pb".removeprefix(f"s3://{stack.values['MINIO_BUCKET']}/")


def test_gc_archives_the_spans_of_old_traces_which_stay_readable(stack: Clone, role: Login, owner_keys: Keys) -> None:
    deleted, archived, young = traces_made(stack, "archive", 200, 40, 0)
    before = {trace: stack.in_container("jupyter", "python3", "-c", SPANS, trace) for trace in (archived, young)}
    stack.set(TRACE_ARCHIVE="30", TRACE_RETENTION="100")
    asked = stack.make("gc")
    assert "traces older than TRACE_ARCHIVE: spans move to the bucket" in asked.stdout, asked.stdout + asked.stderr
    assert rows(role, f"SELECT count(*) FROM spans WHERE content = '' AND trace_id = '{archived}'") == [(0,)]  # noqa: S608
    for _ in range(2):  # the second time there is nothing to do
        done = stack.make("gc", YES="1")
        assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing to delete." in done.stdout
    moved = rows(role, "SELECT trace_id, bool_and(content = '') FROM spans WHERE trace_id = ANY(ARRAY"  # noqa: S608
                 f"{[deleted, archived, young]}) GROUP BY 1 ORDER BY 2")  # fmt: skip
    assert moved == [(young, False), (archived, True)]
    experiment = rows(role, "SELECT experiment_id FROM experiments WHERE name = 'archive'")[0][0]
    assert archive_of(stack, role, archived) == f"{experiment}/traces/{archived}/artifacts/traces.pb"
    after = {trace: stack.in_container("jupyter", "python3", "-c", SPANS, trace) for trace in (archived, young)}
    assert after == before and "child" in before[archived]
    url = f"http://127.0.0.1:{stack.values['MLFLOW_PORT']}/ajax-api/3.0/mlflow/get-trace-artifact?request_id={archived}"
    login = stack.values["MLFLOW_TRACKING_USERNAME"], stack.values["MLFLOW_TRACKING_PASSWORD"]
    assert [span["name"] for span in requests.get(url, auth=login, timeout=30).json()["spans"]] == ["answer", "child"]
    stack.compose("stop", "--timeout", "5", "minio")  # an error, and not a trace without spans
    without = requests.get(url, auth=login, timeout=120)
    stack.compose("up", "--detach", "--wait", "--no-build", "minio")
    assert (without.status_code, "does not answer" in without.text) == (503, True), without.text
    # Also with an age at which everything counts as old.
    stack.make("gc", OLDER_THAN="0s", YES="1").check_returncode()
    assert archive_of(stack, role, archived) in everything(owner_keys)
    stack.set(TRACE_ARCHIVE="10", TRACE_RETENTION="35")
    stack.make("gc", YES="1").check_returncode()
    assert [name for name in everything(owner_keys) if archived in name] == []
    assert rows(role, f"SELECT count(*) FROM trace_info WHERE request_id = '{archived}'") == [(0,)]  # noqa: S608


@pytest.mark.refusal
def test_archived_spans_of_a_trace_are_not_read_or_deleted_through_another(stack: Clone, role: Login, owner_keys: Keys) -> None:
    [trace] = traces_made(stack, "others", 40)
    stack.set(TRACE_ARCHIVE="30", TRACE_RETENTION="")
    stack.make("gc", YES="1").check_returncode()
    name = archive_of(stack, role, trace)
    location = f"s3://{stack.values['MINIO_BUCKET']}/{name.removesuffix('/traces.pb')}"
    answers = stack.in_container("jupyter", "python3", "-W", "ignore", "-c", FORGED, trace, location).split()[-3:]
    assert answers == ["True", "True", "0"]
    assert rows(role, f"SELECT count(*) FROM trace_info WHERE request_id = 'tr-{'f' * 32}'") == [(0,)]  # noqa: S608
    assert everything(owner_keys)[name] == 1


def test_archived_spans_are_deleted_with_the_trace_or_its_experiment(stack: Clone, role: Login, owner_keys: Keys) -> None:
    by_hand, with_experiment = traces_made(stack, "ended", 40, 41)
    stack.set(TRACE_ARCHIVE="30", TRACE_RETENTION="")
    stack.make("gc", YES="1").check_returncode()
    names = [archive_of(stack, role, trace) for trace in (by_hand, with_experiment)]
    delete = (
        "import sys, mlflow; client = mlflow.MlflowClient(); e = client.get_experiment_by_name('ended').experiment_id;"
        "client.delete_traces(e, trace_ids=[sys.argv[1]]); client.delete_experiment(e)"
    )
    stack.in_container("jupyter", "python3", "-c", delete, by_hand)
    assert [everything(owner_keys)[name] for name in names] == [2, 1]  # a delete marker: MinIO keeps the file until make gc
    done = stack.make("gc", OLDER_THAN="0s", YES="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(names) & set(everything(owner_keys)) == set()


def test_gc_rejects_an_archive_that_is_not_younger_than_the_retention(stack: Clone) -> None:
    stack.set(TRACE_ARCHIVE="30", TRACE_RETENTION="30")
    done = stack.make("gc", YES="1")
    stack.set(TRACE_ARCHIVE="", TRACE_RETENTION="")
    assert done.returncode != 0
    assert "TRACE_ARCHIVE=30 is not less than TRACE_RETENTION=30." in done.stderr
    assert "Fix: set TRACE_ARCHIVE in .env to fewer days" in done.stderr


def test_gc_has_nothing_to_do_the_second_time(stack: Clone, life: Life, owner_keys: Keys) -> None:
    before = everything(owner_keys)
    done = stack.make("gc", OLDER_THAN="0s", YES="1")
    assert done.returncode == 0, done.stderr
    assert "Nothing to delete." in done.stdout
    assert everything(owner_keys) == before


def test_gc_keeps_versions_younger_than_the_age(stack: Clone, keys: Keys, owner_keys: Keys) -> None:
    name = put(keys, "my/kept.txt", b"old")
    put(keys, name, b"new")
    assert gc.plan(Stack.of(stack.folder), timedelta(hours=1)).expired == 0
    assert gc.plan(Stack.of(stack.folder), timedelta(0)).expired == 1
    gc.carry_out(Stack.of(stack.folder), gc.Plan(age=timedelta(hours=1), expired=1))
    assert everything(owner_keys)[name] == 2


@pytest.mark.parametrize("prefix", ["", "my/", "0/", "0/models/"])
def test_purge_accepts_only_the_folder_of_one_run_model_or_trace(stack: Clone, owner_keys: Keys, prefix: str) -> None:
    before = everything(owner_keys)
    with pytest.raises(MlstackError, match="no folder of a run, a model or a trace"):
        versions.purge(client_for(owner_keys), owner_keys.bucket, prefix)
    assert everything(owner_keys) == before


def test_histories_are_complete_across_the_pages_of_a_listing(
    stack: Clone, keys: Keys, owner_keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"0/{uuid.uuid4().hex}/"
    client = client_for(keys)
    names = [put(keys, f"{folder}{number:04}") for number in range(900)]
    for name in names[::3]:
        client.remove_object(keys.bucket, name)  # a version and a delete marker
    for name in names[1::3]:
        put(keys, name, b"again")  # two versions
    monkeypatch.setattr(s3, "MANY", 10)
    histories = list(versions.histories(client_for(owner_keys), owner_keys.bucket, folder))
    assert [history[0].name for history in histories] == names
    assert [len(history) for history in histories] == [2, 2, 1] * 300
    assert [history[0].is_marker for history in histories] == [True, False, False] * 300
    assert versions.purge(client_for(owner_keys), owner_keys.bucket, folder) == 1500
    assert list(versions.histories(client_for(owner_keys), owner_keys.bucket, folder)) == []


def test_gc_rejects_a_wrong_age_and_a_stopped_stack(stack: Clone) -> None:
    done = stack.make("gc", OLDER_THAN="soon")
    assert done.returncode != 0
    assert "OLDER_THAN=soon is no age" in done.stderr
    stack.compose("stop", "--timeout", "5", "mlflow")
    done = stack.make("gc", YES="1")
    assert done.returncode != 0
    assert "not running: mlflow." in done.stderr
    assert "Fix: make up" in done.stderr
