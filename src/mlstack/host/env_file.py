"""`.env`: created from `.env.example`, completed by newer versions, never overwritten."""

import base64
import difflib
import os
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
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
# A rotation writes it first, and finally renames it to .env.
NEXT = ".env.next"
# The uid in the containers if the host's user is root: none of them runs as root, or as a user of the host
# (docs/adr/0013). It is the user of Jupyter's image. Until version 0.1 it was 1000, the first user of most hosts.
UID_FOR_ROOT = 60712
_UID_OF_A_PERSON = "1000"
# No .env from before UID_FOR_ROOT changed has this key.
_NEWER = "MINIO_BUCKET_QUOTA"
_CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/private/etc/ssl/cert.pem",  # macOS, as the path that Docker Desktop shares with containers
)

_CLOSED_NETWORKS = [f"10.{second}.{third}" for second in range(200, 240) for third in range(256)]

_ASSIGNMENT = re.compile(r"\s*(?:export[ \t]+)?[A-Za-z_][A-Za-z0-9_]*[ \t]*=([^\n]*)\s*")
_REFERENCE = re.compile(rf"\$\{{({'|'.join(VARIABLES)})\}}")
_SECRETS = {name for name, variable in VARIABLES.items() if variable.secret}
_GENERATED = {name for name in _SECRETS if not VARIABLES[name].optional}


@dataclass(frozen=True)
class Changes:
    """What `ensure` did to `.env`."""

    created: bool = False
    added: tuple[str, ...] = ()
    made_private: bool = False
    changed_owner: bool = False


def ensure(
    project: Path, generated_is_lost: Callable[[str], str | None] = lambda name: None, known: Mapping[str, str] | None = None
) -> Changes:
    """Writes `.env`, or adds the keys that it lacks; never changes an existing value, except root's old HOST_UID.

    `known` has values for missing keys, used instead of new ones.

    `generated_is_lost` returns why a new secret cannot work, or None; then nothing is written.
    Raises MlstackError in that case, and when the file cannot be read or written.
    """
    path = (project / ".env").resolve()
    example = (project / ".env.example").read_text(encoding="utf-8")
    present = settings.file_text(path)
    bindings = _bindings(present or "")
    if broken := [_broken_line(binding) for binding in bindings if _is_broken(binding)]:
        raise MlstackError(f"{'; '.join(broken)}.", "Nothing was changed: a value could be lost.", "fix it in .env")
    # A key without a value counts as missing, unless the example leaves it empty too.
    keys = {binding.key for binding in bindings}
    filled = {binding.key for binding in bindings if binding.value}
    defaults = dotenv_values(stream=StringIO(example), interpolate=False)
    missing = {name: value for name, value in defaults.items() if name not in filled and (value or name not in keys)}
    known = known or {}
    for name, value in missing.items():
        if value == GENERATED and name not in known and (reason := generated_is_lost(name)):
            raise MlstackError(
                f"{name} is missing from .env, and a fresh one would not fit: {reason}",
                "Nothing was changed.",
                "put the old .env back; start empty with make reset; or make this a second stack with a name and ports of its"
                " own: COMPOSE_PROJECT_NAME=… MLFLOW_PORT=… make up",
            )
    before = known or {} if present is None else {binding.key or "": binding.value or "" for binding in bindings}
    if changed_owner := _names_a_person(before, path):
        bindings = [_with_uid_for_root(binding) for binding in bindings]
        known = {name: value for name, value in (known or {}).items() if name not in ("HOST_UID", "HOST_GID")}
    text = _filled(example, known) if present is None else _completed(bindings, example, missing, known)
    made_private = present is not None and _make_private(path)
    if text != present:
        _write(path, text)
    return Changes(
        created=present is None,
        added=tuple(missing) if present is not None else (),
        made_private=made_private,
        changed_owner=changed_owner,
    )


def _names_a_person(values: Mapping[str, str], path: Path) -> bool:
    """Whether an older version wrote 1000, the first user of most hosts, for root."""
    is_roots = _owner(os.getuid(), "SUDO_UID") == UID_FOR_ROOT and _uid_of(path) == 0
    return is_roots and _NEWER not in values and {values.get("HOST_UID"), values.get("HOST_GID")} == {_UID_OF_A_PERSON}


def _with_uid_for_root(binding: Binding) -> Binding:
    if binding.key not in ("HOST_UID", "HOST_GID"):
        return binding
    text = binding.original.string
    before = text[: len(text) - len(text.lstrip())]
    return binding._replace(original=binding.original._replace(string=f"{before}{binding.key}={UID_FOR_ROOT}\n"))


