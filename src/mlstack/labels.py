"""`from mlstack import labels`: the name under which notebooks import `mlstack.client.labels`."""

from mlstack.client.labels import Label, put, put_many

__all__ = ["Label", "put", "put_many"]
