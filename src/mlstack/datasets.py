"""`from mlstack import datasets`: the name under which notebooks import `mlstack.client.datasets`."""

from mlstack.client.datasets import Version, dataset, delete, get, list, open, put  # noqa: A004

__all__ = ["Version", "dataset", "delete", "get", "list", "open", "put"]
