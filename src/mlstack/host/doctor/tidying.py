"""Removes everything that the doctor wrote, with all versions, which also tests the owners' credentials.

The list of runs comes from Jupyter's container, where a package can answer instead of the doctor's program. So the database
decides: only a run that looks like a doctor's in every respect is deleted permanently.
"""

from urllib.parse import urlsplit

from mlstack.errors import MlstackError
from mlstack.host.doctor.check import check
from mlstack.host.doctor.context import Subject
from mlstack.host.doctor.stack import running, service
from mlstack.host.one_shot import in_one_shot
from mlstack.postgres import connected
from mlstack.s3 import DOCTOR

REACH = "afterwards"
# In MLflow's trash, with the doctor's tag, and with nothing that the doctor does not log (roundtrip.py). A run's start cannot be
# changed later: files are removed only where a run is of these minutes.
_NAMED = """
    SELECT run_uuid, artifact_uri, start_time > (extract(epoch FROM now()) - 900) * 1000, lifecycle_stage = 'deleted'
        AND EXISTS (SELECT FROM tags t WHERE t.run_uuid = r.run_uuid AND t.key = 'mlstack.doctor')
        AND NOT EXISTS (SELECT FROM params p WHERE p.run_uuid = r.run_uuid AND p.key <> 'question')
        AND NOT EXISTS (SELECT FROM metrics m WHERE m.run_uuid = r.run_uuid AND m.key <> 'answer')
        AND NOT EXISTS (SELECT FROM model_versions v WHERE v.run_id = r.run_uuid)
    FROM runs r WHERE run_uuid = ANY(%s)"""


@check(REACH, "the doctor's runs are gone", service("postgres"), service("mlflow"))
def runs(subject: Subject) -> str:
    with connected(subject.stack.tracking, deadline=5) as connection, connection.cursor() as cursor:
        cursor.execute(_NAMED, (sorted(subject.named),))
        rows = cursor.fetchall()
    ours = [run for run, _, _, is_ours in rows if is_ours]
    subject.artifacts += [
        urlsplit(uri).path.strip("/").removesuffix("artifacts") for _, uri, is_new, is_ours in rows if is_ours and is_new
    ]
    if ours:
        in_one_shot(subject.stack.compose, "migration", "runs", runs=ours)
    if others := sorted({run for run, *_ in rows} - set(ours)):
        raise MlstackError(
            f"runs were named as the doctor's that are not, or are not in MLflow's trash: {', '.join(others[:5])}.",
            "They were left alone. A package in Jupyter may have answered in the doctor's place.",
            "look at them in MLflow, and at what was installed in Jupyter: docker compose exec jupyter pip list --user",
        )
    return f"{len(ours)} removed"


@check(REACH, "the doctor's objects are gone", service("minio"), running)
def objects(subject: Subject) -> str:
    if not (subject.has_written or subject.artifacts):
        return "none written"
    prefixes = [DOCTOR, *subject.artifacts]
    removed = in_one_shot(subject.stack.compose, "bootstrap", "purge", prefixes=prefixes, datasets=[DOCTOR])["removed"]
    return f"{removed} versions removed"
