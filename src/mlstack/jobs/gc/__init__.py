"""What is deleted for good, each part where the credentials for it already are: in a one-shot of its service.

`bootstrap` has the storage owner's keys, which alone may remove old versions; `migration` has MLflow's database and admin.
"""
