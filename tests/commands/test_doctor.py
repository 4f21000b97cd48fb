"""Each check of `make doctor` against a stack that is really broken. Breakages that are independent are examined together."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

import pytest

from mlstack import settings
from mlstack.host.backup import manifest
from mlstack.host.compose import docker
from mlstack.host.doctor import Limits, State, Subject, diagnose, environment, jupyter, minio, mlflow, tidying
from mlstack.host.doctor import postgres as database_checks
from mlstack.host.doctor import stack as stack_checks
from mlstack.host.doctor.check import Check, run
from mlstack.host.stack import Stack
from mlstack.jobs.bootstrap.minio import _admin_for
from mlstack.jobs.gc.versions import histories
from mlstack.postgres import connected
from mlstack.s3 import client_for
from mlstack.settings import Keys, Login
from tests.stack.conftest import SECRETS, rows
from tests.support.clone import Clone
from tests.support.doctor import CHECKS, result_of, results_of, with_needs
from tests.support.service import wait_until
from tests.support.wheels import PACKAGES, entry_points

Break = Callable[[Clone], AbstractContextManager[None]]


# ---- breaking and repairing --------------------------------------------------------------------


@contextmanager
def with_values(clone: Clone, **changes: str) -> Iterator[None]:
    """Another value in `.env` than the one the services started with."""
    path = clone.folder / ".env"
    before = path.read_text()
    clone.set(**changes)
    try:
        yield
    finally:
        path.write_text(before)


def value(**changes: str) -> Break:
    return lambda clone: with_values(clone, **changes)


@contextmanager
def stopped(clone: Clone, service: str) -> Iterator[None]:
    clone.compose("stop", "--timeout", "5", service)
    try:
        yield
    finally:
        clone.compose("up", "--detach", "--wait", "--no-deps", service)


@contextmanager
def recreated(clone: Clone, **overrides: str) -> Iterator[None]:
    """Services with another configuration."""
    path = clone.folder / "docker-compose.override.yml"
    path.write_text("services:\n" + "".join(f"  {service}:\n    {override}\n" for service, override in overrides.items()))
    try:
        clone.compose("up", "--detach", "--wait", "--no-deps", *overrides)
        yield
    finally:
        path.unlink()
        clone.compose("up", "--detach", "--wait", "--no-deps", *overrides)


def override(**overrides: str) -> Break:
    return lambda clone: recreated(clone, **overrides)


@contextmanager
def changed_row(clone: Clone, table: str) -> Iterator[None]:
    """Another revision in MLflow's tables than the server's."""
    owner = database_login(clone)
    with connected(owner, 10) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT version_num FROM {table}")  # noqa: S608
        (before,) = cursor.fetchone()
        cursor.execute(f"UPDATE {table} SET version_num = '0ld'")  # noqa: S608
        try:
            yield
        finally:
            cursor.execute(f"UPDATE {table} SET version_num = %s", (before,))  # noqa: S608


@contextmanager
def writing_reader(clone: Clone) -> Iterator[None]:
    """The reader with rights that it should not have."""
    reader = clone.values["READER_DB_USER"]
    with connected(database_login(clone), 10) as connection, connection.cursor() as cursor:
        cursor.execute(f"GRANT CREATE ON SCHEMA public TO {reader}; ALTER ROLE {reader} SET default_transaction_read_only = off")
        try:
            yield
        finally:
            cursor.execute(f"REVOKE CREATE ON SCHEMA public FROM {reader}")
            cursor.execute(f"ALTER ROLE {reader} SET default_transaction_read_only = on")


@contextmanager
def renamed(clone: Clone, table: str) -> Iterator[None]:
    with connected(database_login(clone), 10) as connection, connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO away")
        try:
            yield
        finally:
            cursor.execute(f"ALTER TABLE away RENAME TO {table}")


@contextmanager
def corrupted_page(clone: Clone) -> Iterator[None]:
    """A table whose file is changed on disk, and then read."""
    owner = replace(database_login(clone), database="postgres")
    container = clone.compose("ps", "--quiet", "postgres").strip()
    with connected(owner, 10) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE rotten AS SELECT generate_series(1, 1000) AS number")
        cursor.execute("SELECT pg_relation_filepath('rotten')")
        (path,) = cursor.fetchone()
    docker("exec", container, "psql", "-U", owner.user, "-d", "postgres", "-qc", "CHECKPOINT")
    clone.compose("stop", "postgres")
    volume = f"{clone.name}_postgres"
    damage = f"printf rotten | dd of=/data/{path} bs=1 seek=5000 conv=notrunc status=none"
    docker(
        "run", "--rm", "--user", "0", "--entrypoint", "sh", "--volume", f"{volume}:/data", clone.image("postgres"), "-c", damage
    )
    clone.compose("up", "--detach", "--wait", "--no-deps", "postgres")
    with connected(owner, 30) as connection, connection.cursor() as cursor:
        with pytest.raises(Exception, match="invalid page"):
            cursor.execute("SELECT count(*) FROM rotten")
        try:
            yield
        finally:
            cursor.execute("DROP TABLE rotten")
            cursor.execute("SELECT pg_stat_reset()")


@contextmanager
def without_policy(clone: Clone, instead: str = "") -> Iterator[None]:
    """MLflow's key without its policy, or with another one."""
    owner = storage_owner(clone)
    admin, user = _admin_for(owner), clone.values["MLFLOW_S3_ACCESS_KEY_ID"]
    own = f"mlflow-{owner.bucket}"
    admin.detach_policy([own], user=user)
    if instead:
        admin.attach_policy([instead], user=user)
    try:
        yield
    finally:
        if instead:
            admin.detach_policy([instead], user=user)
        admin.attach_policy([own], user=user)


