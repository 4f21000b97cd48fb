"""`make rotate`: every secret regenerated, on a running stack, with all data still readable.

The new values are written to `.env.next` first. Then the services learn them, step by step, and last `.env.next` becomes
`.env`. Each step may be repeated, so that a rotation that was interrupted goes on with the values it began with.
"""

from dataclasses import replace
from pathlib import Path

from mlstack import postgres, settings
from mlstack.errors import MlstackError
from mlstack.host import env_file, preflight
from mlstack.host.backup import manifest, signature
from mlstack.host.commands import start
from mlstack.host.compose import attached
from mlstack.logger import get_logger

log = get_logger("mlstack.rotate")


def rotate(project: Path) -> None:
    """Replaces every secret in the services and in `.env`. Raises MlstackError; then the same command goes on."""
    if problems := preflight.check_env(project):
        raise ExceptionGroup("refused", problems)
    _refuse_secrets_of_the_shell(project)
    values = settings.of_project(project)
    if env_file.is_being_rotated(project):
        log.info("going on with the secrets of .env.next, which an earlier rotation wrote")
    else:
        start.up(project)  # the services know the secrets of .env before these change
        env_file.begin_rotation(project)
        log.info("wrote fresh secrets to .env.next")
    fresh = settings.of_project(project, env_file.NEXT)
    _compose(project, "up", "--detach", "--wait", "--no-build", "postgres")
    _compose(project, "stop", "mlflow")  # it would go on writing with the old keys
    _rekey(project, fresh)
    _change_owner(values, fresh)
    _sign_backups(project, values, fresh)
    env_file.end_rotation(project)
    log.info("the new secrets are in .env; the services start with them")
    start.up(project)


def _refuse_secrets_of_the_shell(project: Path) -> None:
    secrets = [name for name in settings.shadowed(project) if settings.VARIABLES[name].secret]
    if secrets:
        raise MlstackError(
            f"{', '.join(secrets)} comes from your shell.",
            "It would win over the new value in .env.",
            f"unset {' '.join(secrets)}",
        )


def _rekey(project: Path, fresh: dict[str, str]) -> None:
    """What MLflow stored encrypted is encrypted with the new keys. The values go by environment, not by argument."""
    following = {f"NEXT_{name}": fresh[name] for name in settings.ENCRYPTION}
    current = {name: value for name, value in settings.of_project(project).items() if name in settings.ENCRYPTION}
    flags = [flag for name in (*current, *following) for flag in ("--env", name)]
    _compose(
        project,
        *("run", "--rm", "--no-deps", "-T", *flags, "migration", "python3", "-m", "mlstack.jobs.bootstrap", "rekey"),
        environment=current | following,
    )


def _change_owner(values: dict[str, str], fresh: dict[str, str]) -> None:
    """The one password that the bootstrap cannot set, because it logs in with it."""
    port = int(values["POSTGRES_PORT"])
    old, new = (replace(settings.database_owner(of), database="postgres", host="127.0.0.1", port=port) for of in (values, fresh))
    if postgres.accepts(new):
        return
    with postgres.connected(old) as connection:
        postgres.set_password(connection, new)
    log.info("Postgres knows the owner's new password")


def _sign_backups(project: Path, values: dict[str, str], fresh: dict[str, str]) -> None:
    """The backups that this stack signed carry its new signature."""
    for folder in manifest.folders(settings.backup_dir(project)):
        try:
            if signature.is_authentic(folder, values["BACKUP_KEY"]):
                signature.sign(folder, fresh["BACKUP_KEY"])
        except OSError as error:
            log.warning("the backup %s keeps the old signature, and make restore will ask: %s", folder.name, error)


def _compose(project: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
    if attached(project, *arguments, environment=environment):
        raise MlstackError(
            f"the rotation stopped at docker compose {arguments[0]}, which says why above.",
            "Some services may know the new secrets already; none is lost: they are in .env.next.",
            "make rotate goes on",
        )