def _uid_of(path: Path) -> int:
    """The owner of a file, or of its folder."""
    return (path if path.exists() else path.parent).stat().st_uid


def begin_rotation(project: Path, *kept: str) -> None:
    """Writes `.env.next`: `.env` with fresh secrets, except these."""
    path = (project / ".env").resolve()
    bindings = _bindings(settings.file_text(path) or "")
    _write(path.with_name(NEXT), "".join(_rotated(binding, kept) for binding in bindings), owner_of=path)


def end_rotation(project: Path) -> None:
    """Replaces `.env` by `.env.next`."""
    path = (project / ".env").resolve()
    path.with_name(NEXT).replace(path)


def is_being_rotated(project: Path) -> bool:
    """Whether a rotation was begun and not ended."""
    return (project / ".env").resolve().with_name(NEXT).exists()


def _rotated(binding: Binding, kept: Collection[str]) -> str:
    text = binding.original.string
    if binding.key not in _GENERATED or binding.key in kept:
        return text
    before = text[: len(text) - len(text.lstrip())]
    return f"{before}{binding.key}={fresh_secret(binding.key)}\n"


def change(project: Path, **values: str) -> None:
    """Gives keys of `.env` other values; the rest is unchanged. Raises MlstackError when it cannot be written."""
    path = (project / ".env").resolve()
    lines = (settings.file_text(path) or "").splitlines()
    changed = [f"{name}={_written(values[name])}" if (name := line.partition("=")[0]) in values else line for line in lines]
    _write(path, "\n".join(changed) + "\n")


def problems(text: str | None, values: Mapping[str, str]) -> list[str]:
    """What in this text of `.env`, which gives these values, would not be read as intended.

    Shows no secret.
    """
    if text is None:
        return [".env is missing (make env writes it)"]
    complaints: list[str] = []
    if "\r" in text:
        complaints.append(f".env line {text[: text.index(chr(13))].count(chr(10)) + 1} has a carriage return in it: remove it")
    seen: set[str] = set()
    for binding in _bindings(text):
        if _is_broken(binding):
            complaints.append(_broken_line(binding))
        elif binding.key:
            if binding.key in seen:
                complaints.append(f"{_place(binding)} sets {binding.key} a second time")
            if reason := _ambiguity(binding, seen):
                complaints.append(f"{_place(binding)}: {binding.key} {reason}")
            seen.add(binding.key)
    return complaints + settings.complaints(values)


def unknown_keys(text: str | None) -> list[str]:
    """Keys of `.env` that nothing here reads, with the known key that each resembles."""
    bindings = _bindings(text or "")
    names = [binding.key for binding in bindings if binding.key and not _is_broken(binding)]
    return [_with_suggestion(name) for name in names if name not in VARIABLES]


def missing_keys(text: str | None) -> list[str]:
    """Keys that `.env.example` has and `.env` has not."""
    present = {binding.key for binding in _bindings(text or "")}
    return [name for name in VARIABLES if name not in present]


def _with_suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, VARIABLES, n=1)
    return f"{name} (did you mean {close[0]}?)" if close else name


def _is_broken(binding: Binding) -> bool:
    return binding.error if binding.key is None else not _ASSIGNMENT.fullmatch(binding.original.string)


def _broken_line(binding: Binding) -> str:
    """A broken line may be a part of a secret: only the beginning of a known key is shown."""
    word = re.match(r"\s*(?:export\s+)?(\w*)", binding.original.string)
    key = f" ({word[1]})" if word and word[1] and any(name.startswith(word[1]) for name in VARIABLES) else ""
    return f"{_place(binding)}{key} is not KEY=value on one line: half of it is missing, or a quote is not closed"


def _place(binding: Binding) -> str:
    text = binding.original.string
    return f".env line {binding.original.line + text[: len(text) - len(text.lstrip())].count(chr(10))}"


def _ambiguity(binding: Binding, above: Collection[str]) -> str | None:
    """Why docker compose and python-dotenv would read different values, or not the intended one."""
    match = _ASSIGNMENT.fullmatch(binding.original.string)
    raw = match[1].strip(" \t") if match else ""
    if not raw.isprintable():
        return "has a tab or an invisible character: remove it"
    if raw.startswith("'"):
        unquotable = "\\" in raw or "${" in raw or raw.count("'") != 2  # noqa: PLR2004
        return "has a backslash, a quote or ${…} inside quotes: choose another value" if unquotable else None
    return _ambiguity_outside_quotes(raw, above, is_secret=binding.key in _SECRETS)


