"""The source of an import, read into a SQLite database of the present schema. The source itself is never changed.

Whatever comes from elsewhere is parsed in a container that has no network, no secret, and only reads the source.
"""

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host.compose import DOCKER, CommandFailed
from mlstack.host.importing import server
from mlstack.host.stack import Stack

STAGING = ".import"  # in the project's folder; emptied at the start and at the end of each import
DATABASE, TRACES = "rows.db", "traces.jsonl"  # in it, as in mlstack.jobs.importing
MEMORY = "1g"
ARTIFACTS = ("mlruns", "mlartifacts", "artifacts")  # folders beside a database in which MLflow keeps files by default
_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True)
class Source:
    """What is imported. Artifacts are in one of the folders `roots`, or on the server with this `url`."""

    database: Path
    roots: tuple[Path, ...] = ()
    url: str | None = None
    problems: tuple[str, ...] = ()  # what could not be read

    @property
    def rows(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.database)
        connection.text_factory = lambda data: data.decode(errors="replace").replace("\0", "\ufffd")  # Postgres stores no NUL
        return connection


def read(stack: Stack, origin: str, artifacts: str | None, announce: Callable[[str], None]) -> Source:
    """Reads a folder `mlruns`, a SQLite file or a server. Raises MlstackError for anything else."""
    staging = _emptied(stack.folder / STAGING)
    if urlsplit(origin).scheme in ("http", "https"):
        return _read_server(stack, origin.rstrip("/"), staging, announce)
    path = Path(re.sub(r"^(sqlite:///|file://)", "", origin)).expanduser().absolute()
    more = [Path(artifacts).expanduser().absolute()] if artifacts else []
    if more and not more[0].is_dir():
        raise MlstackError(f"ARTIFACTS={artifacts} is no folder.", "Artifacts are looked for in it.", "check ARTIFACTS")
    if path.is_dir():
        return _read_files(stack, path, staging, more, announce)
    if path.is_file() and _begins(path, _SQLITE):
        return _read_sqlite(stack, path, staging, more, announce)
    raise MlstackError(
        f"FROM={origin} is neither a folder mlruns, nor a SQLite file, nor the address of a server.",
        "Nothing was imported.",
        "make import FROM=path/to/mlruns, FROM=path/to/mlflow.db or FROM=https://server",
    )


def discard(stack: Stack) -> None:
    """Removes what was read."""
    shutil.rmtree(stack.folder / STAGING, ignore_errors=True)


def _read_files(stack: Stack, path: Path, staging: Path, more: list[Path], announce: Callable[[str], None]) -> Source:
    mlruns = path / "mlruns" if (path / "mlruns").is_dir() else path
    if not any((folder / "meta.yaml").is_file() for folder in (*mlruns.iterdir(), *(mlruns / "models").glob("*"))):
        raise MlstackError(
            f"{mlruns} is no folder of MLflow's: none of its folders has a meta.yaml.",
            "Nothing was imported.",
            "make import FROM=path/to/mlruns",
        )
    announce(f"reading {mlruns}")
    problems = _in_container(stack, "files", staging, mlruns)
    roots = (mlruns, *_existing(mlruns.parent / name for name in ARTIFACTS[1:]), *more)
    return Source(staging / DATABASE, tuple(root.resolve() for root in roots), problems=tuple(problems))


def _read_sqlite(stack: Stack, path: Path, staging: Path, more: list[Path], announce: Callable[[str], None]) -> Source:
    announce(f"copying {path}")
    # SQLite's own backup: consistent, even while an MLflow server writes.
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as original:
        if not original.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            raise MlstackError(f"{path} is no database of MLflow's.", "Nothing was imported.", "check FROM")
        with closing(sqlite3.connect(staging / DATABASE)) as copy:
            original.backup(copy)
    announce("migrating the copy to the present schema")
    problems = _in_container(stack, "upgrade", staging)
    roots = (*_existing(path.parent / name for name in ARTIFACTS), *more)
    return Source(staging / DATABASE, tuple(root.resolve() for root in roots), problems=tuple(problems))


def _read_server(stack: Stack, url: str, staging: Path, announce: Callable[[str], None]) -> Source:
    if urlsplit(url).username is not None:
        raise MlstackError(
            "FROM has a login in it.",
            "Every process of the host could read it.",
            f"FROM without it; {server.USERNAME} and {server.PASSWORD} in the environment",
        )
    _in_container(stack, "upgrade", staging)
    with closing(sqlite3.connect(staging / DATABASE)) as connection, (staging / TRACES).open("w", encoding="utf-8") as traces:
        problems = server.read(url, connection, traces, announce)
    announce("storing the traces")
    problems += _in_container(stack, "traces", staging)
    return Source(staging / DATABASE, url=url, problems=tuple(problems))


def _in_container(stack: Stack, action: str, staging: Path, source: Path | None = None) -> list[str]:
    """Runs an action of mlstack.jobs.importing as the source's owner. Raises MlstackError with its last line when it fails."""
    name = f"{stack.name}-import"
    DOCKER.output("rm", "--force", name)  # of an import that was killed
    owner = (source or stack.folder).stat() if settings.is_root() else None
    uid, gid = (owner.st_uid, owner.st_gid) if owner else (os.getuid(), os.getgid())
    if owner:
        for path in (staging, *staging.iterdir()):
            os.chown(path, uid, gid)
    mounts = [f'type=bind,"source={staging}",target=/staging']
    if source:
        mounts.append(f'type=bind,"source={source}",target=/source,readonly')
    confined = (
        "run", "--rm", "--name", name, "--network", "none", "--read-only", "--tmpfs", "/tmp:size=64m", "--cap-drop", "ALL",  # noqa: S108
        "--security-opt", "no-new-privileges:true", "--pids-limit", "128", "--memory", MEMORY, "--memory-swap", MEMORY,
        "--user", f"{uid}:{gid}", *(part for mount in mounts for part in ("--mount", mount)),
    )  # fmt: skip
    try:
        answer = DOCKER.output(*confined, stack.image("mlflow"), "python3", "-m", "mlstack.jobs.importing", action)
    except CommandFailed as error:
        if "No module named mlstack.jobs.importing" in error.stderr:
            raise MlstackError(
                "the images are older than this version of the project.", "They lack what is needed.", "make up"
            ) from error
        lines = error.stderr.strip().splitlines() or [error.wrong]
        raise MlstackError(f"the source could not be read: {lines[-1].strip()}", "Nothing was imported.", "check FROM") from error
    problems: list[str] = json.loads(answer)
    return problems


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def _existing(folders: Iterable[Path]) -> list[Path]:
    return [folder for folder in folders if folder.is_dir()]


def _begins(path: Path, content: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(content)) == content
