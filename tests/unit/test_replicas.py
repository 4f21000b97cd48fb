"""Files that replicas of the scoring service share."""

import subprocess
import sys
from pathlib import Path

from mlstack.scoring import files

HOLDS = """
import sys
from pathlib import Path
from mlstack.scoring import files
print(files.own_folder(Path(sys.argv[1])), flush=True)
input()
"""


def replica(volume: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLDS, volume], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def folder_of(process: subprocess.Popen[str]) -> Path:
    assert process.stdout
    return Path(process.stdout.readline().strip())


def test_each_replica_has_a_folder_and_the_next_takes_that_of_a_killed_one(tmp_path: Path) -> None:
    with replica(tmp_path) as first, replica(tmp_path) as second:
        folders = {folder_of(first): first, folder_of(second): second}
        assert folders.keys() == {tmp_path, tmp_path / "replica-2"}
        folders[tmp_path].kill()
        folders[tmp_path].wait()
        with replica(tmp_path) as third:
            assert folder_of(third) == tmp_path
            third.kill()
        first.kill()
        second.kill()


def test_file_is_replaced_as_a_whole_and_leaves_no_other(tmp_path: Path) -> None:
    for text in ("old", "new"):
        files.write(tmp_path / "keys.json", text)
    assert [(path.name, path.read_text(), path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == [
        ("keys.json", "new", 0o600)
    ]
