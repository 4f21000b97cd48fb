"""What `make status` shows."""

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from mlstack.host.render import UNKNOWN, size, span
from mlstack.host.status import Service, Status, Volume


def screen(status: Status) -> Group:
    """One screen: services, volumes, schema, backup, and what to do if something is wrong."""
    return Group(_services(status), _facts(status), *_advice(status))


def _services(status: Status) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("service", no_wrap=True, overflow="ignore")  # a shortened name or address is useless
    for column in ("state", "up", "memory", "version"):
        table.add_column(column)
    table.add_column("where", no_wrap=True, overflow="ignore")
    for service in status.services:
        colour = "green" if service.is_healthy else "red"
        state = service.health or service.state
        is_up = service.uptime is not None
        table.add_row(
            service.name,
            f"[{colour}]{escape(state)}[/]",
            span(service.uptime) if service.uptime is not None else "",
            _memory(service) if is_up else "",
            escape(service.version or UNKNOWN) if service.url else "",
            service.url or "",
        )
    return table


def _memory(service: Service) -> str:
    return size(service.memory) + (f" of {size(service.memory_limit)}" if service.memory_limit else "")


def _facts(status: Status) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("")
    if status.volumes:
        table.add_row("[dim]volumes[/]", ", ".join(_volume(volume, status.project) for volume in status.volumes))
    if status.schema or not status.is_down:
        made_by = f" ({escape(status.schema_is_of)})" if status.schema_is_of else ""
        table.add_row("[dim]schema[/]", f"{escape(status.schema or UNKNOWN)}{made_by}")
    backup = status.backup
    last = f"{backup.folder}, {size(backup.size)}, {span(backup.age)} old" if backup else "none yet: make backup"
    table.add_row("[dim]backup[/]", last)
    return table


def _volume(volume: Volume, project: str) -> str:
    at_least = "" if volume.is_complete or volume.size is None else "more than "
    return f"{volume.name.removeprefix(f'{project}_')} {at_least}{size(volume.size)}"


def _advice(status: Status) -> list[str]:
    if status.problem:
        return [f"\n{escape(status.problem[0].upper() + status.problem[1:])} [bold]make up[/] starts it, or says how."]
    if status.is_down:
        return ["\nThe stack is down. [bold]make up[/] starts it."]
    if not status.is_healthy:
        return ["\nNot every service is healthy: [bold]make doctor[/] says why."]
    return []