@contextmanager
def all_powerful(clone: Clone) -> Iterator[None]:
    """MLflow's key with the policy of an administrator, and a second bucket."""
    client = client_for(storage_owner(clone))
    client.make_bucket("another")
    try:
        with without_policy(clone, "readwrite"):
            yield
    finally:
        client.remove_bucket("another")


@contextmanager
def without_versioning(clone: Clone) -> Iterator[None]:
    from minio.commonconfig import ENABLED
    from minio.versioningconfig import SUSPENDED, VersioningConfig

    owner = storage_owner(clone)
    client = client_for(owner)
    client.set_bucket_versioning(owner.bucket, VersioningConfig(SUSPENDED))
    try:
        yield
    finally:
        client.set_bucket_versioning(owner.bucket, VersioningConfig(ENABLED))


@contextmanager
def disconnected(clone: Clone, service: str, name: str) -> Iterator[None]:
    """A service outside one of its networks."""
    network, container = f"{clone.name}_{name}-internal", clone.compose("ps", "--quiet", service).strip()
    docker("network", "disconnect", network, container)
    try:
        yield
    finally:
        docker("network", "connect", "--alias", service, network, container)


@contextmanager
def let_in(clone: Clone) -> Iterator[None]:
    """Jupyter in the `data` network."""
    network, container = f"{clone.name}_data-internal", clone.compose("ps", "--quiet", "jupyter").strip()
    docker("network", "connect", network, container)
    try:
        yield
    finally:
        docker("network", "disconnect", network, container)


def unnamed(clone: Clone) -> AbstractContextManager[None]:
    """Jupyter in a network without the name `mlflow`."""
    return disconnected(clone, "mlflow", "work")


def cut_off(clone: Clone) -> AbstractContextManager[None]:
    """Jupyter without a route to MinIO."""
    return disconnected(clone, "jupyter", "transfers")


@contextmanager
def public(clone: Clone) -> Iterator[None]:
    """A bucket that everyone can read."""
    owner = storage_owner(clone)
    client = client_for(owner)
    reading = {
        "Effect": "Allow",
        "Principal": {"AWS": ["*"]},
        "Action": ["s3:ListBucket"],
        "Resource": [f"arn:aws:s3:::{owner.bucket}"],
    }
    client.set_bucket_policy(owner.bucket, json.dumps({"Version": "2012-10-17", "Statement": [reading]}))
    try:
        yield
    finally:
        client.delete_bucket_policy(owner.bucket)


@contextmanager
def changed_inside(clone: Clone, service: str, done: str, undone: str) -> Iterator[None]:
    """A change that a user could make in a container."""
    clone.in_container(service, "sh", "-c", done)
    try:
        yield
    finally:
        clone.in_container(service, "sh", "-c", undone)


@contextmanager
def closed_notebooks(clone: Clone) -> Iterator[None]:
    folder = clone.folder / "notebooks"
    before = folder.stat().st_mode
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(before)


def inside(service: str, done: str, undone: str) -> Break:
    return lambda clone: changed_inside(clone, service, done, undone)


