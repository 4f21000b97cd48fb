"""The command lines of docker and docker compose: all their processes start here."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mlstack import settings
from mlstack.errors import MlstackError, quoted

Stream = int | IO[Any] | None  # of subprocess.Popen
_CLEAR_LINE = b"\x1b[2K"  # compose writes it before the service's name, even without colours


class CommandFailed(MlstackError):  # noqa: N818 # named after what failed
    """A command that failed or took too long; `stderr` is what it wrote there."""

    def __init__(self, command: Sequence[str], wrong: str, stderr: str = "") -> None:
        self.stderr = stderr
        super().__init__(
            f"{' '.join(command[:3])} {wrong}", "The stack could not be looked at or changed.", "scripts/engine.sh check"
        )


@dataclass(frozen=True)
class Program:
    """A program and the folder in which it runs, with the shell's environment."""

    command: tuple[str, ...]
    folder: Path | None = None

    def output(
        self, *arguments: str, stdin: str = "", timeout: float | None = None, environment: Mapping[str, str] | None = None
    ) -> str:
        """The output. Raises CommandFailed with the last line of its errors, and after `timeout` seconds."""
        with self.started(
            *arguments, environment=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                out, err = process.communicate(stdin.encode(), timeout)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise CommandFailed((*self.command, *arguments), f"… took longer than {timeout:g} s.") from error
            except BaseException:
                process.kill()
                raise
        stderr = err.decode(errors="replace")
        if process.returncode:
            lines = [line for line in stderr.splitlines() if line.strip()] or [f"exit code {process.returncode}"]
            raise CommandFailed((*self.command, *arguments), f"failed: {lines[-1].strip()}", stderr)
        return out.decode(errors="replace")

    def attached(self, *arguments: str, environment: Mapping[str, str] | None = None) -> int:
        """Runs it on the user's own terminal and returns its exit code."""
        with self.started(*arguments, environment=environment) as process:
            try:
                return process.wait()
            except BaseException:
                process.kill()
                raise

    @contextmanager
    def piped(
        self, *arguments: str, wrong: str, stdin: Stream = subprocess.PIPE, environment: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """It runs between pipes. Raises MlstackError beginning with `wrong` when it fails."""
        with tempfile.TemporaryFile() as errors:
            with self.started(*arguments, environment=environment, stdin=stdin, stdout=subprocess.PIPE, stderr=errors) as process:
                try:
                    yield process
                except BrokenPipeError:
                    pass  # it failed, and explains why
                except BaseException:
                    process.kill()
                    raise
            if process.returncode:
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
                telling = [line for line in lines if "error:" in line] or lines
                raise MlstackError(f"{wrong}: {telling[0]}", "Nothing was changed.", "docker compose logs postgres")

    def started(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
    ) -> subprocess.Popen[bytes]:
        """The process; without streams it has those of this one."""
        if shutil.which(self.command[0]) is None:
            raise not_installed(self.command[0])
        return subprocess.Popen(
            [*self.command, *arguments],
            cwd=self.folder,
            env=settings.for_commands(**(environment or {})),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )


DOCKER = Program(("docker",))


def compose_in(folder: Path) -> Program:
    """docker compose on the project in a folder."""
    return Program(("docker", "compose"), folder)


def docker(*arguments: str) -> str:
    """The output of a docker command. Raises CommandFailed with docker's own message."""
    return DOCKER.output(*arguments)


def config(compose: Program) -> dict[str, Any]:
    """The compose file as compose reads it. Raises CommandFailed with compose's own message."""
    parsed: dict[str, Any] = json.loads(compose.output("config", "--format", "json"))
    return parsed


def followed_logs(compose: Program, service: str | None, show: Callable[[str], object]) -> int:
    """Shows each line that the containers write, until they end or Ctrl-C, and returns compose's exit code."""
    arguments = ("--ansi", "never", "logs", "--follow", "--tail", "100", "--", *([service] if service else []))
    with compose.started(*arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout  # noqa: S101 - a pipe, as asked for
        for line in process.stdout:
            text = line.removeprefix(_CLEAR_LINE).removesuffix(b"\n").decode(errors="backslashreplace")
            show(quoted(text))
    return process.returncode


def not_installed(program: str) -> MlstackError:
    """The error for a missing program."""
    return MlstackError(
        f"{program} is not on the PATH.",
        "Everything here runs in containers.",
        "make up (it installs what is missing, or says how)",
    )
