"""The one-shots of docker-compose.yml: `python3 -m mlstack.jobs.bootstrap services`, `… tracking`, `… rekey` for a rotation;
`… scoring` in compose/scoring.yml."""

import sys
from dataclasses import replace

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.jobs.bootstrap import external, external_s3, log, minio, postgres, report, versitygw
from mlstack.postgres import DEADLINE, connected, turn
from mlstack.settings import Keys, Login, Roles


def services(
    owner: Login | None,
    roles: Roles,
    owner_keys: Keys,
    user_keys: Keys,
    console_keys: Keys,
    *,
    storage: str = settings.MINIO,
    quota: int = 0,
    deadline: float = DEADLINE,
) -> None:
    """Roles, database, buckets, policies and users, with the owners' credentials. `quota` is each bucket's, in bytes.

    Without an owner, the roles of an external server are only checked.
    """
    login = replace(owner, database="postgres") if owner else roles.tracking
    with turn(login, deadline) as connection:
        if owner is None:
            external.check(roles)
        elif owner.is_external:
            external.bootstrap(connection, owner, roles)
        else:
            postgres.bootstrap(connection, owner, roles)
        if owner_keys.is_external:
            external_s3.bootstrap(owner_keys, quota=quota, deadline=deadline)
        else:
            store = versitygw if storage == settings.VERSITYGW else minio
            store.bootstrap(owner_keys, user_keys, console_keys, quota=quota, deadline=deadline)


def main(step: str) -> int:
    try:
        if step == "services":
            services(
                settings.database_owner() if settings.has_administrator() else None,
                settings.database_roles(),
                settings.storage_owner(),
                settings.tracking_keys(),
                settings.console_keys(),
                storage=settings.storage(),
                quota=settings.bucket_quota(),
            )
        elif step == "rekey":
            from mlstack.jobs.bootstrap import encryption  # its packages are only in the image

            with turn(settings.tracking_login()) as rows:
                encryption.rekey(rows, *settings.encryption())
        elif step == "scoring":
            settings.publish_secrets()  # libpq reads the environment
            from mlstack.jobs.bootstrap import mlflow  # its packages are only in the image

            account = settings.scoring_account()
            with connected(settings.accounts_login()) as accounts:
                report(f"MLflow account {account.username}", mlflow.ensure_account(accounts, account))
        else:
            settings.publish_secrets()  # libpq reads the environment
            from mlstack.jobs.bootstrap import mlflow  # its packages are only in the image

            with turn(settings.tracking_login()) as rows, connected(settings.accounts_login()) as accounts:
                mlflow.bootstrap(rows, accounts, settings.admin_account(), settings.notebook_account(), settings.reader_name())
    except MlstackError as error:
        log.error("%s %s Fix: %s", error.wrong, error.why, error.fix)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
