"""The one-shots of docker-compose.yml: `python3 -m mlstack.bootstrap services` and `… tracking`."""

import sys

from mlstack import settings
from mlstack.bootstrap import database, log, storage, tracking
from mlstack.errors import MlstackError


def services() -> None:
    """Roles, database, bucket, policy and user, with the owners' credentials."""
    database.bootstrap(settings.database_owner(), settings.tracking_login())
    storage.bootstrap(settings.storage_owner(), settings.tracking_keys())


def schema() -> None:
    """MLflow's tables and accounts, with MLflow's own role."""
    tracking.bootstrap(settings.tracking_login(), settings.admin_account(), settings.notebook_account())


def main(step: str) -> int:
    try:
        {"services": services, "tracking": schema}[step]()
    except MlstackError as error:
        log.error("%s %s Fix: %s", error.wrong, error.why, error.fix)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
