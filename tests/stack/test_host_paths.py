"""Attacks on the host through paths and output, by a package in a notebook or by another user of the host."""

import os
import stat
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from mlstack.host.doctor import State, Subject, tidying
from mlstack.host.doctor.mlflow import JUPYTER, STEPS
from mlstack.host.stack import Stack
from mlstack.s3 import client_for
from mlstack.settings import Keys, Login
from tests.stack.conftest import rows
from tests.support.clone import Clone
from tests.support.doctor import results_of

# Links to a file of the host's user, under the names of a host command's logs and build transcripts in the next minutes,
# in every folder that a notebook can reach from its log folder.
PLANT = """
import os, sys
victim, *names = sys.argv[1:]
for folder in ("/logs", "/logs/..", "/logs/../..", "/home/mlstack/notebooks", "/home/mlstack/notebooks/.."):
    for name in names:
        try:
            os.symlink(victim, os.path.join(folder, name))
        except OSError:
            pass
"""
FSMONITOR = '[core]\\n repositoryformatversion = 0\\n bare = false\\n worktree = .\\n fsmonitor = "touch {}; false"\\n'
# Git recognises a repository by `.git` in a folder, or by a repository's files in the folder itself.
REPOSITORY = """
cd {folder} && mkdir -p .git/objects .git/refs objects refs
for place in .git .; do
  printf 'ref: refs/heads/main\\n' >$place/HEAD
  printf '{config}' >$place/config
done
mkdir -p .hg .vscode .idea
printf '[hooks]\\nupdate = touch {witness}\\n' >.hg/hgrc
echo '{{}}' >.vscode/tasks.json
echo '<x/>' >.idea/workspace.xml
true
"""


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the host's user that no notebook may change, in a place that the containers' user can reach."""
    path = tmp_path / "authorized_keys"
    path.write_text("the user's own\n")
    return path


def logs_of(stack: Clone) -> list[Path]:
    return sorted((stack.folder / "logs").glob("2*.log"))


@pytest.mark.refusal
def test_import_rejects_a_login_in_the_address(stack: Clone) -> None:
    done = stack.make("import", FROM="http://name:secret@127.0.0.1:1", YES="1")
    assert done.returncode != 0
    assert "FROM has a login in it" in done.stderr


@pytest.mark.refusal
def test_host_command_writes_to_no_file_that_a_notebook_chose(stack: Clone, victim: Path) -> None:
    now = datetime.now().astimezone()
    seconds = [now + timedelta(seconds=second) for second in range(180)]
    names = [f"{time:{name}}" for time in seconds for name in ("%Y%m%d_%H%M%S.log", "build_%Y%m%d_%H%M%S.txt")]
    stack.in_container("jupyter", "python3", "-c", PLANT, str(victim), *names)
    before = set(logs_of(stack))
    done = stack.make("up")
    assert done.returncode == 0, done.stderr
    assert victim.read_text() == "the user's own\n"
    (log,) = set(logs_of(stack)) - before
    assert not log.is_symlink()
    assert "waiting until each is healthy" in log.read_text()


@pytest.mark.refusal
def test_link_in_place_of_a_log_folder_is_rejected_before_it_is_mounted(stack: Clone, tmp_path: Path) -> None:
    """Before an upgrade, when the whole log folder was mounted, a notebook could plant it."""
    (tmp_path / "secrets").mkdir()
    folder, kept = stack.folder / "logs/jupyter", stack.folder / "logs/kept"
    folder.rename(kept)
    folder.symlink_to(tmp_path / "secrets")
    try:
        done = stack.make("up")
    finally:
        folder.unlink()
        kept.rename(folder)
    assert done.returncode != 0
    assert f"{folder} is not a folder" in done.stderr
    assert (tmp_path / "secrets").stat().st_uid == os.getuid()


@pytest.mark.refusal
def test_logs_and_notebooks_of_a_first_start_are_private(stack: Clone) -> None:
    for folder in ("logs", "logs/jupyter", "logs/bootstrap", "logs/migration", "notebooks", "backups"):
        path = stack.folder / folder
        assert not path.exists() or path.stat().st_mode & 0o077 == 0, folder
    assert logs_of(stack)
    assert [path.name for path in logs_of(stack) if path.stat().st_mode & 0o077] == []
    assert (stack.folder / ".lock").stat().st_mode & 0o077 == 0


def test_command_that_logs_nothing_leaves_no_file(stack: Clone) -> None:
    before = logs_of(stack)
    assert stack.make("urls").returncode == 0
    assert stack.make("status").returncode == 0
    assert logs_of(stack) == before
    assert [path.name for path in before if not path.stat().st_size] == []


def test_log_of_a_notebook_is_on_the_host(stack: Clone) -> None:
    stack.in_container("jupyter", "python3", "-c", "from mlstack.logger import get_logger; get_logger('mine').info('seen here')")
    (log,) = (path for path in (stack.folder / "logs/jupyter").glob("*.log") if "seen here" in path.read_text())
    assert log.stat().st_uid == int(stack.values["HOST_UID"])


@pytest.mark.refusal
def test_output_of_a_container_cannot_forge_lines_or_control_the_terminal(stack: Clone) -> None:
    forged = r"\x1b]0;title\x07\x1b[2Jcleared\rmlflow-1  | forged\x9b31m"
    stack.in_container("jupyter", "bash", "-c", f"printf '{forged}\\n' >/proc/1/fd/1")
    shown = subprocess.run(
        ["timeout", "-s", "INT", "8", ".venv/bin/mlstack", "logs", "jupyter"], cwd=stack.folder, capture_output=True, check=False
    ).stdout
    (line,) = (line for line in shown.splitlines() if b"forged" in line)
    assert line.startswith(b"jupyter-1")
    assert b"\\x1b]0;title\\x07\\x1b[2Jcleared\\rmlflow-1  | forged" in line
    assert [byte for byte in shown if byte < 32 and byte != 10] == []


@pytest.mark.refusal
def test_repository_that_a_notebook_plants_runs_nothing_on_the_host(stack: Clone, tmp_path: Path) -> None:
    folder, witness = stack.folder / "notebooks", tmp_path / "witness"
    planted = REPOSITORY.format(folder="/home/mlstack/notebooks", config=FSMONITOR.format(witness), witness=witness)
    subprocess.run(["docker", "compose", "exec", "-T", "jupyter", "bash", "-c", planted], cwd=stack.folder, check=False)
    owner = int(stack.values["HOST_UID"])
    trusted = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    for layout in (".git", "."):  # Git looks at the second only if the first is no repository
        if layout == "." and (folder / ".git/HEAD").is_file():
            (folder / ".git/HEAD").unlink()
        subprocess.run(["git", "status"], cwd=folder, env=os.environ | trusted, capture_output=True, check=False)
        assert not witness.exists(), layout
    assert "mine" in stack.in_container("jupyter", "bash", "-c", "touch notebooks/mine && find notebooks")  # no error
    for name in (".git", ".hg", ".idea", ".vscode", "HEAD"):
        assert list((folder / name).iterdir()) == [], name
        assert (folder / name).stat().st_uid == owner
        attempt = f"cd /home/mlstack/notebooks && (mv {name} aside || rm -rf {name} || echo x >{name}/x)"
        with pytest.raises(Exception, match="failed"):
            stack.in_container("jupyter", "bash", "-c", attempt)


# A package that Python loads in every program of the notebooks' user, and that answers instead of the doctor's program.
IMPOSTOR = """
import json, os, sys
if sys.argv[:1] == ["-"] and "MLFLOW_TRACKING_URI" in os.environ:
    answer = {{"errors": {{}}, "run": {run!r}, "left": [{run!r}], "folder": {folder!r}}}
    answer |= dict.fromkeys(("server", "client", "rows", "artifact", "direct"), "fine") | {{"links": False}}
    print(json.dumps(answer), flush=True)
    os._exit(0)
