"""`python3 -m mlstack.jobs.serving`: every step can be repeated, and then changes nothing."""

import sys
from dataclasses import replace
from pathlib import Path

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.jobs.bootstrap import external, log, postgres, report
from mlstack.jobs.serving import migrations, roles
from mlstack.postgres import DEADLINE, connected, ensure_member, turn
from mlstack.settings import Login

FOLDER = Path("/sql")


def serving(owner: Login, schemas: Login, service: Login, folder: Path, *, months: int = 0, deadline: float = DEADLINE) -> None:
    """Sets up the database for the scoring service. `schemas` is the login that owns its schemas, `service` its own.

    Decisions are kept for `months`, for ever if it is 0.
    """
    with turn(replace(owner, database="postgres"), deadline) as server, external.right_explained(owner, owner.database):
        for login, (connections, session) in zip((schemas, service), roles.LIMITS, strict=True):
            report(f"database role {login.user}", postgres.ensure_role(server, login, connections, session))
            if owner.is_external:
                ensure_member(server, login.user)
        connect = postgres.ensure_can_connect(server, schemas.database, schemas.user, service.user)
        report("connect privileges of the scoring service", connect)
        with connected(owner, deadline) as inside:
            report("schemas of the scoring service", roles.ensure_schemas(inside, schemas.user))
            report(f"advisory locks of {schemas.user}", roles.ensure_locks(inside, schemas.user))
        with connected(schemas, deadline) as own:
            report("tables of the scoring service", migrations.apply(own, folder))
            migrations.grant(own, folder, service.user)
            migrations.set_retention(own, months)


def main() -> int:
    try:
        logins = settings.database_owner(), settings.serving_login(), settings.scoring_login()
        serving(*logins, FOLDER, months=settings.decision_retention())
    except MlstackError as error:
        log.error("%s %s Fix: %s", error.wrong, error.why, error.fix)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
