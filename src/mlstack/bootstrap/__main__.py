"""The one-shots of docker-compose.yml: `python3 -m mlstack.bootstrap services` and `… tracking`."""

import sys
from dataclasses import replace

from mlstack import settings
from mlstack.bootstrap import database, log, storage
from mlstack.errors import MlstackError
from mlstack.settings import Keys, Login


def services(owner: Login, role: Login, owner_keys: Keys, user_keys: Keys, deadline: float = database.DEADLINE) -> None:
    """Role, database, bucket, policy and user, with the owners' credentials."""
    with database.turn(replace(owner, database="postgres"), deadline) as connection:
        database.bootstrap(connection, role)
        storage.bootstrap(owner_keys, user_keys, deadline)


def main(step: str) -> int:
    try:
        if step == "services":
            services(settings.database_owner(), settings.tracking_login(), settings.storage_owner(), settings.tracking_keys())
        else:
            from mlstack.bootstrap import tracking  # needs packages that only the image has

            with database.turn(settings.tracking_login()) as connection:
                tracking.bootstrap(connection, settings.admin_account(), settings.notebook_account())
    except MlstackError as error:
        log.error("%s %s Fix: %s", error.wrong, error.why, error.fix)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
