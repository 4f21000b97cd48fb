"""The commands behind `make`."""

import signal
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlstack import preflight, settings
from mlstack.compose import attached, containers
from mlstack.errors import MlstackError
from mlstack.lock import held
from mlstack.operations import reset as resetting
from mlstack.operations import start

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
PROJECT = settings.PROJECT
INTERRUPTED = 130

Yes = Annotated[bool, typer.Option("--yes", envvar="YES", help="Do not ask.")]
Service = Annotated[str | None, typer.Argument(help="postgres, minio, mlflow, jupyter, bootstrap or migration; all without it.")]


@app.command()
def env() -> None:
    """Write .env with fresh secrets, or add what a newer version needs. Values that are there stay."""
    with held(PROJECT, "make env"):
        start.prepare_env(PROJECT)
        _refuse(preflight.check_env(PROJECT))


@app.command()
def up() -> None:
    """Build what is missing, start everything, wait until it is healthy."""
    with held(PROJECT, "make up"):
        start.up(PROJECT)
    _show_urls()
    out.print("\nNext: open JupyterLab and run 01_first_run.ipynb. [dim]make help[/] lists every command.")


@app.command()
def down() -> None:
    """Stop everything. All data stays."""
    with held(PROJECT, "make down"):
        _check(attached(PROJECT, "down", "--remove-orphans"), "the stack could not be stopped.")
    out.print("Stopped. Your data is in the volumes: [bold]make up[/] goes on with it.")


@app.command()
def reset(yes: Yes = False) -> None:
    """Delete all data of this stack, after asking."""
    with held(PROJECT, "make reset"):
        losses = resetting.losses(PROJECT)
        table = Table("volume", "size", "what is lost", title="make reset deletes")
        for loss in losses:
            table.add_row(loss.volume, loss.size, loss.cost)
        if losses:
            out.print(table)
        out.print("Images, .env, notebooks/ and logs/ stay.")
        if losses and not yes:
            _confirm("Delete this for good?", "make reset YES=1")
        resetting.reset(PROJECT)
    out.print("Deleted. [bold]make up[/] starts an empty stack.")


@app.command()
def status() -> None:
    """Show each service and whether it is well. Exits with 1 if one is not."""
    found = containers(PROJECT)
    if not found:
        out.print("The stack is down. [bold]make up[/] starts it.")
        raise typer.Exit(1)
    table = Table("service", "state", "health", "since")
    for container in found:
        colour = "green" if container.is_well else "red"
        table.add_row(container.service, f"[{colour}]{container.state}[/]", container.health or "-", container.status)
    out.print(table)
    if not all(container.is_well for container in found):
        raise typer.Exit(1)


@app.command()
def logs(service: Service = None) -> None:
    """Follow the logs of all services, or of one."""
    _check(attached(PROJECT, "logs", "--follow", "--tail", "100", *([service] if service else [])), "the logs could not be read.")


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


def _confirm(question: str, forced: str) -> None:
    if not sys.stdin.isatty():
        raise MlstackError("there is no terminal to ask at.", "This deletes data for good.", f"{forced}, if you mean it")
    typer.confirm(question, abort=True)


def _show_urls() -> None:
    values = settings.of_project(PROJECT)
    settings.read(*preflight.PORTS, "JUPYTER_TOKEN", "POSTGRES_DB", values=values)
    # On a terminal the link logs in; in a file or a CI log there is no secret.
    token = f"?token={values['JUPYTER_TOKEN']}" if out.is_terminal else ""
    places = (
        ("JupyterLab", f"http://127.0.0.1:{values['JUPYTER_PORT']}/lab{token}", "JUPYTER_TOKEN"),
        ("MLflow", f"http://127.0.0.1:{values['MLFLOW_PORT']}", "MLFLOW_TRACKING_USERNAME and _PASSWORD"),
        ("MinIO", f"http://127.0.0.1:{values['MINIO_CONSOLE_PORT']}", "MINIO_ROOT_USER and _PASSWORD"),
        ("Postgres", f"127.0.0.1:{values['POSTGRES_PORT']}/{values['POSTGRES_DB']}", "POSTGRES_USER and _PASSWORD"),
    )
    for place, url, login in places:
        out.print(f"  [bold]{place:<11}[/] {url:<28} [dim]{login}[/]", soft_wrap=True)
    out.print("The credentials are in .env, under these names.")
