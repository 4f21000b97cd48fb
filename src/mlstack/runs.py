"""`from mlstack import runs`: the name under which notebooks import `mlstack.client.runs`."""

from mlstack.client.runs import dataframe, history, table

__all__ = ["dataframe", "history", "table"]
