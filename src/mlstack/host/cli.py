"""The commands behind `make`."""

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlstack import settings
from mlstack.errors import MlstackError

# What a command alone needs, it imports itself: `make status` has no time for the others' libraries.
if TYPE_CHECKING:
    from mlstack.host.backup.manifest import Backup
    from mlstack.host.commands.backup import Taken

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
_UNSIGNED = (
    "Another stack or an older version made it, or it was changed since. Whoever made it decides which accounts the stack has"
    " and which models it loads. With BACKUP_KEY of the stack that made it in your shell, its signature can be checked."
)
PROJECT = settings.PROJECT
INTERRUPTED = 130

# No option has a variable of the environment: `export YES=1`, long forgotten, would answer every question.
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="For scripts.")]
OlderThan = Annotated[str, typer.Option(help="Leave alone what is younger: 30d, 12h.")]
Keep = Annotated[int | None, typer.Option("--keep", min=1, help="Remove all but the newest of this many backups.")]
BackupName = Annotated[str | None, typer.Argument(help="A folder, or its name in BACKUP_DIR; latest is the newest.")]
Service = Annotated[str | None, typer.Argument(help="postgres, minio, mlflow, jupyter, bootstrap or migration; all without it.")]
Person = Annotated[str, typer.Option(help="The account's name.")]


@app.callback()
def own_stack_only() -> None:
    """A local machine-learning platform: the commands behind make."""
    from mlstack.host import ownership

    ownership.require_own(PROJECT)


@app.command()
def env() -> None:
    """Write .env with fresh secrets, or add what a newer version needs. Values that are there stay."""
    from mlstack.host import preflight
    from mlstack.host.commands import start

    with _alone("make env"):
        start.prepare_env(PROJECT)
        _refuse(preflight.check_env(PROJECT))


@app.command()
def up() -> None:
    """Build what is missing, start everything, wait until it is healthy."""
    from mlstack.host.commands import start

    with _alone("make up"):
        start.up(PROJECT)
    _show_urls()
    out.print("\nNext: open JupyterLab and run 01_first_run.ipynb. [dim]make help[/] lists every command.")


@app.command()
def down() -> None:
    """Stop everything. All data stays."""
    from mlstack.host import folders
    from mlstack.host.compose import attached, volumes

    with _alone("make down"):
        _check(attached(PROJECT, "down", "--remove-orphans"), "the stack could not be stopped.")
        folders.tidy(PROJECT)
    if volumes(settings.of_project(PROJECT)["COMPOSE_PROJECT_NAME"]):
        out.print("Stopped. Your data is in the volumes: [bold]make up[/] goes on with it.")
    else:
        out.print("Nothing runs, and this stack has no data. [bold]make up[/] starts an empty one.")


@app.command()
def reset(yes: Yes = False) -> None:
    """Delete all data of this stack, after asking."""
    from mlstack.host.backup.stack import DATA_SERVICES, are_well
    from mlstack.host.commands import backup as backing_up
    from mlstack.host.commands import reset as resetting

    with _alone("make reset"):
        losses = resetting.losses(PROJECT)
        table = Table("volume", "size", "what is lost", title="make reset deletes")
        for loss in losses:
            table.add_row(loss.volume, loss.size, loss.cost)
        if losses:
            out.print(table)
        out.print("Images, .env, notebooks/ and logs/ stay.")
        if losses and not yes:
            _confirm("Delete this for good?", "This deletes data for good.", "make reset YES=1", "Nothing was deleted.")
            if are_well(PROJECT, *DATA_SERVICES) and typer.confirm("Take a backup first?", default=True):
                _show_backup(backing_up.back_up(PROJECT))
        resetting.reset(PROJECT)
    out.print("Deleted. [bold]make up[/] starts an empty stack.")


@app.command()
def user(name: Person, yes: Yes = False) -> None:
    """Make a person's account in MLflow, or give it another password, and show the password once."""
    from mlstack.host.commands import accounts

    if accounts.exists(PROJECT, name):
        if not yes:
            _confirm(
                f"The account {name} exists already. Give it another password?",
                "Its present password would no longer work.",
                f"make user NAME={name} YES=1",
            )
        password = accounts.renew_password(PROJECT, name)
    else:
        password = accounts.add(PROJECT, name)
    address = settings.of_project(PROJECT)["MLFLOW_TRACKING_URI"]
    out.print(f"The account [bold]{escape(name)}[/] has the password [bold]{password}[/]", soft_wrap=True)
    out.print("It is kept nowhere: hand it over now. It may read and edit everything, and delete what it made.")
    out.print(f"In a browser, MLflow is at {address}. A program on this machine connects with:", soft_wrap=True)
    out.print(f"  export MLFLOW_TRACKING_URI={address}", soft_wrap=True)
    out.print(f"  export MLFLOW_TRACKING_USERNAME={escape(name)}", soft_wrap=True)
    out.print(f"  export MLFLOW_TRACKING_PASSWORD={password}", soft_wrap=True)


