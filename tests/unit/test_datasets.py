"""Manifests of data sets, and what a client sends, decided without a stack."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from mlstack import manifests
from mlstack.client import dataset_files
from mlstack.client.dataset_files import described, missing_pieces
from mlstack.client.dataset_readers import ENGINES, reader, suffix_of
from mlstack.client.errors import ClientError
from mlstack.errors import MlstackError
from mlstack.jobs.gc.datasets import folder_of
from mlstack.manifests import File, complaint, digest_of
from mlstack.s3 import DOCTOR, MANIFESTS, UPLOADS, manifest_of

SHA = "a" * 64
FILE = File("data.parquet", 3, SHA)


def test_digest_depends_on_every_file_and_not_on_their_order(subtests: pytest.Subtests) -> None:
    other = File("folder/x.csv", 5, "b" * 64)
    digest = digest_of([FILE, other])
    assert digest == digest_of([other, FILE]) and len(digest) <= 36
    for changed in (
        [FILE],
        [replace(FILE, path="x"), other],
        [replace(FILE, size=4), other],
        [replace(FILE, sha256="c" * 64), other],
    ):
        with subtests.test(changed=changed):
            assert digest_of(changed) != digest


@pytest.mark.refusal
def test_data_set_rejects_names_and_paths_that_leave_its_folder(subtests: pytest.Subtests) -> None:
    for name in ("", ".manifests", "..", "a/b", "a\x00", "ä", "a" * 101, "-a", "a b"):
        with subtests.test(name=name):
            assert "is no name of a data set" in str(complaint(name, [FILE]))
    for path in (
        "",
        ".",
        "..",
        "../x",
        "/x",
        "a/../x",
        "a//x",
        "a/",
        "./x",
        "a\\x",
        "a\x00",
        "a\nb",
        "\ud800",
        "a" * 256,
        "a/" * 350 + "a",
    ):
        with subtests.test(path=path):
            assert "is no path of a file" in str(complaint("trips", [replace(FILE, path=path)]))


def test_complaint_names_what_does_not_fit(subtests: pytest.Subtests) -> None:
    large = File("x", manifests.PART + 1, SHA, (SHA, SHA))
    for files, wrong in (
        ([], "no file"),
        ([FILE, FILE], "twice"),
        ([File("a", 1, SHA), File("a/b", 1, SHA)], "both a file and a folder"),
        ([replace(FILE, sha256="A" * 64)], "do not fit"),
        ([replace(FILE, size=-1)], "do not fit"),
        ([replace(FILE, parts=(SHA,))], "do not fit"),
        ([replace(large, parts=(SHA,))], "do not fit"),
        ([replace(large, parts=(SHA, "x"))], "do not fit"),
        ([FILE] * (manifests.MOST_FILES + 1), "at most"),
    ):
        with subtests.test(wrong=wrong):
            assert wrong in str(complaint("trips", files))
    assert complaint("trips.2026_v-1", [FILE, File("deep/ä 日本?#%.csv", 0, SHA), large]) is None


def test_described_has_the_checksums_of_files_and_of_the_parts_of_large_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "PART", 10)
    contents = {"small": b"x" * 10, "large": bytes(range(25)), "empty": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = {file.path: file for file in described({name: tmp_path / name for name in contents})}
    assert [*files] == sorted(contents)
    for name, content in contents.items():
        assert (files[name].size, files[name].sha256) == (len(content), hashlib.sha256(content).hexdigest())
    parts = [hashlib.sha256(contents["large"][start : start + 10]).hexdigest() for start in (0, 10, 20)]
    assert {name: file.parts for name, file in files.items()} == {"small": (), "empty": (), "large": tuple(parts)}
    assert complaint("trips", [*files.values()]) is None


def test_missing_pieces_are_small_files_and_the_parts_that_are_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "PART", 10)
    missing = {3: File("small", 4, SHA), 7: File("large", 25, SHA, (SHA,) * 3)}
    pieces = [*missing_pieces(missing, {7: {"upload": "id", "parts": [1]}})]
    assert [(piece.file, piece.part, piece.upload, piece.start, piece.size) for piece in pieces] == [
        (3, 0, "", 0, 4),
        (7, 2, "id", 10, 10),
        (7, 3, "id", 20, 5),
    ]


def test_upload_of_a_missing_path_says_so(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="there is no file or folder"):
        dataset_files.upload(tmp_path / "nothing", "trips")


def test_suffix_tells_what_can_be_read_as_a_frame() -> None:
    kinds = {"a.parquet": "parquet", "x/B.CSV": "csv", "a.csv.gz": "csv", "a.txt": None, "parquet": None}
    assert {path: suffix_of(path) for path in kinds} == kinds


def test_reader_of_a_library_that_is_not_installed_says_how_to_get_it() -> None:
    """None of them is in the environment of the checks."""
    for engine in ENGINES:
        with pytest.raises(MlstackError, match=f"pip install {engine}"):
            reader(engine, "parquet")


def test_folder_of_a_version_has_its_files_and_its_manifests() -> None:
    folder = f"trips/{'0' * 32}/"
    for key in (f"{folder}a/b.csv", manifest_of(folder), manifest_of(folder, UPLOADS)):
        assert folder_of(key) == folder
    assert folder_of(f"{DOCTOR}x") == DOCTOR
    assert {folder_of(key) for key in ("mine.csv", "trips/mine.csv", MANIFESTS, f"{MANIFESTS}x.json", "")} == {""}
