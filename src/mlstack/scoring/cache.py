"""The versions that are served, on a volume: the service starts with them while MLflow, MinIO or Postgres is down."""

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlstack.scoring import files
from mlstack.scoring.registry import Target, Version


class Cache:
    """A folder with the files of versions, and a file that says which of them is served under which alias."""

    def __init__(self, folder: Path) -> None:
        self._versions, self._served, self._loading = folder / "versions", folder / "served.json", folder / "loading.json"
        self._versions.mkdir(parents=True, exist_ok=True)

    def folder(self, version: Version) -> Path:
        """The folder of a version's files. Its name is a hash: a model's name may have any character."""
        text = json.dumps([version.model, version.number, version.created])
        return self._versions / hashlib.sha256(text.encode()).hexdigest()

    def fill(self, version: Version, download: Callable[[Path], None]) -> Path:
        """The files of a version, downloaded unless they are here. A folder of that name is complete."""
        folder = self.folder(version)
        if not folder.is_dir():
            # A folder of its own: an earlier download that nobody waits for any more may still be writing.
            part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=self._versions))
            download(part)
            part.rename(folder)
        return folder

    def served(self) -> Mapping[Target, Version]:
        """What was served last, without versions whose loading ended the service."""
        fatal = self.fatal()
        served = {Target(**entry["target"]): Version(**entry["version"]) for entry in self._read(self._served)}
        return {target: version for target, version in served.items() if version not in fatal}

    def fatal(self) -> Collection[Version]:
        """Versions whose loading ended the service twice: once may have been a power cut."""
        counted = Counter(Version(**entry) for entry in self._read(self._loading))
        return {version for version, count in counted.items() if count > 1}

    def keep(self, served: Mapping[Target, Version], *others: Version) -> None:
        """Remembers what is served, and removes the files of every version that is neither served nor one of the others."""
        entries = [{"target": asdict(target), "version": asdict(version)} for target, version in served.items()]
        files.write(self._served, json.dumps(entries))
        kept, coming = ({self.folder(version).name for version in versions} for versions in (served.values(), others))
        for folder in self._versions.iterdir():
            name, _, part = folder.name.partition(".")
            if name not in coming and (part or name not in kept):
                shutil.rmtree(folder, ignore_errors=True)  # what is still being written goes the next time

    @contextmanager
    def loading(self, version: Version) -> Iterator[None]:
        """While a version is loaded into the service. If that ends the service, the note of it stays."""
        files.write(self._loading, json.dumps([*self._read(self._loading), asdict(version)]))
        try:
            yield
        finally:
            others = [entry for entry in self._read(self._loading) if entry != asdict(version)]
            files.write(self._loading, json.dumps(others))

    def _read(self, path: Path) -> list[dict[str, Any]]:
        if not path.exists():
            return []
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return entries