@app.command()
def user_remove(name: Person, yes: Yes = False) -> None:
    """Remove a person's account from MLflow. What it logged stays."""
    from mlstack.host.commands import accounts

    accounts.require_removable(PROJECT, name)
    if not yes:
        _confirm(
            f"Remove the account {name} and its permissions? What it logged stays.",
            "The account cannot be restored.",
            f"make user-remove NAME={name} YES=1",
        )
    accounts.remove(PROJECT, name)
    out.print("Removed. Its password no longer works.")


@app.command(name="rotate")
def rotate_secrets(yes: Yes = False) -> None:
    """Regenerate every secret, in the services and in .env. All data stays."""
    from mlstack.host.commands import rotate

    with _alone("make rotate"):
        out.print("make rotate replaces every password, key and token of this stack. All data stays.")
        out.print("The services restart: running notebooks lose their variables, and clients wait about a minute.")
        if not yes:
            _confirm("Go on?", "Running notebooks would lose their variables.", "make rotate YES=1")
        rotate.rotate(PROJECT)
    _show_urls()
    out.print(
        "\nThe old secrets are refused. Clients on this machine read the new ones from .env; MLflow's accounts of people stay."
        "\nReload JupyterLab with the link above, and restart the kernels of notebooks that run on this machine."
    )


@app.command()
def backup(keep: Keep = None) -> None:
    """Copy everything that the stack holds, while it runs: database and bucket as of one moment."""
    from mlstack.host.commands import backup as backing_up
    from mlstack.host.commands import start

    with _alone("make backup"):
        start.prepare_env(PROJECT)  # the key that signs it may be new
        taken = backing_up.back_up(PROJECT, keep)
    _show_backup(taken)


@app.command()
def restore(backup: BackupName = None, yes: Yes = False) -> None:
    """Put a backup in the place of what the stack holds, after asking. Without a backup: list them."""
    from mlstack.host.commands import restore as restoring

    if not backup:
        _show_backups()
        return
    with _alone("make restore"):
        found = _checked_backup(backup)
        restoring.require_bucket(PROJECT, found)
        if not restoring.is_authentic(PROJECT, found):
            err.print(f"[bold yellow]The backup {found.folder.name} is not signed by this stack.[/] {_UNSIGNED}", soft_wrap=True)
            if not yes:
                _confirm(
                    "Trust whoever made it?", "Its maker decides what this stack holds.", f"make restore BACKUP={backup} YES=1"
                )
        there = restoring.content(PROJECT)
        if not there.is_empty and not yes:
            _show_exchange(there.counts, found.manifest.counts)
            _confirm(
                "Replace what this stack holds by the backup?",
                "What is newer than it would be lost.",
                f"make restore BACKUP={backup} YES=1",
            )
        restoring.restore(PROJECT, found)
    out.print(f"Restored the backup {found.folder.name}: every table and every artifact equals its manifest.", soft_wrap=True)
    _show_counts(found.manifest.counts)


@app.command()
def verify(backup: BackupName = None) -> None:
    """Restore a backup into a stack that is thrown away, and compare. Without a backup: the newest."""
    from mlstack.host.commands import restore as restoring
    from mlstack.host.commands import verify as verifying

    with _alone("make verify"):
        found = _checked_backup(backup)
        if not restoring.is_authentic(PROJECT, found):
            err.print(f"[bold yellow]The backup {found.folder.name} is not signed by this stack.[/] {_UNSIGNED}", soft_wrap=True)
        verifying.verify(PROJECT, found)
    out.print(
        f"The backup {found.folder.name} is good: restored elsewhere, every table and every artifact equals its manifest.",
        soft_wrap=True,
    )
    _show_counts(found.manifest.counts)


@app.command()
def upgrade() -> None:
    """Take a backup, build newer images, migrate, start and check; on failure go back to before."""
    from mlstack.host.commands import upgrade as upgrading

    with _alone("make upgrade"):
        done = upgrading.upgrade(PROJECT)
    _show_backup(done.backup)
    out.print(f"Upgraded: MLflow's data was made by {done.mlflow_before or 'another MLflow'}, now {done.mlflow_after}.")


