import inspect
import logging
import re
import subprocess
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from inspect import currentframe
from itertools import product
from pathlib import Path

import psutil
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
    """A logger whose level does not depend on the host's .env."""
    return get_logger(name, folder, level)


def test_get_logger_has_the_signature_of_the_contract() -> None:
    defaults = {key: parameter.default for key, parameter in inspect.signature(get_logger).parameters.items()}
    assert list(defaults) == ["name", "log_dir", "log_level"]
    assert (defaults["log_dir"], defaults["log_level"]) == (settings.LOG_DIR, settings.LOG_LEVEL)


def test_logger_that_is_requested_often_writes_each_line_once(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(100):
        logger_of(name, tmp_path).info("<%d>", number)
    lines = [f"<{number}>" for number in range(100)]
    assert [line.split(" | ")[-1] for line in written(tmp_path).splitlines()] == lines
    assert [line.split(" | ")[-1] for line in capsys.readouterr().err.splitlines()] == lines


def test_loggers_of_two_names_share_one_file(name: str, tmp_path: Path) -> None:
    for logger_name in (name, f"{name}.other"):
        logger_of(logger_name, tmp_path).info("from %s", logger_name)
    assert len(list(tmp_path.iterdir())) == 1
    assert len(written(tmp_path).splitlines()) == 2


def test_line_has_the_parts_of_the_contract(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    levels = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    log = logger_of(name, tmp_path, "DEBUG")
    number = currentframe().f_lineno + 2  # type: ignore[union-attr]
    for level in levels:
        log.log(logging.getLevelName(level), "epoch %d of %s", 3, "ten")
    place = rf"test_logger\.py:{number}"
    function = "test_line_has_the_parts_of_the_contract"
    file_lines, stream_lines = written(tmp_path).splitlines(), capsys.readouterr().err.splitlines()
    for level, file_line, stream_line in zip(levels, file_lines, stream_lines, strict=True):
        assert re.fullmatch(rf"{TIME} \| {re.escape(name)} \| {place} \| {function} \| {level} \| epoch 3 of ten", file_line)
        assert re.fullmatch(rf"{TIME} \| {place} \| {level} \| epoch 3 of ten", stream_line)


def test_file_is_named_after_the_start_of_the_process(name: str, tmp_path: Path) -> None:
    started = datetime.fromtimestamp(psutil.Process().create_time()).astimezone() - timedelta(seconds=2)  # it is rounded
    logger_of(name, tmp_path).info("x")
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(r"\d{8}_\d{6}\.log", path.name)
    assert started <= datetime.strptime(path.stem, "%Y%m%d_%H%M%S").astimezone() <= datetime.now().astimezone()


def test_log_folder_is_created(name: str, tmp_path: Path) -> None:
    logger_of(name, tmp_path / "not" / "yet" / "there").info("here")
    assert "here" in written(tmp_path / "not" / "yet" / "there")


def test_relative_log_folder_is_relative_to_the_project(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "PROJECT", tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    logger_of(name, "relative").info("here")
    assert "here" in written(tmp_path / "project" / "relative")


@pytest.mark.parametrize("subfolder", ["", "deeper"])
def test_logger_of_an_unwritable_folder_warns_once_and_continues(
    name: str, subfolder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / subfolder
    for logger_name in (name, name, f"{name}.other"):
        logger_of(logger_name, folder).info("went on")
    lines = capsys.readouterr().err.splitlines()
    (warning,) = [line for line in lines if "WARNING" in line]
    assert f"LOG_DIR {folder} cannot be written" in warning
    assert "Fix:" in warning
    assert len([line for line in lines if line.endswith("went on")]) == 3


def test_unknown_level_is_rejected_and_changes_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="LOG_LEVEL=LOUD: expected one of DEBUG, INFO"):
        logger_of(name, tmp_path, "LOUD")
    assert logging.getLogger(name).handlers == []
    assert list(tmp_path.iterdir()) == []


def test_level_is_the_one_requested_last(name: str, tmp_path: Path) -> None:
    logger_of(name, tmp_path, "ERROR").info("first")
    logger_of(name, tmp_path, "info").info("second")
    assert "first" not in written(tmp_path)
    assert "second" in written(tmp_path)


def test_records_do_not_reach_the_root_logger(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root_before = logging.getLogger().handlers[:]
    logger_of(name, tmp_path).error("not for the root")
    assert caplog.records == []
    assert logging.getLogger().handlers == root_before


def test_logger_writes_to_the_folder_requested_last(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b", "a"):
        logger_of(name, tmp_path / folder).info("to %s", folder)
    assert [line[-4:] for line in written(tmp_path / "a").splitlines()] == ["to a", "to a"]
    assert [line[-4:] for line in written(tmp_path / "b").splitlines()] == ["to b"]
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_stream_handler_follows_a_replaced_stderr(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = logger_of(name, tmp_path)
    with capsys.disabled(), pytest.MonkeyPatch.context() as patch, (tmp_path / "stderr").open("w") as replacement:
        patch.setattr("sys.stderr", replacement)
        log.info("to the replacement")
    log.info("to the first one")
    assert (tmp_path / "stderr").read_text().endswith("to the replacement\n")
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


def test_secrets_of_the_environment_are_hidden(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    variables = ("POSTGRES_PASSWORD", "JUPYTER_TOKEN", "AWS_SECRET_ACCESS_KEY", "MINIO_ROOT_USER")
    for variable, write in product(variables, (log_in_message, log_in_arguments, log_in_traceback)):
        folder = tmp_path / variable / write.__name__
        with subtests.test(variable=variable, write=write.__name__), pytest.MonkeyPatch.context() as environment:
            log = logger_of(name, folder)
            environment.setenv(variable, SECRET)
            write(log)
            for text in (written(folder), capsys.readouterr().err):
                assert "***" in text
                assert SECRET not in text


def test_secret_that_begins_with_another_is_hidden_whole(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [SECRET[:length] for length in range(8, len(SECRET))]
    for number, secret in enumerate(secrets):
        monkeypatch.setenv(f"PASSWORD_{number}", secret)
    log = logger_of(name, tmp_path)
    for secret in secrets:
        log.info("<%s>", secret)
    assert [line.split(" | ")[-1] for line in written(tmp_path).splitlines()] == ["<***>"] * len(secrets)


# ---- concurrency ---------------------------------------------------------------------------------


def test_threads_share_one_set_of_handlers_and_lose_no_line(name: str, tmp_path: Path) -> None:
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


# Its lines are longer than the buffers of Python and libc, so that a line that is not written at once is noticed.
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


def test_processes_of_the_same_second_have_a_file_each_and_lose_no_line(tmp_path: Path) -> None:
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


def test_import_of_the_module_configures_nothing() -> None:
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
