"""`make rotate`: every secret regenerated, on a running stack, without losing data.

The new values are written to `.env.next` first. Then the services get them, step by step, and finally `.env.next`
becomes `.env`. Each step may be repeated, so that an interrupted rotation resumes with its own values.
"""

from collections.abc import Mapping

from mlstack import postgres, settings
from mlstack.errors import MlstackError
from mlstack.host import env_file, preflight
from mlstack.host.backup import data_services, manifest, signature
from mlstack.host.commands import start
from mlstack.host.stack import Stack
from mlstack.logger import get_logger
from mlstack.settings import Login

log = get_logger("mlstack.rotate")


def rotate(stack: Stack) -> Stack:
    """Replaces every secret in the services and in `.env`. Raises MlstackError; then the same command resumes."""
    if problems := preflight.check_env(stack):
        raise ExceptionGroup("refused", problems)
    _refuse_secrets_of_the_shell(stack)
    if env_file.is_being_rotated(stack.folder):
        log.info("going on with the secrets of .env.next, which an earlier rotation wrote")
    else:
        stack = start.up(stack)  # the services know the secrets of .env before these change
        # While an external server is used, nothing could give its owner's new password to the stack's own.
        env_file.begin_rotation(stack.folder, *(["POSTGRES_PASSWORD"] if stack.catalog.is_external else []))
        log.info("wrote fresh secrets to .env.next")
    fresh = Stack.of(stack.folder, file=env_file.NEXT)
    if own := data_services.data_services(stack):
        _compose(stack, "up", "--detach", "--wait", "--no-build", *own)
    data_services.stop_clients(stack)  # they would continue to write with the old keys
    _rekey(stack, fresh)
    _change_passwords(stack, fresh)
    _sign_backups(stack, fresh)
    env_file.end_rotation(stack.folder)
    log.info("the new secrets are in .env; the services start with them")
    return start.up(stack.reread())


def _refuse_secrets_of_the_shell(stack: Stack) -> None:
    secrets = [name for name in settings.shadowed(stack.env) if settings.VARIABLES[name].secret]
    if secrets:
        raise MlstackError(
            f"{', '.join(secrets)} comes from your shell.",
            "It would win over the new value in .env.",
            f"unset {' '.join(secrets)}",
        )


def _rekey(stack: Stack, fresh: Stack) -> None:
    """Encrypts MLflow's stored secrets with the new keys. The values are passed in the environment, not as arguments."""
    following = {f"NEXT_{name}": fresh.values[name] for name in settings.ENCRYPTION}
    current = {name: value for name, value in stack.values.items() if name in settings.ENCRYPTION}
    flags = [flag for name in (*current, *following) for flag in ("--env", name)]
    _compose(
        stack,
        *("run", "--rm", "--no-deps", "-T", *flags, "migration", "python3", "-m", "mlstack.jobs.bootstrap", "rekey"),
        environment=current | following,
    )


def _change_passwords(stack: Stack, fresh: Stack) -> None:
    """Changes the passwords that the bootstrap cannot set, because it logs in with them."""
    if not stack.has_administrator:
        for old, new in zip(_roles(stack), _roles(fresh), strict=True):
            _change_password(old, new)
    elif stack.owner.is_external:
        log.info("the password of %s stays: the external Postgres' administrators set it", stack.owner.user)
    else:
        _change_password(stack.server, fresh.server)


def _roles(stack: Stack) -> tuple[Login, ...]:
    scoring = (stack.serving, stack.scoring) if "scoring" in stack.services.by_name else ()
    return (stack.tracking, stack.accounts, stack.reader, *scoring)


def _change_password(old: Login, new: Login) -> None:
    if postgres.accepts(new):
        return
    with postgres.connected(old) as connection:
        postgres.set_password(connection, new)
    log.info("Postgres knows the new password of %s", new.user)


def _sign_backups(stack: Stack, fresh: Stack) -> None:
    """Signs the backups of this stack with its new key."""
    for folder in manifest.folders(stack.backups):
        try:
            if signature.is_authentic(folder, stack.backup_key):
                signature.sign(folder, fresh.backup_key)
        except OSError as error:
            log.warning("the backup %s keeps the old signature, and make restore will ask: %s", folder.name, error)


def _compose(stack: Stack, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
    if stack.compose.attached(*arguments, environment=environment):
        raise MlstackError(
            f"the rotation stopped at docker compose {arguments[0]}, which says why above.",
            "Some services may know the new secrets already; none is lost: they are in .env.next.",
            "make rotate resumes it",
        )
