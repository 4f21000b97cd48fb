"""`make verify`: restores a backup into a temporary stack."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import env_file, folders, preflight, services
from mlstack.host.backup import log
from mlstack.host.backup.manifest import Backup
from mlstack.host.commands import restore
from mlstack.host.services import FILE
from mlstack.host.stack import Stack


def verify(stack: Stack, backup: Backup) -> None:
    """Restores a checked backup beside the running stack, starts MLflow on it, and removes it again. Raises MlstackError."""
    with throw_away(stack, backup.manifest.bucket) as other:
        restore.load(other, backup)
        log.info("starting MLflow on what was restored")
        if other.compose.attached("up", "--detach", "--wait", "--no-build", "mlflow"):
            raise MlstackError(
                "MLflow does not start on what was restored (docker compose says why, above).",
                "This backup would restore its data, and not a working stack.",
                "take another backup, or report what the lines above say",
            )


@contextmanager
def throw_away(stack: Stack, bucket: str) -> Iterator[Stack]:
    """A temporary stack with this one's images, but its own name, ports, secrets and volumes; removed afterwards.

    Its bucket has the backup's name, which rows may contain.
    """
    images = {service.image_variable: service.image for service in stack.services.with_image}
    # Variables of the shell would override the temporary stack's .env, and lead back to this stack.
    settings.forget(settings.VARIABLES)
    with tempfile.TemporaryDirectory(prefix="mlstack-verify-") as folder:
        place = Path(folder)
        for file in (FILE, ".env.example"):
            shutil.copy2(stack.folder / file, place / file)
        shutil.copytree(stack.folder / "compose", place / "compose")
        variables = services.read(stack.folder, {}).ports
        ports = dict(zip(variables, map(str, preflight.free_ports(len(variables))), strict=True))
        buckets = {"MINIO_BUCKET": bucket, "DATASETS_BUCKET": stack.keys.datasets}
        name = {"COMPOSE_PROJECT_NAME": f"{stack.name}-verify", "LOG_DIR": str(place / "logs"), "STORAGE": stack.storage}
        env_file.ensure(place)
        env_file.change(place, **name, **buckets, **ports, **images)
        other = Stack.of(place)
        folders.prepare(other)
        try:
            _remove(other)  # the leftovers of a killed verification
            yield other
        finally:
            _remove(other)


def _remove(other: Stack) -> None:
    other.compose.output("down", "--volumes", "--remove-orphans", "--timeout", "10")
