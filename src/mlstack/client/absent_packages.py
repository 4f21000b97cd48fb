"""Packages that MLflow's client looks for at every call: where they are not installed, it searches the disk each time.

Two thirds of what mlflow.log_metric takes of a training loop, and a millisecond of each request, is that search.
"""

import sys
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# Seconds for which a package that was not there is not looked for again: who installs it finds it.
MEMORY = 2.0


class _Finder:
    """Before Python's own finders in sys.meta_path."""

    def __init__(self, names: Sequence[str]) -> None:
        self._absent_until = dict.fromkeys(names, 0.0)

    def find_spec(self, name: str, path: Sequence[str] | None = None, _: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._absent_until:
            return None
        if self._absent_until[name] < time.monotonic():
            found = PathFinder.find_spec(name, path)
            if found:
                return found
            self._absent_until[name] = time.monotonic() + MEMORY
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    def invalidate_caches(self) -> None:
        self._absent_until = dict.fromkeys(self._absent_until, 0.0)


def remember(*names: str) -> None:
    """That these top-level packages are not installed, for a moment at a time."""
    sys.meta_path.insert(0, _Finder(names))
