"""What `make import` reads and how it changes rows, decided without a stack."""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlstack.errors import MlstackError
from mlstack.host.importing import files, rows, source
from mlstack.host.importing.rows import Compared, Destination, Experiment
from mlstack.host.stack import Stack
from mlstack.manifests import etag_of

RUN, OTHER, MODEL, TRACE = "a" * 32, "b" * 32, f"m-{'c' * 32}", f"tr-{'d' * 32}"
EXPERIMENT = Experiment(314159265358979323, "wine", "active", 1, 2, 7, "mlflow-artifacts:/7")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """The columns of MLflow's tables that decide where artifacts are."""
    with closing(sqlite3.connect(tmp_path / "rows.db")) as connection:
        connection.executescript("""
            CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY);
            CREATE TABLE runs (run_uuid TEXT PRIMARY KEY, artifact_uri TEXT, experiment_id REFERENCES experiments);
            CREATE TABLE tags (key TEXT, run_uuid TEXT REFERENCES runs);
            CREATE TABLE logged_models (model_id TEXT, artifact_location TEXT, experiment_id INTEGER);
            CREATE TABLE trace_info (request_id TEXT, experiment_id INTEGER);
            CREATE TABLE trace_tags (request_id TEXT, key TEXT, value TEXT);
        """)
        connection.execute("INSERT INTO experiments VALUES (?)", (EXPERIMENT.source_id,))
        connection.execute("INSERT INTO runs VALUES (?, '/old/mlruns/3/x/artifacts', ?)", (RUN, EXPERIMENT.source_id))
        connection.execute("INSERT INTO logged_models VALUES (?, '', ?)", (MODEL, EXPERIMENT.source_id))
        connection.execute("INSERT INTO trace_info VALUES (?, ?)", (TRACE, EXPERIMENT.source_id))
        yield connection


@pytest.fixture
def destination(database: sqlite3.Connection) -> Destination:
    target = Destination({EXPERIMENT.source_id: EXPERIMENT}, "old/")
    target.locate(database)
    return target


def test_artifacts_belong_where_mlflow_looks_for_them(destination: Destination) -> None:
    assert destination.locations == {
        RUN: f"mlflow-artifacts:/7/{RUN}/artifacts",
        MODEL: f"mlflow-artifacts:/7/models/{MODEL}/artifacts",
        TRACE: f"mlflow-artifacts:/7/traces/{TRACE}/artifacts",
    }


def test_source_of_a_model_version_leads_into_the_bucket(destination: Destination, subtests: pytest.Subtests) -> None:
    for uri, moved in (
        (f"file:///home/ada/mlruns/3/{RUN}/artifacts/model", f"mlflow-artifacts:/7/{RUN}/artifacts/model"),
        (f"./mlruns/3/models/{MODEL}/artifacts", f"mlflow-artifacts:/7/models/{MODEL}/artifacts"),
        (f"models:/{MODEL}", f"models:/{MODEL}"),
        (f"runs:/{RUN}/model", f"runs:/{RUN}/model"),
        ("models:/wine/3", "models:/old/wine/3"),
        ("prompt-template", "prompt-template"),
    ):
        with subtests.test(uri=uri):
            version = {"name": "wine", "version": 1, "source": uri, "storage_location": None}
            assert destination.changed("model_versions", version)["source"] == moved
    assert destination.problems == []


def test_model_version_of_files_that_are_not_imported_is_reported(destination: Destination) -> None:
    version = {"name": "wine", "version": 2, "source": f"s3://bucket/3/{OTHER}/artifacts/model", "storage_location": None}
    assert destination.changed("model_versions", version)["source"] == f"s3://bucket/3/{OTHER}/artifacts/model"
    assert ["version 2 of the model old/wine" in problem for problem in destination.problems] == [True]


def test_rows_without_the_row_that_they_refer_to_are_reported(database: sqlite3.Connection) -> None:
    database.execute("INSERT INTO runs VALUES (?, '', 99)", (OTHER,))
    database.execute("INSERT INTO tags VALUES ('a', ?)", (OTHER,))
    database.execute("INSERT INTO tags VALUES ('a', ?)", (RUN,))
    problems = rows.drop_dangling(database)
    assert database.execute("SELECT run_uuid FROM runs").fetchall() == [(RUN,)]
    assert database.execute("SELECT run_uuid FROM tags").fetchall() == [(RUN,)]
    assert len(problems) == 2
    assert OTHER in problems[0]