def _ambiguity_outside_quotes(raw: str, above: Collection[str], *, is_secret: bool) -> str | None:
    is_quoted = len(raw) > 1 and raw[0] == raw[-1] == '"'
    # References to other keys, as in .env.example, are read alike by all.
    plain = _REFERENCE.sub("", raw[1:-1] if is_quoted else raw)
    if later := [name for name in _REFERENCE.findall(raw) if name not in above]:
        return f"refers to {later[0]}, which is not set above it: move it down"
    if any(character in plain for character in "$\\\"'`"):
        return "has a $, a quote or a backslash outside single quotes: write it as '…'"
    if plain.startswith("#") and not is_quoted:
        return "begins with #: write the value as '…' and a comment on a line of its own"
    if is_secret and " " in plain:
        return "has a space or a comment in its value: write the value as '…' and the comment on a line of its own"
    return None


def _filled(example: str, known: Mapping[str, str]) -> str:
    return "\n".join(_fill(line, known) for line in example.splitlines()) + "\n"


def _completed(bindings: Sequence[Binding], example: str, missing: Collection[str], known: Mapping[str, str]) -> str:
    """The file with the missing keys appended. Lines of those keys without a value are removed."""
    kept = "".join(binding.original.string for binding in bindings if binding.key not in missing)
    added = [_fill(line, known) for line in example.splitlines() if line.split("=", 1)[0] in missing]
    if not added:
        return kept
    separator = "\n" if kept.endswith("\n") else "\n\n"
    return kept + separator + "\n".join(["# ---- Added by make env: .env.example explains them " + "-" * 44, *added]) + "\n"


def _fill(line: str, known: Mapping[str, str]) -> str:
    """A line of the example with its value: the shell's if it sets one, since it would override the file anyway."""
    name, _, value = line.partition("=")
    if name in VARIABLES and (chosen := _written(settings.of_shell(name) or known.get(name, ""))):
        return f"{name}={chosen}"
    if value == GENERATED:
        return f"{name}={fresh_secret(name)}"
    if value == DETECTED:
        return f"{name}={_DETECTORS[name]()}"
    return line


def fresh_secret(name: str) -> str:
    """A new value for a generated variable."""
    if name == "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY":  # the form of a Fernet key
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_hex(SECRET_BYTES)


def _written(value: str) -> str:
    """A value as written in `.env`; empty if it cannot be written."""
    if re.fullmatch(r"[\w./:@+-]*", value):
        return value
    return f"'{value}'" if value.isprintable() and not re.search(r"['\\]|\$\{", value) else ""


def _ca_bundle() -> str:
    """The certificates that this host itself trusts; an empty list if it has none in a file."""
    candidates = [settings.of_shell("SSL_CERT_FILE"), *_CA_BUNDLES]
    return next((path for path in candidates if path and Path(path).is_file()), os.devnull)


def _owner(id_of_user: int, id_for_sudo: str) -> int:
    return id_of_user or int(settings.of_shell(id_for_sudo) or UID_FOR_ROOT)


def closed_network() -> str:
    """A network to which the host has no route, far from the ranges that Docker, Kubernetes and most offices use."""
    with suppress(OSError):
        taken = _routed(Path("/proc/net/route").read_text(encoding="ascii"))
        return secrets.choice([network for network in _CLOSED_NETWORKS if network not in taken])
    return secrets.choice(_CLOSED_NETWORKS)


def _routed(routes: str) -> set[str]:
    """The first three numbers of every destination in the kernel's table, which has addresses in hexadecimal, last byte first."""
    destinations = [bytes.fromhex(line.split()[1])[::-1] for line in routes.splitlines()[1:]]
    return {".".join(map(str, address[:3])) for address in destinations}


_DETECTORS: Mapping[str, Callable[[], str]] = {
    "HOST_UID": lambda: str(_owner(os.getuid(), "SUDO_UID")),
    "HOST_GID": lambda: str(_owner(os.getgid(), "SUDO_GID")),
    "CLOSED_NETWORK": closed_network,
    "CA_BUNDLE": _ca_bundle,
}


def _bindings(text: str) -> list[Binding]:
    return list(parse_stream(StringIO(text)))


def _write(path: Path, text: str, owner_of: Path | None = None) -> None:
    """Writes the file atomically: a temporary file, then a rename. It keeps the owner of the file it replaces."""
    beside = path.with_name(f".env.{os.getpid()}")
    owned = owner_of or path
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if settings.is_root() and owned.exists():
                os.chown(descriptor, owned.stat().st_uid, owned.stat().st_gid)  # sudo make env: still the user's file
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise MlstackError(
            f".env cannot be written: {error}.", "The stack's settings and secrets live there.", f"check {path.parent}"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def _make_private(path: Path) -> bool:
    if path.stat().st_mode & 0o077 == 0:
        return False
    path.chmod(PRIVATE)
    return True
