"""`make verify`: a backup proves itself in a stack that is thrown away."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import env_file, folders, preflight
from mlstack.host.backup import log, stack
from mlstack.host.backup.manifest import Backup
from mlstack.host.commands import restore
from mlstack.host.compose import attached, compose


def verify(project: Path, backup: Backup) -> None:
    """Restores a checked backup beside the running stack, starts MLflow on it, and removes it again. Raises MlstackError."""
    with throw_away(project, backup.manifest.bucket) as other:
        restore.load(other, backup)
        log.info("starting MLflow on what was restored")
        if attached(other, "up", "--detach", "--wait", "--no-build", "mlflow"):
            raise MlstackError(
                "MLflow does not start on what was restored (docker compose says why, above).",
                "This backup would restore its data, and not a working stack.",
                "take another backup, or report what the lines above say",
            )


@contextmanager
def throw_away(project: Path, bucket: str) -> Iterator[Path]:
    """A project like this one with its images, and a name, ports, secrets and volumes of its own; removed afterwards.

    Its bucket is called as in the backup: rows may lead to it by that name.
    """
    images = {f"{service.upper()}_IMAGE": image for service, image in stack.of_project(project).images.items()}
    name = f"{stack.of_project(project).name}-verify"
    # What the shell sets would win over the other project's .env, and lead back to this stack.
    settings.forget(settings.VARIABLES)
    with tempfile.TemporaryDirectory(prefix="mlstack-verify-") as folder:
        other = Path(folder)
        for file in ("docker-compose.yml", ".env.example"):
            shutil.copy2(project / file, other / file)
        shutil.copytree(project / "compose", other / "compose")
        ports = dict(zip(preflight.PORTS, map(str, preflight.free_ports(len(preflight.PORTS))), strict=True))
        env_file.ensure(other)
        env_file.change(other, COMPOSE_PROJECT_NAME=name, MINIO_BUCKET=bucket, LOG_DIR=str(other / "logs"), **ports, **images)
        folders.prepare(other)
        try:
            _remove(other)  # what a killed verification left
            yield other
        finally:
            _remove(other)


def _remove(other: Path) -> None:
    compose(other, "down", "--volumes", "--remove-orphans", "--timeout", "10")
