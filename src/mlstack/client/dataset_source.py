"""A data set's version as MLflow knows data: what `mlflow.log_input` records, and what `mlflow.data.get_source` returns.

Registered for the source type `mlstack` through MLflow's entry point.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from mlflow.data.dataset import Dataset as MlflowDataset
from mlflow.data.dataset_source import DatasetSource

from mlstack.client.dataset_versions import Manifest, manifest_of


class Source(DatasetSource):
    """A version of a data set of the stack."""

    def __init__(self, name: str, version: str) -> None:
        self.name, self.version = name, version

    @staticmethod
    def _get_source_type() -> str:
        return "mlstack"

    def load(self) -> Path:
        """The folder with the files of this very version. Raises ClientError when it is gone or was changed."""
        from mlstack.client.dataset_files import download

        return download(manifest_of(self.name, self.version), None)

    @staticmethod
    def _can_resolve(_: Any) -> bool:
        return False  # no path or URI means a data set of the stack

    @classmethod
    def _resolve(cls, raw_source: Any) -> Self:
        raise NotImplementedError

    def to_dict(self) -> dict[str, str]:
        return {"name": self.name, "version": self.version}

    @classmethod
    def from_dict(cls, source_dict: Mapping[Any, Any]) -> Self:
        return cls(source_dict["name"], source_dict["version"])


class Dataset(MlflowDataset):
    """A version of a data set of the stack, for `mlflow.log_input`."""

    def __init__(self, manifest: Manifest) -> None:
        self._files, self._size = len(manifest.files), manifest.size
        super().__init__(Source(manifest.name, manifest.digest), manifest.name, manifest.digest)

    def _compute_digest(self) -> str:
        return self.digest

    @property
    def profile(self) -> dict[str, int]:
        """The number of files and their size in bytes."""
        return {"files": self._files, "size": self._size}

    @property
    def schema(self) -> None:
        """Unknown: the files are not opened."""

    def to_dict(self) -> dict[str, str]:
        recorded: dict[str, str] = super().to_dict()
        return recorded | {"profile": json.dumps(self.profile)}


def dataset_of(manifest: Manifest) -> Dataset:
    """The data set of a manifest."""
    return Dataset(manifest)