@contextmanager
def other_image(clone: Clone) -> Iterator[None]:
    """A newer image with the name of the running one."""
    name = clone.image("jupyter")
    before = docker("image", "inspect", "--format", "{{.Id}}", name).strip()
    docker("tag", clone.image("postgres"), name)
    try:
        yield
    finally:
        docker("tag", before, name)


@contextmanager
def backed_up(clone: Clone, age: float) -> Iterator[None]:
    created = time.gmtime(time.time() - age)
    folder = clone.folder / "backups" / time.strftime("%Y%m%dT%H%M%SZ", created)
    folder.mkdir(parents=True)
    files = dict.fromkeys((manifest.DUMP, manifest.OBJECTS_LIST, manifest.DATASETS_LIST), "0" * 64)
    manifest.write(
        folder,
        manifest.Manifest(
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", created), bytes=1234, new_bytes=1234,
            versions={"mlstack": "0.2.0", "mlflow": "3.17.2", "postgres": "17.6", "minio": "RELEASE.x"},
            bucket="mlflow", owners={}, counts={}, tables={}, files=files,
        ),
    )  # fmt: skip
    try:
        yield
    finally:
        shutil.rmtree(clone.folder / "backups")


def database_login(clone: Clone) -> Login:
    values = clone.values
    return Login(
        values["POSTGRES_USER"], values["POSTGRES_PASSWORD"], values["POSTGRES_DB"], "127.0.0.1", int(values["POSTGRES_PORT"])
    )


def storage_owner(clone: Clone) -> Keys:
    return replace(settings.storage_owner(clone.values), endpoint=f"127.0.0.1:{clone.values['MINIO_PORT']}")


@contextmanager
def announcing_links(clone: Clone) -> Iterator[None]:
    """An MLflow without accounts, whose own repository offers presigned URLs of MinIO."""
    shipped = clone.in_container("mlflow", "cat", ENTRY_POINTS)
    (clone.folder / "entry_points.txt").write_text(re.sub(r"^s3 = .*\n", "", shipped, flags=re.MULTILINE))
    with recreated(clone, mlflow=f"{{environment: {{MLFLOW_AUTH: 'off'}}, volumes: ['./entry_points.txt:{ENTRY_POINTS}:ro']}}"):
        yield


# ---- each check and what breaks its subject ------------------------------------------------------

WRONG = "wrong-0123456789"
HERE, JUPYTER = mlflow.STEPS[mlflow.HERE], mlflow.STEPS[mlflow.JUPYTER]
ENTRY_POINTS = entry_points("mlstack-server")
USER_SITE = "/home/mlstack/.local/lib/python3.13/site-packages"
OLD_CLIENT = (
    f"mkdir -p {USER_SITE} && cp -r {PACKAGES}/mlflow {USER_SITE}/"
    f" && sed -i 's/^VERSION = .*/VERSION = \"3.0.0\"/' {USER_SITE}/mlflow/version.py"
)
BY_NAME = {item.name: item for item in CHECKS}
KERNEL = "/home/mlstack/.local/share/jupyter/kernels/python3"
NO_KERNEL = f'mkdir -p {KERNEL} && echo \'{{"argv": ["/nonexistent"], "display_name": "x"}}\' >{KERNEL}/kernel.json'


@dataclass(frozen=True)
class Finding:
    """What the doctor says of a broken subject; the cause is a regular expression."""

    check: Check
    cause: str
    fix: str
    state: State = State.FAILED


