"""What the commands show at a terminal: only formatting, no access to the stack."""

from rich.filesize import decimal

UNKNOWN = "?"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def span(seconds: float) -> str:
    """A duration in at most two units: 40 s, 5 min, 3 h 20 min, 12 d."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE:.0f} min"
    if seconds < _DAY:
        return f"{seconds // _HOUR:.0f} h {seconds % _HOUR // _MINUTE:.0f} min"
    return f"{seconds // _DAY:.0f} d"


def size(count: int | None) -> str:
    """A number of bytes with a unit."""
    return UNKNOWN if count is None else decimal(count)