def test_rows_are_equal_when_count_and_checksum_are() -> None:
    assert Compared("runs", 2, 2, "a", "a").is_equal
    assert not Compared("runs", 2, 1, "a", "a").is_equal
    assert not Compared("runs", 2, 2, "a", "b").is_equal


def test_artifacts_are_found_after_the_folder_was_moved(tmp_path: Path, subtests: pytest.Subtests) -> None:
    root = tmp_path / "mlruns"
    folder = root / "3" / RUN / "artifacts"
    folder.mkdir(parents=True)
    for uri in (
        f"file://{folder}",
        f"/old/place/3/{RUN}/artifacts",
        f"mlflow-artifacts:/3/{RUN}/artifacts",
        f"./mlruns/3/{RUN}/artifacts",
    ):
        with subtests.test(uri=uri):
            assert files.located(uri, [root]) == folder
    assert files.located(f"/old/place/3/{OTHER}/artifacts", [root]) is None


def test_etag_is_that_of_s3(tmp_path: Path, subtests: pytest.Subtests) -> None:
    path = tmp_path / "file"
    for content, etag in (
        (b"", hashlib.md5(b"", usedforsecurity=False).hexdigest()),
        (b"abc", hashlib.md5(b"abc", usedforsecurity=False).hexdigest()),
        (b"abcd", hashlib.md5(b"".join(hashlib.md5(part).digest() for part in (b"abc", b"d"))).hexdigest() + "-2"),  # noqa: S324
    ):
        with subtests.test(content=content):
            path.write_bytes(content)
            assert etag_of(path, 3) == etag


@pytest.mark.refusal
def test_import_reads_no_artifact_outside_of_the_source(database: sqlite3.Connection, tmp_path: Path) -> None:
    secret = tmp_path / "home" / RUN / "artifacts"
    secret.mkdir(parents=True)
    (secret / "id_ed25519").write_text("secret")
    root = tmp_path / "mlruns"
    inside = root / "3" / OTHER / "artifacts"
    inside.mkdir(parents=True)
    (inside / "note.txt").write_text("note")
    (inside / "link").symlink_to(secret / "id_ed25519")
    (inside / "folder").symlink_to(secret)
    for run, uri in ((RUN, str(secret)), (OTHER, str(inside))):
        database.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", (run, uri, EXPERIMENT.source_id))
    problems: list[str] = []
    listed = files.listed(database, [root], None, problems, lambda step: None)
    assert [file.name for file in listed] == ["note.txt"]
    assert len(problems) == 3


@pytest.mark.refusal
def test_import_follows_no_address_of_a_server_to_the_host_or_elsewhere(
    database: sqlite3.Connection, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    (tmp_path / "secret").write_text("secret")
    for uri in (f"file://{tmp_path}", str(tmp_path), "http://other.example/artifacts", "mlflow-artifacts://other.example/1/a"):
        with subtests.test(uri=uri):
            database.execute("UPDATE runs SET artifact_uri = ?", (uri,))
            problems: list[str] = []
            assert files.listed(database, [], "http://127.0.0.1:1", problems, lambda step: None) == []
            assert [RUN in problem for problem in problems] == [True]


class Repository:
    """A server's folder with files of these names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def list_artifacts(self, folder: str | None) -> list[Any]:
        return [SimpleNamespace(path=name, is_dir=False, file_size=1) for name in self.names]


@pytest.mark.refusal
def test_import_rejects_names_and_ids_that_lead_out_of_their_folder(
    database: sqlite3.Connection, destination: Destination, subtests: pytest.Subtests
) -> None:
    assert list(files._names(Repository("a/b..c"), None)) == [("a/b..c", 1)]
    for name in ("../x", "a/../../x", "/etc/x"):
        with subtests.test(name=name), pytest.raises(OSError, match="no name of a file"):
            list(files._names(Repository(name), None))
    database.execute("UPDATE runs SET run_uuid = '../1'")
    with pytest.raises(MlstackError, match="is no id of MLflow's"):
        destination.locate(database)


def test_source_that_is_none_is_named(tmp_path: Path, subtests: pytest.Subtests) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("text")
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE a (b)")
    stack = Stack(tmp_path, "", {})
    for origin, wrong in (
        (f"{tmp_path}/missing", "is neither a folder mlruns, nor a SQLite file"),
        (f"{tmp_path}/text", "is neither a folder mlruns, nor a SQLite file"),
        (f"{tmp_path}/empty", "is no folder of MLflow's"),
        (f"sqlite:///{tmp_path}/other.db", "is no database of MLflow's"),
    ):
        with subtests.test(origin=origin), pytest.raises(MlstackError, match=wrong):
            source.read(stack, origin, None, lambda step: None)
