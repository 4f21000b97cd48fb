"""The commands behind `make`."""

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from mlstack import __version__, settings
from mlstack.errors import MlstackError

# Each command imports what only it needs: `make status` has no time for the others' libraries.
if TYPE_CHECKING:
    from mlstack.host.backup.manifest import Backup
    from mlstack.host.commands.backup import Taken
    from mlstack.host.services import Service
    from mlstack.host.stack import Stack

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
_UNSIGNED = (
    "Another stack or an older version made it, or it was changed since. Whoever made it decides which accounts the stack has"
    " and which models it loads. With BACKUP_KEY of the stack that made it in your shell, its signature can be checked."
)
INTERRUPTED = 130

# No option reads the environment: a forgotten `export YES=1` would answer every question.
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="For scripts.")]
OlderThan = Annotated[str, typer.Option(help="Leave alone what is younger: 30d, 12h.")]
Keep = Annotated[int | None, typer.Option("--keep", min=1, help="Remove all but the newest of this many backups.")]
BackupName = Annotated[str | None, typer.Argument(help="A folder, or its name in BACKUP_DIR; latest is the newest.")]
ServiceName = Annotated[str | None, typer.Argument(help="One of those that make status shows; all without it.")]
PartName = Annotated[str, typer.Argument(help="An optional part of the stack, such as scoring.")]
Store = Annotated[str, typer.Option("--to", help="minio or versitygw.")]
Person = Annotated[str, typer.Option(help="The name of an account or of a program.")]
Origin = Annotated[str | None, typer.Option("--from", help="A folder mlruns, a SQLite file, or the address of a server.")]
Prefix = Annotated[str, typer.Option(help="Put before the names of experiments and registered models.")]
Artifacts = Annotated[str | None, typer.Option(help="The folder of the artifacts, if it is not beside the source.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mlstack {__version__}")
        raise typer.Exit


@app.callback()
def mlstack(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")] = False,
) -> None:
    """A local machine-learning platform: the commands behind make."""


@app.command()
def env() -> None:
    """Write .env with fresh secrets, or add what a newer version needs. Existing values are kept."""
    from mlstack.host import preflight
    from mlstack.host.commands import start

    with _alone("make env", needs_env=False) as stack:
        _refuse(preflight.check_env(start.prepare_env(stack)))


@app.command()
def up() -> None:
    """Build what is missing, start everything, wait until it is healthy."""
    from mlstack.host.commands import start

    with _alone("make up", needs_env=False) as stack:
        started = start.up(stack)
    _show_urls(started)
    out.print("\nNext: open JupyterLab and run 01_first_run.ipynb. [dim]make help[/] lists every command.")


@app.command()
def down() -> None:
    """Stop everything. All data is kept."""
    from mlstack.host import folders

    with _alone("make down") as stack:
        _check(
            stack.compose.attached("down", "--remove-orphans", environment=stack.every_part), "the stack could not be stopped."
        )
        folders.tidy(stack.folder)
        has_data = bool(stack.engine.volumes(stack.name))
    if has_data:
        out.print("Stopped. Your data is in the volumes: [bold]make up[/] continues with it.")
    else:
        out.print("Nothing runs, and this stack has no data. [bold]make up[/] starts an empty one.")


@app.command()
def add(part: PartName) -> None:
    """Switch an optional part on: build it, start it, wait until it is healthy."""
    from mlstack.host.commands import parts

    with _alone("make add", needs_env=False) as stack:
        started = parts.add(stack, part)
    _show_urls(started)


@app.command()
def remove(part: PartName) -> None:
    """Switch an optional part off and stop it. Its data is kept."""
    from mlstack.host.commands import parts

    with _alone("make remove") as stack:
        parts.remove(stack, part)
    out.print(f"{escape(part)} is off. Its data is kept: [bold]make add PART={escape(part)}[/] continues with it.")


@app.command()
def reset(yes: Yes = False) -> None:
    """Delete all data of this stack, after asking."""
    from mlstack.host.backup.data_services import are_healthy, data_services
    from mlstack.host.commands import backup as backing_up
    from mlstack.host.commands import reset as resetting

    with _alone("make reset") as stack:
        losses = resetting.losses(stack)
        table = Table("volume", "size", "what is lost", title="make reset deletes")
        for loss in losses:
            table.add_row(loss.volume, loss.size, loss.cost)
        if losses:
            out.print(table)
        out.print("Images, .env, notebooks/ and logs/ stay.")
        if losses and not yes:
            _confirm("Delete this permanently?", "This deletes data permanently.", "make reset YES=1", "Nothing was deleted.")
            if are_healthy(stack, *data_services(stack)) and typer.confirm("Take a backup first?", default=True):
                _show_backup(backing_up.back_up(stack))
        resetting.reset(stack)
    out.print("Deleted. [bold]make up[/] starts an empty stack.")


@app.command()
def user(name: Person, yes: Yes = False) -> None:
    """Create a person's account in MLflow, or give it another password, and show the password once."""
    from mlstack.host.commands import accounts

    stack = _own_stack()
    if accounts.exists(stack, name):
        if not yes:
            _confirm(
                f"The account {name} exists already. Give it another password?",
                "Its present password would no longer work.",
                f"make user NAME={name} YES=1",
            )
        password = accounts.renew_password(stack, name)
    else:
        password = accounts.add(stack, name)
    address = stack.values["MLFLOW_TRACKING_URI"]
    out.print(f"The account [bold]{escape(name)}[/] has the password [bold]{password}[/]", soft_wrap=True)
    out.print("It is kept nowhere: hand it over now.")
    out.print("The account may read and edit everything, and delete the experiments and models that it creates.", soft_wrap=True)
    out.print(f"In a browser, MLflow is at {address}. A program on the host connects with:", soft_wrap=True)
    out.print(f"  export MLFLOW_TRACKING_URI={address}", soft_wrap=True)
    out.print(f"  export MLFLOW_TRACKING_USERNAME={escape(name)}", soft_wrap=True)
    out.print(f"  export MLFLOW_TRACKING_PASSWORD={password}", soft_wrap=True)


@app.command()
def user_remove(name: Person, yes: Yes = False) -> None:
    """Remove a person's account from MLflow. What it logged is kept."""
    from mlstack.host.commands import accounts

    stack = _own_stack()
    accounts.require_removable(stack, name)
    if not yes:
        _confirm(
            f"Remove the account {name} and its permissions? What it logged is kept.",
            "The account cannot be restored.",
            f"make user-remove NAME={name} YES=1",
        )
    accounts.remove(stack, name)
    out.print("Removed. Its password no longer works.")


@app.command()
def key(name: Person) -> None:
    """Generate a key for a program that uses the scoring service, in place of its old one, and show it once."""
    from mlstack.host.commands import keys

    stack = _own_stack()
    generated = keys.add(stack, name)
    out.print(f"The key of [bold]{escape(name)}[/] is [bold]{generated}[/]", soft_wrap=True)
    out.print("It is kept nowhere: hand it over now. Requests carry it as Authorization: Bearer KEY.", soft_wrap=True)
    out.print(f"The service is at {stack.services.by_name[keys.SERVICE].url}", soft_wrap=True)


@app.command()
def key_remove(name: Person) -> None:
    """Take the key of a program away."""
    from mlstack.host.commands import keys

    keys.remove(_own_stack(), name)
    out.print("Removed. Its key no longer works.")


@app.command()
def policy(
    model: Annotated[str, typer.Option(help="A registered model.")],
    file: Annotated[str | None, typer.Option(help="Store the definition in this file as the next version.")] = None,
    activate: Annotated[str | None, typer.Option(help="Let this version decide from now on; none: let no policy decide.")] = None,
    reason: Annotated[str, typer.Option(help="Why it is activated.")] = "",
) -> None:
    """Show the versions of a model's policy, store one, or activate one, and say what it would change."""
    from mlstack.host.commands import policies

    stack = _own_stack()
    if file is not None:
        version, changes = policies.put(stack, model, file)
        out.print(f"Version {version} is stored, and does not decide yet: it {escape(changes)}.", soft_wrap=True)
    if activate is not None:
        changes = policies.activate(stack, model, activate, reason)
        out.print(f"Version {escape(activate)} decides from now on: it {escape(changes)}." if changes else "No policy decides.")
    if file is None and activate is None:
        for line in policies.listed(stack, model) or ["The model has no policy."]:
            out.print(escape(line), soft_wrap=True)


@app.command(name="rotate")
def rotate_secrets(yes: Yes = False) -> None:
    """Regenerate every secret, in the services and in .env. All data is kept."""
    from mlstack.host.commands import rotate

    with _alone("make rotate") as stack:
        out.print("make rotate replaces every password, key and token of this stack. All data is kept.")
        out.print("The services restart: running notebooks lose their variables, and clients wait about a minute.")
        if not yes:
            _confirm("Continue?", "Running notebooks would lose their variables.", "make rotate YES=1")
        rotated = rotate.rotate(stack)
    _show_urls(rotated)
    out.print(
        "\nThe old secrets are rejected. Clients on the host read the new ones from .env; people's accounts in MLflow are kept."
        "\nReload JupyterLab with the link above, and restart the kernels of notebooks that run on the host."
    )


@app.command()
def backup(keep: Keep = None) -> None:
    """Copy everything in the stack while it runs: database and bucket, point-in-time consistent."""
    from mlstack.host.commands import backup as backing_up
    from mlstack.host.commands import start

    with _alone("make backup") as stack:
        taken = backing_up.back_up(start.prepare_env(stack), keep)  # the key that signs it may be new
    _show_backup(taken)


@app.command()
def restore(backup: BackupName = None, yes: Yes = False) -> None:
    """Replace the stack's content by a backup, after asking. Without a backup: list them."""
    from mlstack.host.commands import restore as restoring

    if not backup:
        _show_backups(_own_stack())
        return
    with _alone("make restore", needs_env=False) as stack:
        prepared, checked = _checked_backup(stack, backup)
        restoring.require_bucket(prepared, checked)
        if not restoring.is_authentic(prepared, checked):
            err.print(
                f"[bold yellow]The backup {checked.folder.name} is not signed by this stack.[/] {_UNSIGNED}", soft_wrap=True
            )
            if not yes:
                _confirm(
                    "Trust whoever made it?", "Its maker decides what this stack holds.", f"make restore BACKUP={backup} YES=1"
                )
        content = restoring.content(prepared)
        if not content.is_empty and not yes:
            _show_exchange(content.counts, checked.manifest.counts)
            _confirm(
                "Replace what this stack holds by the backup?",
                "What is newer than it would be lost.",
                f"make restore BACKUP={backup} YES=1",
            )
        restoring.restore(prepared, checked)
    out.print(f"Restored the backup {checked.folder.name}: every table and every artifact equals its manifest.", soft_wrap=True)
    _show_counts(checked.manifest.counts)


@app.command()
def storage(to: Store, yes: Yes = False) -> None:
    """Copy every version of artifacts and data sets to the other store, compare, and use that one, after asking."""
    from mlstack.host.commands import storage as moving

    with _alone("make storage") as stack:
        moving.require_possible(stack, to)
        present, target = f"{stack.name}_{stack.storage}", f"{stack.name}_{to}"
        out.print(
            f"make storage copies the volume {present} to {target}. MLflow is stopped meanwhile, and uploads fail.",
            soft_wrap=True,
        )
        if moving.has_volume(stack, to):
            out.print(f"[bold yellow]What the volume {target} holds from earlier is deleted.[/]", soft_wrap=True)
        if not yes:
            _confirm("Continue?", "MLflow would be stopped, and an earlier volume deleted.", f"make storage TO={to} YES=1")
        moved = moving.move(stack, to)
    _show_urls(moved)
    out.print(
        f"\nThe objects are in {to}. The volume {present} keeps what it held: docker volume rm {present} deletes it.",
        soft_wrap=True,
    )


@app.command()
def verify(backup: BackupName = None) -> None:
    """Restore a backup into a temporary stack, and compare. Without a backup: the newest."""
    from mlstack.host.commands import restore as restoring
    from mlstack.host.commands import verify as verifying

    with _alone("make verify", needs_env=False) as stack:
        prepared, checked = _checked_backup(stack, backup)
        if not restoring.is_authentic(prepared, checked):
            err.print(
                f"[bold yellow]The backup {checked.folder.name} is not signed by this stack.[/] {_UNSIGNED}", soft_wrap=True
            )
        verifying.verify(prepared, checked)
    out.print(
        f"The backup {checked.folder.name} is good: restored elsewhere, every table and every artifact equals its manifest.",
        soft_wrap=True,
    )
    _show_counts(checked.manifest.counts)


@app.command()
def upgrade() -> None:
    """Take a backup, build newer images, migrate, start and check; on failure roll back."""
    from mlstack.host.commands import upgrade as upgrading

    with _alone("make upgrade") as stack:
        done = upgrading.upgrade(stack)
    _show_backup(done.backup)
    out.print(f"Upgraded: MLflow's data was made by {done.mlflow_before or 'another MLflow'}, now {done.mlflow_after}.")


@app.command()
def status(as_json: Json = False) -> None:
    """Show services, volumes, schema and backup. Exits with 1 if a service is not healthy."""
    from mlstack.host import status as now
    from mlstack.host.render import status

    current = now.status(_own_stack(now.PATIENCE))
    if as_json:
        typer.echo(current.as_json())
    else:
        out.print(status.screen(current))
    if not current.is_healthy:
        raise typer.Exit(1)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check the host and the whole stack by using it; show cause and fix. Exits with 1 if a check failed."""
    from mlstack.host.doctor import Result, State, Subject, examine
    from mlstack.host.render import doctor
    from mlstack.logger import get_logger

    results: list[Result] = []
    with err.status("looking") as progress:
        for result in examine(
            Subject(_own_stack(needs_env=False)), lambda check: progress.update(f"{check.reach}: {check.name}")
        ):
            line = doctor.line(result)
            if line and not as_json:
                if result.reach not in {previous.reach for previous in results}:
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
    """Show what deleted runs, old versions, orphans and old images occupy; delete it permanently after asking."""
    from mlstack.host.commands import gc as cleaning
    from mlstack.host.render import gc

    with _alone("make gc") as stack:
        age = cleaning.age_of(older_than)
        with err.status("looking through the database and the bucket"):
            plan = cleaning.plan(stack, age)
        out.print(gc.screen(plan, older_than))
        if plan.is_empty:
            return
        if not yes:
            _confirm("Delete this permanently?", "This deletes data permanently.", "make gc YES=1", "Nothing was deleted.")
        with err.status("deleting") as progress:
            cleaning.carry_out(stack, plan, progress.update)
    out.print("Deleted.")


@app.command(name="import")
def import_(origin: Origin = None, prefix: Prefix = "", artifacts: Artifacts = None, yes: Yes = False) -> None:
    """Add what another MLflow holds: experiments, runs, artifacts, models and traces. Nothing that exists is changed."""
    from mlstack.host.commands import importing
    from mlstack.host.render import importing as screens
    from mlstack.host.render import progress

    if not origin:
        raise MlstackError("FROM is missing.", "It names what to import.", "make import FROM=mlruns, mlflow.db or https://server")
    with _alone("make import") as stack, importing.reading(stack):
        with err.status("reading the source") as status:
            plan = importing.plan(stack, origin, prefix, artifacts, status.update)
        out.print(screens.screen(plan))
        if not yes:
            out.print("A backup before it is advised: [bold]make backup[/]. Without one, an import is not undone in one step.")
            _confirm(
                "Import this?", "This adds to what the stack holds.", f"make import FROM={origin} YES=1", "Nothing was imported."
            )
        with progress.bar("artifacts", plan.size) as advance:
            report = importing.carry_out(stack, plan, lambda step: None, advance)
        out.print(screens.comparison(report))
    if not report.is_complete:
        raise MlstackError(
            "the stack does not have everything that is in the source.",
            "What is different or unreadable is named above; the rest is imported and equal.",
            "fix the source, then the same command again, which adds what is missing",
        )
    out.print("Imported: the stack has all of it, row by row and file by file.")


@app.command()
def logs(service: ServiceName = None) -> None:
    """Follow the logs of all services, or of one."""
    from mlstack.host.compose import followed_logs

    stack = _own_stack()
    _check(followed_logs(stack.compose, service, typer.echo), "the logs could not be read.")
    if not any(service in (None, name) for name in stack.containers):
        raise MlstackError("there is no container.", "Docker keeps the logs with the containers.", "make up starts the stack")


@app.command()
def urls() -> None:
    """Show the addresses of all pages."""
    _show_urls(_own_stack())


def main() -> NoReturn:
    """Runs a command; every error is shown as what is wrong, why it matters and what fixes it."""
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
    except typer.TyperException as error:  # a wrong command line; without one, the help has been printed
        if error.message:
            _print_error(MlstackError(error.message, "Nothing was done.", "make help lists every command"))
        code = error.exit_code
    except typer.Abort:
        code = INTERRUPTED
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would print a traceback after this message
        err.print("\nStopped. Nothing is broken: run the same command again.")
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


def _own_stack(patience: float | None = None, *, needs_env: bool = True) -> "Stack":
    """The stack of this folder, for every command. Raises MlstackError when its containers belong to another folder."""
    from mlstack.host import ownership
    from mlstack.host.stack import PATIENCE, Stack

    stack = Stack.of(settings.PROJECT, patience=patience or PATIENCE)
    ownership.require_own(stack)
    if needs_env and stack.env is None:
        raise MlstackError(
            "there is no .env here.",
            "It says which stack belongs to this folder; volumes of the usual name may be another folder's.",
            "make up starts a stack, make env writes .env alone (if it was lost: with what the containers were given)",
        )
    return stack


@contextmanager
def _alone(command: str, *, needs_env: bool = True) -> Iterator["Stack"]:
    """The stack of this folder, for a command that changes it. Its `.env` is read while no other command writes it."""
    from mlstack.host.lock import held

    with held(settings.PROJECT, command):
        yield _own_stack(needs_env=needs_env)


def _confirm(question: str, why: str, forced: str, declined: str = "Nothing was changed.") -> None:
    if not sys.stdin.isatty():
        raise MlstackError("there is no terminal to ask at.", why, f"{forced}, if you mean it")
    if not typer.confirm(question):
        out.print(declined)
        raise typer.Exit(1)


def _checked_backup(stack: "Stack", name: str | None) -> tuple["Stack", "Backup"]:
    from mlstack.host.commands import backup as backing_up
    from mlstack.host.commands import restore as restoring
    from mlstack.host.commands import start

    stack = start.prepare_env(stack)
    checked = restoring.checked(backing_up.find(stack, name))
    stack = start.prepare(stack)
    restoring.require_fits(stack, checked)
    return stack, checked


def _show_backup(taken: "Taken") -> None:
    from mlstack.host.render import size

    contents = taken.manifest
    out.print(
        f"Backup [bold]{taken.folder}[/]: {size(contents.bytes)}, of which {size(contents.new_bytes)} are new.", soft_wrap=True
    )
    _show_counts(contents.counts)
    for pruned in taken.pruned:
        out.print(f"Removed the backup {pruned.name}.")
    out.print(
        "Not in it: .env and its secrets (each stack has its own), notebooks/, packages added in Jupyter, and the scoring"
        " service's copies of models (it downloads them again)."
    )


def _show_backups(stack: "Stack") -> None:
    from mlstack.host.backup import manifest
    from mlstack.host.render import size, span

    backups = stack.backups
    # Without lines between the columns, so that a name, which is typed, fits on one line of 80 columns.
    columns = ("age", "local time", "size", "runs", "MLflow", "mlstack")
    table = Table(Column("backup", no_wrap=True), *columns, title=f"backups in {backups}", box=SIMPLE_HEAD)
    for folder in manifest.folders(backups):
        try:
            contents = manifest.read_manifest(folder)
        except MlstackError as error:
            table.add_row(folder.name, "", "", f"[red]{escape(error.wrong)}[/]")
            continue
        age, local_time = span((datetime.now(UTC) - contents.time).total_seconds()), contents.time.astimezone()
        runs = str(contents.counts.get("runs", 0))
        versions = (escape(contents.versions.get(name) or "?") for name in ("mlflow", "mlstack"))
        table.add_row(folder.name, age, f"{local_time:%d %b %H:%M}", size(contents.bytes), runs, *versions)
    if not table.row_count:
        out.print(f"There is no backup in {backups}. [bold]make backup[/] takes one.", soft_wrap=True)
        return
    out.print(table)
    out.print("[bold]make restore BACKUP=…[/] puts one in the place of what the stack holds, after asking.")


def _show_exchange(present: Mapping[str, int], coming: Mapping[str, int]) -> None:
    table = Table("", "now, will be lost", "in the backup", title="make restore replaces")
    for label in {**coming, **present}:
        table.add_row(escape(label), str(present.get(label, 0)), str(coming.get(label, 0)))
    out.print(table)


def _show_counts(counts: Mapping[str, int]) -> None:
    out.print("  " + ", ".join(f"{count:,} {escape(label)}" for label, count in counts.items()))


def _show_urls(stack: "Stack") -> None:
    values = stack.values
    settings.read(*stack.services.ports, "JUPYTER_TOKEN", "POSTGRES_DB", "MLFLOW_AUTH", values=values)

    def address(service: "Service") -> str:
        # A browser sends a cookie of 127.0.0.1 to all of its ports: host names separate the logins of the pages. Programs may
        # not resolve these names, so a file or a CI log gets the address, without a secret; on a terminal the link logs in.
        if not out.is_terminal:
            return service.url
        token = f"?token={values['JUPYTER_TOKEN']}" if service.name == "jupyter" else ""
        return service.url.replace("http://127.0.0.1:", f"http://{service.name}.localhost:") + token

    def login(service: "Service") -> str:
        is_open = service.name == "mlflow" and values["MLFLOW_AUTH"] == "off"
        return "open to everybody here" if is_open else service.login

    # Pages come after the services they need in the compose file, and first here.
    pages = [service for service in reversed(stack.services.long_running) if service.url]
    # Each address has its own line: the link with its token just fits into 80 columns.
    for service in pages:
        out.print(f"[bold]{service.title}[/]  [dim]{login(service)}[/]", soft_wrap=True)
        out.print(f"  {address(service)}", soft_wrap=True)
    out.print("The credentials are in .env, under these names.")
    if out.is_terminal:
        out.print("[dim]A browser that does not know *.localhost (older Safari) opens the same pages at 127.0.0.1.[/]")
