"""`from mlstack import policies`: the name under which notebooks import `mlstack.client.policies`."""

from mlstack.client.policies import Trial, activate, check, deactivate, put, table

__all__ = ["Trial", "activate", "check", "deactivate", "put", "table"]
