"""The one-shots of docker-compose.yml: `python3 -m mlstack.bootstrap services` and `… tracking`; `… rekey` for a rotation."""

import sys
from dataclasses import replace

from mlstack import settings
from mlstack.bootstrap import database, log, storage
from mlstack.errors import MlstackError
from mlstack.settings import Keys, Login, Roles


def services(owner: Login, roles: Roles, owner_keys: Keys, user_keys: Keys, deadline: float = database.DEADLINE) -> None:
    """Roles, database, bucket, policy and user, with the owners' credentials."""
    with database.turn(replace(owner, database="postgres"), deadline) as connection:
        database.bootstrap(connection, owner, roles)
        storage.bootstrap(owner_keys, user_keys, deadline)


def main(step: str) -> int:
    try:
        if step == "services":
            services(settings.database_owner(), settings.database_roles(), settings.storage_owner(), settings.tracking_keys())
        elif step == "rekey":
            from mlstack.bootstrap import encryption  # needs packages that only the image has

            with database.turn(settings.tracking_login()) as rows:
                encryption.rekey(rows, *settings.encryption())
        else:
            from mlstack.bootstrap import tracking  # needs packages that only the image has

            with database.turn(settings.tracking_login()) as rows, database.connected(settings.accounts_login()) as accounts:
                tracking.bootstrap(rows, accounts, settings.admin_account(), settings.notebook_account(), settings.reader_name())
    except MlstackError as error:
        log.error("%s %s Fix: %s", error.wrong, error.why, error.fix)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
