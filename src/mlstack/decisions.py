"""`from mlstack import decisions`: the name under which notebooks import `mlstack.client.decisions`."""

from mlstack.client.decisions import table

__all__ = ["table"]