# Each group is broken at once and examined once. No breakage has an effect on another's check.
GROUPS: dict[str, tuple[tuple[Break, ...], tuple[Finding, ...]]] = {
    "secrets of .env that the services do not know": (
        (
            value(
                **dict.fromkeys(
                    (
                        "POSTGRES_PASSWORD",
                        "MLFLOW_DB_PASSWORD",
                        "ACCOUNTS_DB_PASSWORD",
                        "READER_DB_PASSWORD",
                        "MLFLOW_S3_SECRET_ACCESS_KEY",
                        "MLFLOW_TRACKING_PASSWORD",
                        "MLFLOW_ADMIN_PASSWORD",
                        "JUPYTER_TOKEN",
                    ),
                    WRONG,
                ),
                JUPYTER_GPU="on",
            ),
        ),
        (
            Finding(
                database_checks.LOGINS[database_checks.OWNER],
                "Postgres rejects POSTGRES_USER mlstack: password authentication failed",
                "put the old POSTGRES_USER",
            ),
            Finding(
                database_checks.LOGINS[database_checks.TRACKING],
                "Postgres rejects MLFLOW_DB_USER mlflow: password authentication failed",
                "or make up, which gives the database",
            ),
            Finding(
                database_checks.LOGINS[database_checks.ACCOUNTS],
                "Postgres rejects ACCOUNTS_DB_USER",
                "or make up, which gives the database",
            ),
            Finding(
                database_checks.LOGINS[database_checks.READER],
                "Postgres rejects READER_DB_USER",
                "or make up, which gives the database",
            ),
            Finding(minio.round_trip, "MinIO rejects MLFLOW_S3_SECRET", "make up"),
            Finding(HERE["answers"], "rejects the account of the host", "make up"),
            Finding(mlflow.admin, r"rejects MLFLOW_ADMIN_USERNAME admin \(401\)", "make up"),
            Finding(jupyter.token, r"Jupyter rejects JUPYTER_TOKEN \(403\)", "make up"),
            Finding(jupyter.gpu, "Jupyter sees no GPU", "JUPYTER_GPU=off"),
        ),
    ),
    "what changed since the start": (
        (
            corrupted_page,
            value(LOG_LEVEL="DEBUG"),
            other_image,
            lambda clone: backed_up(clone, 30 * 86400),
            writing_reader,
            lambda clone: changed_row(clone, "alembic_version"),
            lambda clone: changed_row(clone, "accounts.alembic_version_auth"),
            without_versioning,
            inside("jupyter", OLD_CLIENT, f"rm -r {USER_SITE}/mlflow"),
            inside("jupyter", NO_KERNEL, f"rm -r {KERNEL}"),
            closed_notebooks,
            let_in,
            public,
        ),
        (
            Finding(database_checks.checksums, r"Postgres read \d+ pages that are not as it wrote them", "make backup now"),
            Finding(stack_checks.configuration, "^jupyter was started with other settings", "make up", State.WARNING),
            Finding(stack_checks.images, "^jupyter runs an older image", "make up", State.WARNING),
            Finding(stack_checks.backup, "the last backup is 30 days old", "make backup", State.WARNING),
            Finding(database_checks.LOGINS[database_checks.READER], "READER_DB_USER may write", "make up sets its rights"),
            Finding(
                BY_NAME["schema of tracking at head"],
                "the tracking tables are at revision 0ld; the running MLflow has",
                "make up migrates",
            ),
            Finding(
                BY_NAME["schema of accounts at head"],
                "the accounts tables are at revision 0ld; the running MLflow has",
                "make up migrates",
            ),
            Finding(minio.versions, "keeps no versions", "make up switches them on"),
            Finding(
                JUPYTER["versions"],
                "the client on Jupyter is MLflow 3.0.0, the server 3",
                "%pip install mlflow==3",
                State.WARNING,
            ),
            Finding(jupyter.kernel, "no kernel starts", "make logs SERVICE=jupyter"),
            Finding(jupyter.folders, "cannot write /home/mlstack/notebooks: Permission denied", "sudo chown -R"),
            Finding(jupyter.isolation, "a notebook reaches the database and the bucket mlflow without", "take public policies"),
        ),
    ),
    "MLflow's key without its policy": (
        (without_policy,),
        (
            Finding(minio.round_trip, "MinIO forbids MLflow's key what MLflow needs", "make up sets the policy"),
            Finding(HERE["artifact"], "an artifact did not come through", "see MinIO"),
            Finding(JUPYTER["artifact"], "an artifact did not come through", "see MinIO"),
        ),
    ),
    "MLflow's key with the policy of an administrator, and cut networks": (
        (all_powerful, value(MLFLOW_TRACKING_URI="http://127.0.0.1:1"), cut_off),
        (
            Finding(minio.versions, "could remove a version permanently", "make up sets its policy"),
            Finding(minio.scope, "MLflow's key also opens another", "make up sets its policy"),
            Finding(HERE["answers"], "does not answer the host", "make logs"),
            Finding(JUPYTER["direct"], "do not go directly to MinIO from Jupyter: MLflow gives no", "make up", State.WARNING),
        ),
    ),
    "an unknown key, a missing table, and Jupyter without MLflow": (
        (value(MLFLOW_S3_ACCESS_KEY_ID=WRONG), lambda clone: renamed(clone, "metrics"), unnamed),
        (
            Finding(minio.round_trip, "MinIO does not know MLFLOW_S3_ACCESS_KEY_ID", "make up"),
            Finding(HERE["rows"], "MLflow answers the host with", "see Postgres"),
            Finding(JUPYTER["answers"], "MLflow does not answer Jupyter: .*(resolution|resolve|known)", "make logs"),
        ),
    ),
    "another bucket": (
        (value(MINIO_BUCKET="nowhere"),),
        (Finding(minio.round_trip, "MinIO forbids|bucket nowhere is not there", "make up"),),
    ),
    "another bucket for data sets": (
        (value(DATASETS_BUCKET="nowhere"),),
        (Finding(minio.round_trip, "MinIO forbids|bucket nowhere is not there", "make up"),),
    ),
    "other environments of MLflow and Jupyter": (
        (
            override(
                mlflow="environment: {MINIO_PORT: '1'}",
                jupyter=f"environment: {{MLFLOW_TRACKING_PASSWORD: {WRONG}, PGPASSWORD: x}}",
            ),
        ),
        (
            Finding(
                HERE["direct"],
                "do not go directly to MinIO from the host: MLflow gives no presigned URLs, or MinIO cannot",
                "make up",
                State.WARNING,
            ),
            Finding(JUPYTER["answers"], "rejects the account of Jupyter", "make up"),
            Finding(jupyter.isolation, "holds PGPASSWORD", "take it out"),
        ),
    ),
    "MLflow without accounts and with its own presigned URLs, and no MinIO": (
        (announcing_links, lambda clone: stopped(clone, "minio")),
        (
            Finding(JUPYTER["links"], "fetch files directly from MinIO", "use the MLflow image of this project"),
            Finding(mlflow.unauthenticated, "answered an unauthenticated client with 200", "MLFLOW_AUTH"),
            Finding(stack_checks.service("minio"), "minio is exited", "make logs SERVICE=minio"),
        ),
    ),
}