"""


@pytest.mark.refusal
@pytest.mark.parametrize("folder", ["", "0/"])
def test_package_in_jupyter_cannot_make_the_doctor_delete_a_run(stack: Clone, keys: Keys, role: Login, folder: str) -> None:
    program = (
        "import mlflow; run = mlflow.start_run(); mlflow.log_metric('loss', 1); mlflow.log_text('kept', 'kept.txt');"
        "mlflow.end_run(); client = mlflow.MlflowClient(); id = run.info.run_id; client.set_tag(id, 'mlstack.doctor', '1');"
        "client.delete_run(id); print(id)"
    )
    run = stack.in_container("jupyter", "python3", "-c", program).split()[-1]
    place = stack.in_container("jupyter", "python3", "-c", "import site; print(site.getusersitepackages())").strip()
    impostor = IMPOSTOR.format(run=run, folder=folder)
    stack.in_container("jupyter", "bash", "-c", 'mkdir -p "$1" && printf %s "$2" >"$1/usercustomize.py"', "-", place, impostor)
    try:
        results = results_of(Subject(Stack.of(stack.folder)), STEPS[JUPYTER]["direct"], tidying.runs, tidying.objects)
    finally:
        stack.in_container("jupyter", "rm", f"{place}/usercustomize.py")
    assert results[STEPS[JUPYTER]["direct"].name].state is State.OK  # the package answered
    assert run in results[tidying.runs.name].cause
    assert (run,) in rows(role, "SELECT run_uuid FROM runs")
    assert client_for(keys).stat_object(keys.bucket, f"0/{run}/artifacts/kept.txt").size == 4
    # From ten minutes after its start on, each doctor would report it.
    program = f"from mlflow import MlflowClient as C; C().restore_run({run!r}); C().delete_tag({run!r}, 'mlstack.doctor')"
    stack.in_container("jupyter", "python3", "-c", program)


@pytest.mark.refusal
def test_only_an_answer_on_makes_command_line_confirms(stack: Clone) -> None:
    before = Stack.of(stack.folder).engine.volumes(stack.name)
    for environment in ({"YES": "1"}, {"MAKEFLAGS": "e", "YES": "1"}):
        done = subprocess.run(
            ["make", "reset"], cwd=stack.folder, env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode != 0
        assert "there is no terminal to ask at" in done.stderr
    for answer in ("0", "no", "", "1 0"):
        done = stack.make("reset", f"YES={answer}")
        assert done.returncode != 0
        assert "there is no terminal to ask at" in done.stderr
    assert stack.compose("ps", "--quiet", "mlflow")
    assert Stack.of(stack.folder).engine.volumes(stack.name) == before


def test_down_removes_the_empty_covers_in_the_notebook_folder(stack: Clone) -> None:
    """Last in this file: it stops the stack."""
    folder = stack.folder / "notebooks"
    (folder / ".vscode/settings.json").write_text("{}")  # the user's own, on the host
    done = stack.make("down")
    assert done.returncode == 0, done.stderr
    left = {path.name for path in folder.iterdir() if path.suffix != ".ipynb"}
    assert left & {".git", ".hg", ".idea", "HEAD"} == set()
    assert (folder / ".vscode/settings.json").read_text() == "{}"
    assert stat.S_ISDIR((folder / ".vscode").lstat().st_mode)
