"""`from mlstack import tune`: the name under which notebooks import `mlstack.client.tune`."""

from mlstack.client.tune import connect, search

__all__ = ["connect", "search"]