def test_doctor_of_a_healthy_stack_passes_and_leaves_nothing(stack: Clone, role: Login, owner_keys: Keys) -> None:
    counts = "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM experiments), (SELECT count(*) FROM latest_metrics)"
    before, objects = rows(role, counts), versions_of(owner_keys)
    done = stack.make("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stdout
    assert "not checked" not in done.stdout
    assert re.search(r"All \d\d checks passed, 1 to look at", done.stdout)
    assert "there is no backup yet" in done.stdout
    assert not [name for name in SECRETS if stack.values[name] in done.stdout + done.stderr]
    assert rows(role, counts) == before
    assert versions_of(owner_keys) == objects
    assert stack.in_container("jupyter", "find", "/home/mlstack", "/logs", "-name", ".doctor*") == ""


def versions_of(keys: Keys) -> list[tuple[str, int]]:
    """Each object of both buckets, with the number of its versions."""
    return [(history[0].name, len(history)) for bucket in keys.buckets for history in histories(client_for(keys), bucket)]


def test_doctor_removes_the_run_of_an_interrupted_doctor(stack: Clone, role: Login) -> None:
    left = (
        "import mlflow; client = mlflow.MlflowClient();"
        "client.create_run('0', start_time=1, tags={'mlstack.doctor': '1'})"
    )  # fmt: skip
    before = rows(role, "SELECT count(*) FROM runs")
    stack.in_container("jupyter", "python3", "-c", left)
    assert rows(role, "SELECT count(*) FROM runs") != before
    subject = Subject(Stack.of(stack.folder))
    checks = with_needs(HERE["rows"], tidying.runs)
    assert all(result.ok for result in run(subject, checks))
    assert rows(role, "SELECT count(*) FROM runs") == before


@pytest.mark.parametrize("group", GROUPS)
def test_doctor_names_what_is_broken_and_its_fix(stack: Clone, subtests: pytest.Subtests, group: str) -> None:
    breakages, findings = GROUPS[group]
    with ExitStack() as broken:
        for breakage in breakages:
            broken.enter_context(breakage(stack))
        results = results_of(Subject(Stack.of(stack.folder)), *(finding.check for finding in findings))
        secrets = {stack.values[name] for name in SECRETS}
    for finding in findings:
        with subtests.test(finding.check.name):
            result = results[finding.check.name]
            assert result.state is finding.state, result
            assert re.search(finding.cause, result.cause), result
            assert finding.fix in result.fix, result
            assert result.why
            assert not [secret for secret in secrets if secret in result.cause + result.fix]
    others = results.keys() - {finding.check.name for finding in findings}
    assert [results[name] for name in others if results[name].state is not State.OK] == []


def test_doctor_reports_what_it_cannot_remove(stack: Clone) -> None:
    checks = with_needs(HERE["rows"], minio.round_trip, tidying.runs, tidying.objects)
    subject = Subject(Stack.of(stack.folder))
    first = list(run(subject, [item for item in checks if item.reach != tidying.REACH]))
    assert all(result.ok for result in first)
    with with_values(stack, MLFLOW_ADMIN_PASSWORD=WRONG, MINIO_ROOT_PASSWORD=WRONG):
        results = {result.name: result for result in run(subject, checks)}
    assert results[tidying.runs.name].state is State.FAILED
    assert results[tidying.objects.name].state is State.FAILED
    assert "SignatureDoesNotMatch" in results[tidying.objects.name].cause
    assert all(result.ok for result in run(subject, checks))


@pytest.mark.parametrize(
    ("check", "limits", "cause"),
    [
        (database_checks.connections, Limits(connection_share=0), r"\d+ of Postgres' 320 connections are in use"),
        (stack_checks.memory, Limits(memory_share=0), r"close to the memory limit: .*jupyter \d+%"),
        (minio.clock, Limits(clock_skew=-1), r"the clock of MinIO is \d+ s off"),
    ],
)
def test_doctor_reports_an_exceeded_limit_with_both_numbers(stack: Clone, check: Check, limits: Limits, cause: str) -> None:
    result = result_of(Subject(Stack.of(stack.folder), limits), check)
    assert re.search(cause, result.cause), result
    assert result_of(Subject(Stack.of(stack.folder)), check).ok


def test_doctor_reports_a_wrong_clock_with_the_difference(stack: Clone) -> None:
    result = result_of(Subject(Stack.of(stack.folder), now=lambda: time.time() + 3600), minio.clock)
    assert result.state is State.NOT_CHECKED or re.search(r"3[56]\d\d s off", result.cause)
    skewed = Subject(Stack.of(stack.folder), now=lambda: time.time() - 3600)
    (result,) = [item for item in run(skewed, with_needs(minio.clock)) if item.name == minio.clock.name]
    assert re.search(r"the clock of MinIO is 3[56]\d\d s off", result.cause), result


def test_doctor_names_another_folder_of_the_same_stack(stack: Clone, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("moved")
    for name in (".env", ".env.example", "docker-compose.yml"):
        shutil.copy2(stack.folder / name, other / name)
    for name in ("compose", "scripts"):
        shutil.copytree(stack.folder / name, other / name)
    result = result_of(Subject(Stack.of(other)), environment.name)
    assert f"was started from {stack.folder}" in result.cause
    assert "set COMPOSE_PROJECT_NAME" in result.fix


def test_doctor_reports_a_stopped_service_once(stack: Clone) -> None:
    # As shipped, MLflow is unhealthy after three failures.
    with recreated(stack, mlflow="healthcheck: {retries: 1}"), stopped(stack, "postgres"):
        wait_until(lambda: "unhealthy" in stack.compose("ps", "--format", "{{.Health}}", "mlflow"), 120)
        done = stack.make("doctor", JSON="1")
    assert done.returncode != 0
    report = json.loads(done.stdout)
    assert report["is_healthy"] is False
    failed = {item["name"]: item for item in report["checks"] if item["state"] == "failed"}
    assert failed.keys() == {"postgres", "mlflow"}
    assert "postgres is exited" in failed["postgres"]["cause"]
    assert "make up" in failed["postgres"]["fix"]
    unasked = {item["cause"] for item in report["checks"] if item["state"] == "not checked"}
    assert unasked == {failed["postgres"]["cause"], failed["mlflow"]["cause"]}


def test_doctor_reports_a_stopped_stack_once(stack: Clone) -> None:
    stack.compose("down", "--timeout", "10")
    try:
        done = stack.make("doctor")
        results = diagnose(Stack.of(stack.folder))
    finally:
        assert stack.make("up").returncode == 0
    assert done.returncode != 0
    assert "the stack is not running" in done.stdout
    assert "Fix: make up" in done.stdout
    assert re.search(r"– \d\d not checked: the stack is not running", done.stdout)
    assert "✓ Docker engine" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert [result.name for result in results if result.state is State.FAILED] == ["the stack is running"]


def test_every_check_passes_again_after_the_breakages(stack: Clone) -> None:
    """Each failed because of its own breakage. Last in this file: no test leaves anything broken."""
    results = diagnose(Stack.of(stack.folder))
    assert [result for result in results if result.state is not State.OK and result.name != stack_checks.backup.name] == []
