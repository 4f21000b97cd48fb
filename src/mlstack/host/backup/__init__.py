"""A backup: a dump of the database, a copy of the bucket and a manifest with checksums of both, as one unit."""

from mlstack.logger import get_logger

log = get_logger("mlstack.backup")
