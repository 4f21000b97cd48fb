"""`.env`: made from `.env.example`, completed by newer versions, never overwritten."""

import difflib
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.settings import DETECTED, GENERATED, VARIABLES

# 128 bits, in letters that need no quoting in any file, shell, URI or SQL.
SECRET_BYTES = 16
PRIVATE = 0o600
# Who is root on the host is this user in the containers: none of them runs as root.
UID_FOR_ROOT = 1000
_CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS
)


@dataclass(frozen=True)
class Changes:
    """What `ensure` did to `.env`."""

    created: bool = False
    added: tuple[str, ...] = ()
    made_private: bool = False


def ensure(project: Path, generated_is_lost: Callable[[str], str | None] = lambda name: None) -> Changes:
    """Writes `.env`, or adds the keys that it lacks; never changes a value that is there.

    `generated_is_lost` is asked before a secret is made: it says why a fresh one cannot work, if so, and nothing is written.
    Raises MlstackError then, and when the file cannot be read or written.
    """
    path = (project / ".env").resolve()
    example = (project / ".env.example").read_text(encoding="utf-8")
    present = _text(path)
    # A key that is there without a value counts as missing, unless the example leaves it empty too.
    there = {binding.key: binding.value for binding in _bindings(present or "") if binding.key}
    wanted = dotenv_values(stream=StringIO(example), interpolate=False)
    missing = {name: value for name, value in wanted.items() if not there.get(name) and (value or name not in there)}
    for name, value in missing.items():
        if value == GENERATED and (reason := generated_is_lost(name)):
            raise MlstackError(f"{name} is missing from .env, and a fresh one would not fit: {reason}", "Nothing was changed.",
                               "put the old .env back; or start empty with make reset")  # fmt: skip
    text = _filled(example) if present is None else _completed(present, example, missing)
    if text != present:
        _write(path, text)
    return Changes(created=present is None, added=tuple(missing) if present is not None else (), made_private=_make_private(path))


def problems(project: Path) -> list[str]:
    """What in `.env` would be read differently than meant, or not at all. Shows no secret."""
    text = _text(project / ".env")
    if text is None:
        return [".env is missing (make env writes it)"]
    found: list[str] = []
    seen: set[str] = set()
    for binding in _bindings(text):
        line = binding.original.line + len(binding.original.string) - len(binding.original.string.lstrip("\r\n"))
        if binding.error or (binding.key and binding.value is None):
            found.append(f".env line {line} is not KEY=value: half of it is missing, or a quote is not closed")
        elif binding.key:
            if binding.key in seen:
                found.append(f".env line {line} sets {binding.key} a second time")
            seen.add(binding.key)
            if reason := _ambiguity(binding):
                found.append(f".env line {line}: {binding.key} {reason}")
    return found + settings.complaints(settings.of_project(project))


def unknown_keys(project: Path) -> list[str]:
    """Keys of `.env` that nothing here reads, with the known key that each resembles."""
    names = [binding.key for binding in _bindings(_text(project / ".env") or "") if binding.key]
    return [_with_suggestion(name) for name in names if name not in VARIABLES]


def _with_suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, VARIABLES, n=1)
    return f"{name} (did you mean {close[0]}?)" if close else name


def _ambiguity(binding: Binding) -> str | None:
    """Why docker compose, shells and python-dotenv would not all read the same value."""
    raw = binding.original.string.split("=", 1)[1].strip()
    if raw.startswith("'"):
        return "has a backslash or a quote inside quotes: choose another value" if "\\" in raw or raw.count("'") != 2 else None  # noqa: PLR2004
    # References to other keys, as in .env.example, mean the same to everybody.
    plain = re.sub(r"\$\{(\w+)\}", lambda match: "" if match[1] in VARIABLES else match[0], raw)
    if any(character in plain.strip('"') for character in "$\\\"'`"):
        return "has a $, a quote or a backslash outside single quotes: write it as '…'"
    if VARIABLES.get(binding.key or "", VARIABLES["LOG_DIR"]).secret and re.search(r"\s", plain.strip('"')):
        return "has a space or a comment in its value: write the value as '…' and the comment on a line of its own"
    return None


def _filled(example: str) -> str:
    return "\n".join(_fill(line) for line in example.splitlines()) + "\n"


def _completed(present: str, example: str, missing: Mapping[str, str | None]) -> str:
    """The file as it is, with what it lacks at its end. Lines of missing keys without a value give way."""
    kept = [line for line in present.splitlines() if line.split("=", 1)[0].strip() not in missing]
    added = [_fill(line) for line in example.splitlines() if line.split("=", 1)[0] in missing]
    if not added:
        return present
    return "\n".join([*kept, "", "# ---- Added by make env: .env.example explains them " + "-" * 44, *added]) + "\n"


def _fill(line: str) -> str:
    name, _, value = line.partition("=")
    if value == GENERATED:
        return f"{name}={secrets.token_hex(SECRET_BYTES)}"
    if value == DETECTED:
        return f"{name}={_DETECTORS[name]()}"
    return line


def _ca_bundle() -> str:
    """The certificates that this host itself trusts; an empty list where it has none in a file."""
    candidates = [settings.of_shell("SSL_CERT_FILE"), *_CA_BUNDLES]
    return next((path for path in candidates if path and Path(path).is_file()), os.devnull)


def _owner(id_of_user: int, id_for_sudo: str) -> int:
    return id_of_user or int(settings.of_shell(id_for_sudo) or UID_FOR_ROOT)


_DETECTORS: Mapping[str, Callable[[], str]] = {
    "HOST_UID": lambda: str(_owner(os.getuid(), "SUDO_UID")),
    "HOST_GID": lambda: str(_owner(os.getgid(), "SUDO_GID")),
    "CA_BUNDLE": _ca_bundle,
}


def _bindings(text: str) -> list[Binding]:
    return list(parse_stream(StringIO(text)))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise MlstackError(
            f".env cannot be read: {error}", "It holds every setting and secret of the stack.", f"check {path}"
        ) from error


def _write(path: Path, text: str) -> None:
    """Whole or not at all: written beside it, then put in its place."""
    beside = path.with_name(f".env.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise MlstackError(
            f".env cannot be written: {error}", "The stack's settings and secrets live there.", f"check {path.parent}"
        ) from error


def _make_private(path: Path) -> bool:
    if path.stat().st_mode & 0o077 == 0:
        return False
    path.chmod(PRIVATE)
    return True
