"""What the service reads in MLflow's registry: which version an alias names, and its files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

PAGE = 100  # models
REJECTED = "mlstack.scoring.rejected"  # a tag of model versions: the one thing that the service's account may write


@dataclass(frozen=True)
class Target:
    """A registered model and one of its aliases: clients name the model, or model@alias."""

    model: str
    alias: str


@dataclass(frozen=True)
class Version:
    """A model version. `created` tells it from a deleted one that had the same number."""

    model: str
    number: str
    created: int


class RegistryError(Exception):
    """MLflow or MinIO does not answer, or not as expected."""


class Registry:
    """MLflow's registry, read by the service's own account. Every call blocks, for a few seconds if MLflow does not answer."""

    def __init__(self, aliases: Sequence[str]) -> None:
        self.aliases = aliases
        self._client = MlflowClient()
        self._known: dict[tuple[str, str, int], Version] = {}

    def versions(self) -> Mapping[Target, Version]:
        """The version that each served alias names. Raises RegistryError."""
        try:
            return dict(self._versions())
        except MlflowException as error:
            raise RegistryError(f"MLflow's registry cannot be read: {error.message}") from error

    def _versions(self) -> Iterator[tuple[Target, Version]]:
        token = None
        while True:
            page = self._client.search_registered_models(max_results=PAGE, page_token=token)
            for model in page:
                for alias in self.aliases:
                    if number := model.aliases.get(alias):
                        yield Target(model.name, alias), self._version(model.name, str(number), model.last_updated_timestamp)
            token = page.token
            if not token:
                return

    def _version(self, name: str, number: str, updated: int) -> Version:
        """Read once for each change of the model, since a number can be given again after its version was deleted."""
        key = name, number, updated
        if key not in self._known:
            created = self._client.get_model_version(name, number).creation_timestamp
            self._known = {other: version for other, version in self._known.items() if other[:2] != key[:2]}
            self._known[key] = Version(name, number, created)
        return self._known[key]

    def names(self, target: Target, number: str) -> bool:
        """Whether an alias names this version now. Raises RegistryError."""
        try:
            named = self._client.get_registered_model(target.model).aliases.get(target.alias)
        except MlflowException as error:
            raise RegistryError(f"MLflow's registry cannot be read: {error.message}") from error
        return str(named) == number

    def note(self, version: Version, reason: str | None) -> None:
        """Says on a model version why it is not served; None empties an earlier note. Raises RegistryError."""
        try:
            if reason is not None or REJECTED in self._client.get_model_version(version.model, version.number).tags:
                self._client.set_model_version_tag(version.model, version.number, REJECTED, reason or "")
        except MlflowException as error:
            raise RegistryError(f"its tag {REJECTED} cannot be set: {error.message}") from error

    def download(self, version: Version, folder: Path) -> None:
        """Copies the files of a version into a folder. Raises RegistryError."""
        try:
            download_artifacts(f"models:/{version.model}/{version.number}", dst_path=str(folder))
        except (MlflowException, OSError) as error:
            raise RegistryError(f"its files cannot be downloaded: {error}") from error
