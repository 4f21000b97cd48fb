"""`from mlstack import deployments`: the name under which notebooks import `mlstack.client.deployments`."""

from mlstack.client.deployments import canary, off, promote, rollback, shadow, table

__all__ = ["canary", "off", "promote", "rollback", "shadow", "table"]
