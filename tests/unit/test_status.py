"""The sizes that `make status` counts itself."""

import os
import subprocess
from pathlib import Path

from mlstack.host import status


def counted(folder: Path, seconds: float, path: str) -> list[str]:
    command = ["sh", "-c", status._SIZE, "sh", str(folder), str(seconds)]
    return subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=True).stdout.split()


def test_size_of_folder_is_what_its_files_occupy(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1_000_000)
    assert counted(tmp_path, 60, os.environ["PATH"]) == [str((tmp_path / "file").stat().st_blocks * 512), "0"]


def test_size_that_takes_too_long_is_reported_as_incomplete(tmp_path: Path) -> None:
    timeout = tmp_path / "timeout"
    timeout.write_text("#!/bin/sh\necho 8\nexit 124\n")  # the real one ends like this, one file counted by then
    timeout.chmod(0o755)
    assert counted(tmp_path, 60, f"{tmp_path}:{os.environ['PATH']}") == ["4096", "1"]
