"""A fingerprint of the source of everything that an `upstream.py` uses of MLflow and uvicorn: `python3 fingerprints.py FOLDER`.

FOLDER is mlstack.server or mlstack.client, and the program runs where that folder does: it needs nothing but what is there.
"""

import ast
import hashlib
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = ("mlflow", "uvicorn")
PUBLIC = (  # documented as MLflow's API
    "mlflow",
    "mlflow.data.dataset",
    "mlflow.data.dataset_source",
    "mlflow.entities",
    "mlflow.environment_variables",
    "mlflow.exceptions",
)
PLAIN = (str, int, float, bool, tuple, frozenset, re.Pattern)


def dotted(node: ast.AST, origins: dict[str, str]) -> str | None:
    """The full name of what a chain of attributes leads to, if its root was imported."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, origins)
        return before and f"{before}.{node.attr}"
    return origins.get(node.id) if isinstance(node, ast.Name) else None


def imports(tree: ast.AST) -> dict[str, str]:
    """The full name of each name that is imported, at the top of a module or in a function."""
    origins = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                origins[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            origins |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return origins


def reached(source: str) -> set[str]:
    """The full names of what a module imports, and of what it reads from that: store = auth.store; store.create_user."""
    tree = ast.parse(source)
    origins = imports(tree)
    imported = set(origins.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            kind = dotted(node.annotation, origins) if isinstance(node, ast.AnnAssign) else None
            if isinstance(target, ast.Name) and (name := (node.value and dotted(node.value, origins)) or kind):
                origins[target.id] = name
    return imported | {name for node in ast.walk(tree) if (name := dotted(node, origins))}


def names(source: str) -> set[str]:
    """The same, of PACKAGES and without what they document."""
    return {name for name in reached(source) if name.partition(".")[0] in PACKAGES and name.rpartition(".")[0] not in PUBLIC[1:]}


def words(folder: Path) -> set[str]:
    """Every attribute that a folder's modules read, call, set or define."""
    nodes = [node for file in folder.glob("*.py") for node in ast.walk(ast.parse(file.read_text()))]
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return functions | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def resolve(name: str) -> Any:
    """The object of this name. Raises AttributeError or ImportError, which say that it is gone."""
    parts = name.split(".")
    subject, path = importlib.import_module(parts[0]), parts[0]
    for part in parts[1:]:
        path = f"{path}.{part}"
        if isinstance(subject, ModuleType) and not hasattr(subject, part):
            importlib.import_module(path)
        subject = getattr(subject, part)
    return subject


def sources(name: str, used: set[str]) -> Iterator[tuple[str, str]]:
    """What of an object has to be read again when it changes: for a large class, only the methods that are used."""
    try:
        subject = resolve(name)
    except (AttributeError, ImportError):  # an attribute that instances alone have, or gone
        yield name, "absent"
        return
    if isinstance(subject, ModuleType) or (inspect.isclass(subject) and name.rpartition(".")[0] in PUBLIC):
        return
    subject = inspect.unwrap(getattr(subject, "callback", subject))  # a command of click, a cached function
    holder = resolve(name.rpartition(".")[0])
    if hasattr(subject, "DESCRIPTOR"):
        yield name, subject.DESCRIPTOR.full_name + str([(field.name, field.number) for field in subject.DESCRIPTOR.fields])
    elif inspect.isroutine(subject):
        yield name, inspect.getsource(subject)
    elif inspect.isclass(subject) and subject.__module__.startswith(PACKAGES):
        yield from _of_class(name, subject, used)
    elif type(subject).__module__.startswith(PACKAGES):  # made once: how, and what it is
        yield name, assignment(holder, name.rpartition(".")[2])
        yield from _of_class(f"{type(subject).__module__}.{type(subject).__qualname__}", type(subject), used)
    elif isinstance(subject, PLAIN):
        yield name, repr(subject)
    elif isinstance(holder, ModuleType):  # of another package: its module made it
        yield holder.__name__, inspect.getsource(holder)


def _of_class(name: str, kind: type, used: set[str]) -> Iterator[tuple[str, str]]:
    members = {
        member: getattr(value, "__func__", getattr(value, "fget", value))  # of a class method, of a property
        for base in reversed(kind.__mro__)
        if base.__module__.startswith(PACKAGES)
        for member, value in vars(base).items()
        if member in used
    }
    # A dataclass or a tuple generates others: they have no source.
    written = {member: value for member, value in members.items() if inspect.isfunction(value) and _is_written(value)}
    if not written:
        yield name, inspect.getsource(kind)
    for member, value in written.items():
        yield f"{name}.{member}", inspect.getsource(inspect.unwrap(value))


def _is_written(function: Callable[..., Any]) -> bool:
    return not inspect.unwrap(function).__code__.co_filename.startswith("<")


def assignment(module: ModuleType, name: str) -> str:
    """The statement that makes a variable of a module."""
    source = inspect.getsource(module)
    statements = [
        ast.get_source_segment(source, node) or ""
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == name
    ]
    return "\n".join(statements)


def fingerprints(folder: str) -> dict[str, str]:
    """By full name, for everything that the folder's `upstream.py` uses."""
    module = importlib.import_module(f"{folder}.upstream")
    path = Path(str(module.__file__))
    used = words(path.parent)
    texts = dict(pair for name in names(path.read_text()) for pair in sources(name, used))
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in sorted(texts.items())}


if __name__ == "__main__":
    print(json.dumps(fingerprints(sys.argv[1])))  # noqa: T201