@app.command()
def status(as_json: Json = False) -> None:
    """Show services, volumes, schema and backup. Exits with 1 if a service is not well."""
    from mlstack.host import status as now
    from mlstack.host.render import status

    found = now.status(PROJECT)
    if as_json:
        typer.echo(found.as_json())
    else:
        out.print(status.screen(found))
    if not found.is_well:
        raise typer.Exit(1)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine and the whole stack by using it; say cause and fix. Exits with 1 if a check failed."""
    from mlstack.host.doctor import Result, State, Subject, examine
    from mlstack.host.render import doctor
    from mlstack.logger import get_logger

    results: list[Result] = []
    with err.status("looking") as progress:
        for result in examine(Subject(PROJECT), lambda check: progress.update(f"{check.reach}: {check.name}")):
            line = doctor.line(result)
            if line and not as_json:
                if result.reach not in {each.reach for each in results}:
                    out.print(f"[bold]{result.reach}[/]")
                out.print(line)
            results.append(result)
    if as_json:
        typer.echo(doctor.as_json(results))
    else:
        out.print(doctor.end(results))
    failed = [result.name for result in results if result.state is State.FAILED]
    get_logger("mlstack.doctor").info("%d checks, failed: %s", len(results), ", ".join(failed) or "none")
    if not all(result.ok for result in results):
        raise typer.Exit(1)


@app.command()
def gc(older_than: OlderThan = "30d", yes: Yes = False) -> None:
    """Show what deleted runs, old versions, orphans and old images occupy; delete it for good after asking."""
    from mlstack.host.commands import gc as cleaning
    from mlstack.host.render import gc

    with _alone("make gc"):
        age = cleaning.age_of(older_than)
        with err.status("looking through the database and the bucket"):
            plan = cleaning.plan(PROJECT, age)
        out.print(gc.screen(plan, older_than))
        if plan.is_empty:
            return
        if not yes:
            _confirm("Delete this for good?", "This deletes data for good.", "make gc YES=1", "Nothing was deleted.")
        with err.status("deleting") as progress:
            cleaning.carry_out(PROJECT, plan, progress.update)
    out.print("Deleted.")


@app.command()
def logs(service: Service = None) -> None:
    """Follow the logs of all services, or of one."""
    from mlstack.host.compose import followed_logs

    _check(followed_logs(PROJECT, service, typer.echo), "the logs could not be read.")


@app.command()
def urls() -> None:
    """Show where everything is."""
    _show_urls()


def main() -> NoReturn:
    """Runs a command; every error reaches the user as what is wrong, why it matters and what fixes it."""
    sys.exit(_run())


def _run() -> int:
    code = 1
    try:
        code = int(app(standalone_mode=False) or 0)
    except MlstackError as error:
        _print_error(error)
    except ExceptionGroup as group:
        refused, others = group.split(MlstackError)
        if others:
            raise others from None
        for problem in refused.exceptions if refused else ():
            _print_error(problem)
    except typer.TyperException as error:  # a wrong command line; without any, the help is printed already
        if error.message:
            _print_error(MlstackError(error.message, "Nothing was done.", "make help lists every command"))
        code = error.exit_code
    except typer.Abort:
        code = INTERRUPTED
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would print a traceback over the last words
        err.print("\nStopped. Nothing is broken: the same command goes on where this one ended.")
    return code


def _print_error(error: BaseException) -> None:
    first, *rest = str(error).splitlines()
    err.print(f"[bold red]mlstack:[/] {escape(first)}", *(f"         {escape(line)}" for line in rest), sep="\n", soft_wrap=True)


def _refuse(problems: list[MlstackError]) -> None:
    if problems:
        raise ExceptionGroup("refused", problems)


def _check(exit_code: int, wrong: str) -> None:
    if exit_code not in (0, INTERRUPTED):
        raise MlstackError(wrong, "docker compose says why, above.", "scripts/engine.sh check")


@contextmanager
def _alone(command: str) -> Iterator[None]:
    from mlstack.host.lock import held

    with held(PROJECT, command):
        yield


def _confirm(question: str, why: str, forced: str, declined: str = "Nothing was changed.") -> None:
    if not sys.stdin.isatty():
        raise MlstackError("there is no terminal to ask at.", why, f"{forced}, if you mean it")
    if not typer.confirm(question):
        out.print(declined)
        raise typer.Exit(1)


def _checked_backup(name: str | None) -> "Backup":
    from mlstack.host.commands import backup as backing_up
    from mlstack.host.commands import restore as restoring
    from mlstack.host.commands import start

    start.prepare_env(PROJECT)
    found = restoring.checked(backing_up.find(PROJECT, name))
    start.prepare(PROJECT)
    restoring.require_fits(PROJECT, found)
    return found


def _show_backup(taken: "Taken") -> None:
    from mlstack.host.commands import backup as backing_up

    found, size = taken.manifest, backing_up.in_units
    out.print(f"Backup [bold]{taken.folder}[/]: {size(found.bytes)}, of which {size(found.new_bytes)} are new.", soft_wrap=True)
    _show_counts(found.counts)
    for pruned in taken.pruned:
        out.print(f"Removed the backup {pruned.name}.")
    out.print("Not in it: .env and its secrets (each stack has its own), notebooks/, packages added in Jupyter.")


def _show_backups() -> None:
    from mlstack.host.backup import manifest
    from mlstack.host.commands import backup as backing_up
    from mlstack.host.render import span

    backups = settings.backup_dir(PROJECT)
    table = Table("backup", "age", "local time", "size", "runs", "artifacts", "MLflow", title=f"backups in {backups}")
    for folder in manifest.folders(backups):
        try:
            found = manifest.read_manifest(folder)
        except MlstackError as error:
            table.add_row(folder.name, "", "", f"[red]{escape(error.wrong)}[/]")
            continue
        runs, artifacts = (str(found.counts.get(what, 0)) for what in ("runs", "artifacts"))
        age, made = span((datetime.now(UTC) - found.time).total_seconds()), f"{found.time.astimezone():%Y-%m-%d %H:%M}"
        size, version = backing_up.in_units(found.bytes), escape(found.versions["mlflow"] or "?")
        table.add_row(folder.name, age, made, size, runs, artifacts, version)
    if not table.row_count:
        out.print(f"There is no backup in {backups}. [bold]make backup[/] takes one.", soft_wrap=True)
        return
    out.print(table)
    out.print("[bold]make restore BACKUP=…[/] puts one in the place of what the stack holds, after asking.")


def _show_exchange(there: Mapping[str, int], coming: Mapping[str, int]) -> None:
    table = Table("", "now, will be lost", "in the backup", title="make restore replaces")
    for what in {**coming, **there}:
        table.add_row(escape(what), str(there.get(what, 0)), str(coming.get(what, 0)))
    out.print(table)


def _show_counts(counts: Mapping[str, int]) -> None:
    out.print("  " + ", ".join(f"{count:,} {escape(what)}" for what, count in counts.items()))


def _show_urls() -> None:
    from mlstack.host import preflight

    values = settings.of_project(PROJECT)
    settings.read(*preflight.PORTS, "JUPYTER_TOKEN", "POSTGRES_DB", "MLFLOW_AUTH", values=values)
    # On a terminal the link logs in; in a file or a CI log there is no secret.
    token = f"?token={values['JUPYTER_TOKEN']}" if out.is_terminal else ""
    mlflow_login = "MLFLOW_TRACKING_USERNAME and _PASSWORD" if values["MLFLOW_AUTH"] == "on" else "open to everybody here"

    def url(name: str, port: str) -> str:
        # A browser sends a cookie of 127.0.0.1 to each of its ports: names keep the logins of the pages apart. Programs may
        # not know these names, so that a file or a CI log has the address.
        return f"http://{f'{name}.localhost' if out.is_terminal else '127.0.0.1'}:{values[port]}"

    places = (
        ("JupyterLab", f"{url('jupyter', 'JUPYTER_PORT')}/lab{token}", "JUPYTER_TOKEN"),
        ("MLflow", url("mlflow", "MLFLOW_PORT"), mlflow_login),
        ("MinIO", url("minio", "MINIO_CONSOLE_PORT"), "MINIO_CONSOLE_USER and _PASSWORD, for reading"),
        ("Postgres", f"127.0.0.1:{values['POSTGRES_PORT']}/{values['POSTGRES_DB']}", "READER_DB_USER and _PASSWORD, for reading"),
    )
    # An address has a line of its own: the link with its token just fits into 80 columns.
    for place, address, login in places:
        out.print(f"[bold]{place}[/]  [dim]{login}[/]", soft_wrap=True)
        out.print(f"  {address}", soft_wrap=True)
    out.print("The credentials are in .env, under these names.")
    if out.is_terminal:
        out.print("[dim]A browser that does not know *.localhost (older Safari) opens the same pages at 127.0.0.1.[/]")
