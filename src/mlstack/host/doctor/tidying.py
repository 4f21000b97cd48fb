"""What the doctor itself wrote is gone afterwards, versions and all: with the owners' credentials, which this proves."""

from mlstack.host.doctor.check import check
from mlstack.host.doctor.context import Subject
from mlstack.host.doctor.stack import SERVICES, running
from mlstack.host.one_shot import in_one_shot
from mlstack.s3 import DOCTOR

REACH = "afterwards"


@check(REACH, "the doctor's runs are gone", SERVICES["postgres"], SERVICES["mlflow"])
def runs(subject: Subject) -> str:
    if subject.runs:
        in_one_shot(subject.project, "migration", "runs", runs=subject.runs)
    return f"{len(subject.runs)} removed"


@check(REACH, "the doctor's objects are gone", SERVICES["minio"], running)
def objects(subject: Subject) -> str:
    if not (subject.has_written or subject.artifacts):
        return "none written"
    removed = in_one_shot(subject.project, "bootstrap", "purge", prefixes=[DOCTOR, *subject.artifacts])["removed"]
    return f"{removed} versions removed"
