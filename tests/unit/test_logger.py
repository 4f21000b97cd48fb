import inspect
import logging
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from inspect import currentframe
from pathlib import Path

import pytest

from mlstack import settings
from mlstack.logger import get_logger, notebook
from mlstack.settings import SettingsError
from tests.support.projects import python

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
SECRET = "correct-horse-battery"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A logger of this test's own."""
    name: str = request.node.name
    yield name
    for handler in logging.getLogger(name).handlers[:]:
        logging.getLogger(name).removeHandler(handler)


def written(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("*.log")))


def logger_of(name: str, folder: Path | str, level: str = "INFO") -> logging.Logger:
    """Whatever level this machine's .env sets."""
    return get_logger(name, folder, level)


def test_has_the_signature_that_users_rely_on() -> None:
    defaults = {key: parameter.default for key, parameter in inspect.signature(get_logger).parameters.items()}
    assert list(defaults) == ["name", "log_dir", "log_level"]
    assert (defaults["log_dir"], defaults["log_level"]) == (settings.LOG_DIR, settings.LOG_LEVEL)


@pytest.mark.parametrize("calls", [1, 100])
def test_one_call_or_many_write_a_line_once(name: str, calls: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loggers = {logger_of(name, tmp_path) for _ in range(calls)}
    assert len(loggers) == 1
    loggers.pop().info("hello")
    assert written(tmp_path).count("hello") == 1
    assert capsys.readouterr().err.count("hello") == 1


def test_two_names_share_one_file(name: str, tmp_path: Path) -> None:
    for each in (name, f"{name}.other"):
        logger_of(each, tmp_path).info("from %s", each)
    assert len(list(tmp_path.iterdir())) == 1
    assert len(written(tmp_path).splitlines()) == 2


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"])
def test_a_line_has_the_parts_of_the_contract(name: str, level: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = logger_of(name, tmp_path, "DEBUG")
    line = currentframe().f_lineno + 1  # type: ignore[union-attr]
    log.log(logging.getLevelName(level), "epoch %d of %s", 3, "ten")
    place = rf"test_logger\.py:{line}"
    function = "test_a_line_has_the_parts_of_the_contract"
    in_file = rf"{TIME} \| {re.escape(name)} \| {place} \| {function} \| {level} \| epoch 3 of ten\n"
    assert re.fullmatch(in_file, written(tmp_path))
    assert re.fullmatch(rf"{TIME} \| {place} \| {level} \| epoch 3 of ten\n", capsys.readouterr().err)


def test_the_file_is_named_after_the_start_of_the_process(name: str, tmp_path: Path) -> None:
    logger_of(name, tmp_path).info("x")
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(r"\d{8}_\d{6}\.log", path.name)
    started = datetime.strptime(path.stem, "%Y%m%d_%H%M%S").astimezone()
    assert timedelta(0) <= datetime.now().astimezone() - started < timedelta(hours=1)


def test_the_folder_is_made(name: str, tmp_path: Path) -> None:
    logger_of(name, tmp_path / "not" / "yet" / "there").info("here")
    assert "here" in written(tmp_path / "not" / "yet" / "there")


def test_a_relative_folder_is_the_projects(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "PROJECT", tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    logger_of(name, "relative").info("here")
    assert "here" in written(tmp_path / "project" / "relative")


@pytest.mark.parametrize("below", ["", "deeper"])
def test_where_the_folder_cannot_be_written_it_warns_once_and_goes_on(
    name: str, below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").touch()
    folder = tmp_path / "taken" / below
    for each in (name, name, f"{name}.other"):
        logger_of(each, folder).info("went on")
    said = capsys.readouterr().err.splitlines()
    (warning,) = [line for line in said if "WARNING" in line]
    assert f"LOG_DIR {folder} cannot be written" in warning
    assert "Fix:" in warning
    assert len([line for line in said if line.endswith("went on")]) == 3


def test_an_unknown_level_is_refused_and_changes_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="LOG_LEVEL=LOUD: expected one of DEBUG, INFO"):
        logger_of(name, tmp_path, "LOUD")
    assert logging.getLogger(name).handlers == []
    assert list(tmp_path.iterdir()) == []


def test_the_level_is_the_one_asked_for_last(name: str, tmp_path: Path) -> None:
    logger_of(name, tmp_path, "ERROR").info("first")
    logger_of(name, tmp_path, "info").info("second")
    assert "first" not in written(tmp_path)
    assert "second" in written(tmp_path)


def test_nothing_reaches_the_root_logger(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root_before = logging.getLogger().handlers[:]
    logger_of(name, tmp_path).error("mine alone")
    assert caplog.records == []
    assert logging.getLogger().handlers == root_before


def test_a_new_folder_moves_the_logger(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b", "a"):
        logger_of(name, tmp_path / folder).info("to %s", folder)
    assert [line[-4:] for line in written(tmp_path / "a").splitlines()] == ["to a", "to a"]
    assert [line[-4:] for line in written(tmp_path / "b").splitlines()] == ["to b"]
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_the_stream_is_what_stderr_is_now(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = logger_of(name, tmp_path)
    with capsys.disabled(), pytest.MonkeyPatch.context() as patch, (tmp_path / "stderr").open("w") as exchanged:
        patch.setattr("sys.stderr", exchanged)
        log.info("to the exchanged one")
    log.info("to the first one")
    assert (tmp_path / "stderr").read_text().endswith("to the exchanged one\n")
    assert capsys.readouterr().err.endswith("to the first one\n")


# ---- secrets -----------------------------------------------------------------------------------


def log_in_message(log: logging.Logger) -> None:
    log.info(f"password is {SECRET}")


def log_in_arguments(log: logging.Logger) -> None:
    log.info("password is %s in %s", SECRET, {"key": SECRET})


def log_in_traceback(log: logging.Logger) -> None:
    try:
        int(f"a number like {SECRET}")
    except ValueError:
        log.exception("failed")


@pytest.mark.parametrize("write", [log_in_message, log_in_arguments, log_in_traceback])
@pytest.mark.parametrize("variable", ["POSTGRES_PASSWORD", "JUPYTER_TOKEN", "AWS_SECRET_ACCESS_KEY", "MINIO_ROOT_USER"])
def test_secrets_of_the_environment_are_hidden(
    name: str,
    write: Callable[[logging.Logger], None],
    variable: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = logger_of(name, tmp_path)
    monkeypatch.setenv(variable, SECRET)
    write(log)
    for text in (written(tmp_path), capsys.readouterr().err):
        assert "***" in text
        assert SECRET not in text


def test_a_secret_that_begins_with_another_is_hidden_whole(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [SECRET[:length] for length in range(8, len(SECRET))]
    for number, secret in enumerate(secrets):
        monkeypatch.setenv(f"PASSWORD_{number}", secret)
    log = logger_of(name, tmp_path)
    for secret in secrets:
        log.info("<%s>", secret)
    assert [line.split(" | ")[-1] for line in written(tmp_path).splitlines()] == ["<***>"] * len(secrets)


# ---- at the same time --------------------------------------------------------------------------


def test_many_threads_get_one_set_of_handlers_and_lose_no_line(name: str, tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def work(thread: int) -> None:
        start.wait()
        for number in range(100):
            logger_of(name, tmp_path).info("<%d %d>", thread, number)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [line.split(" | ")[-1] for line in written(tmp_path).splitlines()]
    assert sorted(lines) == sorted(f"<{thread} {number}>" for thread in range(8) for number in range(100))


# Longer than the buffers of Python and libc, so that a line that is not written at once shows.
WRITER = """
import sys
from datetime import datetime
from mlstack import logger
logger._started = datetime(2030, 1, 1)
log = logger.get_logger("writer", sys.argv[1], "INFO")
print("ready", flush=True)
sys.stdin.read()
for number in range(200):
    log.info("<%s %d %s>", sys.argv[2], number, sys.argv[2] * (number * 100))
"""


def test_processes_that_start_in_the_same_second_each_have_a_file_and_lose_no_line(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            python(WRITER, str(tmp_path), letter), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for letter in "abcd"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()  # go
    for writer in writers:
        assert writer.wait() == 0
        assert writer.stdout is not None
        writer.stdout.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"20300101_00000{second}.log" for second in range(4)]
    lines = [line.split(" | ")[-1] for line in written(tmp_path).splitlines()]
    expected = [f"<{letter} {number} {letter * (number * 100)}>" for letter in "abcd" for number in range(200)]
    assert sorted(lines) == sorted(expected)


def test_the_module_itself_configures_nothing() -> None:
    code = "import logging, mlstack.logger; print(logging.getLogger().handlers, logging.getLogger('mlstack').handlers)"
    done = subprocess.run(python(code), capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[] []\n", "")


class Kernel:
    """IPython's shell in a kernel, as much as the logger asks of it."""

    kernel = object()

    def __init__(self, **names: str) -> None:
        self.user_ns = names


@pytest.fixture
def in_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/mlstack/notebooks/deep/mine.ipynb")
    monkeypatch.setattr("IPython.get_ipython", Kernel)


@pytest.mark.usefixtures("in_notebook")
def test_in_a_notebook_what_is_no_warning_is_on_stdout(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = logger_of(name, tmp_path)
    log.info("calm")
    log.warning("urgent")
    printed = capsys.readouterr()
    assert ("calm" in printed.out, "calm" in printed.err) == (True, False)
    assert ("urgent" in printed.out, "urgent" in printed.err) == (False, True)


@pytest.mark.usefixtures("in_notebook")
def test_in_a_notebook_the_code_of_a_cell_has_the_notebooks_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "\nlog.info('from a cell')"
    exec(compile(code, "/tmp/ipykernel_42/3013480634.py", "exec"), {"log": logger_of(name, tmp_path)})  # noqa: S102, S108
    assert "| mine.ipynb:2 | INFO | from a cell" in capsys.readouterr().out
    assert "| mine.ipynb:2 |" in written(tmp_path)


def test_a_program_that_a_notebook_starts_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/mlstack/notebooks/mine.ipynb")
    assert notebook() is None


def test_vs_code_says_in_the_kernel_what_its_notebook_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("IPython.get_ipython", lambda: Kernel(__vsc_ipynb_file__="/home/me/work/mine.ipynb"))
    assert notebook() == "mine.ipynb"
