"""`from mlstack import features`: the name under which notebooks import `mlstack.client.features`."""

from mlstack.client.feature_views import Entity, FeatureView, SqlView, Totals, Values
from mlstack.client.features import TrainingSet, apply, backfill, ingest, lookup, training_set

__all__ = [
    "Entity",
    "FeatureView",
    "SqlView",
    "Totals",
    "TrainingSet",
    "Values",
    "apply",
    "backfill",
    "ingest",
    "lookup",
    "training_set",
]
