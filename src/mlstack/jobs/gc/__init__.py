"""Permanent deletion, in the one-shots that already have the credentials for it.

`bootstrap` has the keys of MinIO's owner, which alone may remove old versions; `migration` has MLflow's database and admin.
"""
