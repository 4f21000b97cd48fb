"""The optional part `gateway`: MLflow forwards requests to it, and jobs are taken."""

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import http
from mlstack.host.doctor.check import check
from mlstack.host.doctor.context import Subject
from mlstack.host.doctor.stack import service
from mlstack.postgres import connected

REACH = "gateway"
SERVICE, JOBS = "gateway", "gateway-jobs"
WHY = "Models behind the AI gateway, judges and jobs need it."
WAITED = 300  # seconds that a job waits at most while the executor, which looks every second, has others to run
# 0 is PENDING in MLflow's mlflow/entities/_job_status.py.
_WAITING = "SELECT count(*) FROM jobs WHERE status = 0 AND creation_time < (extract(epoch FROM now()) - %s) * 1000"


@check(REACH, "MLflow forwards requests to it", service(SERVICE), service("mlflow"))
def forwards(subject: Subject) -> str:
    url = subject.url("MLFLOW_PORT") + "/api/3.0/mlflow/gateway/endpoints/list"
    answer = http.call("MLflow", "GET", url, why=WHY, timeout=15, account=settings.notebook_account(subject.values))
    if answer.status != 200:  # noqa: PLR2004
        raise MlstackError(f"MLflow answers {answer.status} for the AI gateway.", WHY, "make logs SERVICE=gateway")
    return f"{len(answer.json().get('endpoints', []))} endpoints"


@check(REACH, "jobs are taken", service(JOBS), service("postgres"))
def jobs(subject: Subject) -> str:
    with connected(subject.stack.tracking, deadline=5) as connection, connection.cursor() as cursor:
        cursor.execute(_WAITING, (WAITED,))
        (waiting,) = cursor.fetchone() or (0,)
    if waiting:
        raise MlstackError(
            f"{waiting} jobs have waited for more than {WAITED // 60} minutes.",
            "Judges and evaluations that were started in MLflow's page do not end.",
            "make logs SERVICE=gateway-jobs; docker compose restart gateway-jobs",
        )
    return "none waits"
