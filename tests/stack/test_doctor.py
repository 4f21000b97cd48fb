"""Each check of `make doctor` against a stack that is really broken; the stack is repaired after each."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

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
from tests.support.doctor import CHECKS, result_of, with_needs
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
def recreated(clone: Clone, service: str, override: str) -> Iterator[None]:
    """A service with another configuration."""
    path = clone.folder / "docker-compose.override.yml"
    path.write_text(f"services:\n  {service}:\n{override}")
    try:
        clone.compose("up", "--detach", "--wait", "--no-deps", service)
        yield
    finally:
        path.unlink()
        clone.compose("up", "--detach", "--wait", "--no-deps", "--force-recreate", service)


def override(service: str, text: str) -> Break:
    return lambda clone: recreated(clone, service, text)


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
def disconnected(clone: Clone) -> Iterator[None]:
    """Jupyter in a network without the name `mlflow`."""
    network, container = f"{clone.name}_work-internal", clone.compose("ps", "--quiet", "mlflow").strip()
    docker("network", "disconnect", network, container)
    try:
        yield
    finally:
        docker("network", "connect", "--alias", "mlflow", network, container)


@contextmanager
def let_in(clone: Clone) -> Iterator[None]:
    """Jupyter in the `data` network."""
    network, container = f"{clone.name}_data-internal", clone.compose("ps", "--quiet", "jupyter").strip()
    docker("network", "connect", network, container)
    try:
        yield
    finally:
        docker("network", "disconnect", network, container)


@contextmanager
def cut_off(clone: Clone) -> Iterator[None]:
    """Jupyter without a route to MinIO."""
    network, container = f"{clone.name}_transfers-internal", clone.compose("ps", "--quiet", "jupyter").strip()
    docker("network", "disconnect", network, container)
    try:
        yield
    finally:
        docker("network", "connect", network, container)


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
    """An MLflow whose own repository offers presigned URLs of MinIO."""
    shipped = clone.in_container("mlflow", "cat", ENTRY_POINTS)
    (clone.folder / "entry_points.txt").write_text(re.sub(r"^s3 = .*\n", "", shipped, flags=re.MULTILINE))
    with recreated(clone, "mlflow", f"    volumes: ['./entry_points.txt:{ENTRY_POINTS}:ro']\n"):
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

BROKEN: list[tuple[Check, Break, State, str, str]] = [
    (stack_checks.service("minio"), lambda c: stopped(c, "minio"), State.FAILED, "minio is exited", "make logs SERVICE=minio"),
    (stack_checks.configuration, value(LOG_LEVEL="DEBUG"), State.WARNING, "jupyter was started with other settings", "make up"),
    (stack_checks.images, other_image, State.WARNING, "jupyter runs an older image", "make up"),
    (stack_checks.backup, lambda c: backed_up(c, 30 * 86400), State.WARNING, "the last backup is 30 days old", "make backup"),
    (
        database_checks.LOGINS[database_checks.OWNER],
        value(POSTGRES_PASSWORD=WRONG),
        State.FAILED,
        "Postgres rejects POSTGRES_USER mlstack: password authentication failed",
        "put the old POSTGRES_USER",
    ),
    (
        database_checks.LOGINS[database_checks.TRACKING],
        value(MLFLOW_DB_PASSWORD=WRONG),
        State.FAILED,
        "Postgres rejects MLFLOW_DB_USER mlflow: password authentication failed",
        "or make up, which gives the database",
    ),
    (
        database_checks.LOGINS[database_checks.ACCOUNTS],
        value(ACCOUNTS_DB_PASSWORD=WRONG),
        State.FAILED,
        "Postgres rejects ACCOUNTS_DB_USER",
        "or make up, which gives the database",
    ),
    (
        database_checks.LOGINS[database_checks.READER],
        value(READER_DB_PASSWORD=WRONG),
        State.FAILED,
        "Postgres rejects READER_DB_USER",
        "or make up, which gives the database",
    ),
    (
        database_checks.LOGINS[database_checks.READER],
        writing_reader,
        State.FAILED,
        "READER_DB_USER may write",
        "make up sets its rights",
    ),
    (
        database_checks.checksums,
        corrupted_page,
        State.FAILED,
        r"Postgres read \d+ pages that are not as it wrote them",
        "make backup now",
    ),
    (
        BY_NAME["schema of tracking at head"],
        lambda c: changed_row(c, "alembic_version"),
        State.FAILED,
        "the tracking tables are at revision 0ld; the running MLflow has",
        "make up migrates",
    ),
    (
        BY_NAME["schema of accounts at head"],
        lambda c: changed_row(c, "accounts.alembic_version_auth"),
        State.FAILED,
        "the accounts tables are at revision 0ld; the running MLflow has",
        "make up migrates",
    ),
    (
        minio.round_trip,
        value(MLFLOW_S3_ACCESS_KEY_ID=WRONG),
        State.FAILED,
        "MinIO does not know MLFLOW_S3_ACCESS_KEY_ID",
        "make up",
    ),
    (minio.round_trip, value(MLFLOW_S3_SECRET_ACCESS_KEY=WRONG), State.FAILED, "MinIO rejects MLFLOW_S3_SECRET", "make up"),
    (minio.round_trip, without_policy, State.FAILED, "MinIO forbids MLflow's key what MLflow needs", "make up sets the policy"),
    (minio.round_trip, value(MINIO_BUCKET="nowhere"), State.FAILED, "MinIO forbids|bucket nowhere is not there", "make up"),
    (minio.round_trip, value(DATASETS_BUCKET="nowhere"), State.FAILED, "MinIO forbids|bucket nowhere is not there", "make up"),
    (minio.versions, without_versioning, State.FAILED, "keeps no versions", "make up switches them on"),
    (minio.versions, all_powerful, State.FAILED, "could remove a version permanently", "make up sets its policy"),
    (minio.scope, all_powerful, State.FAILED, "MLflow's key also opens another", "make up sets its policy"),
    (
        HERE["answers"],
        value(MLFLOW_TRACKING_PASSWORD=WRONG),
        State.FAILED,
        "rejects the account of the host",
        "make up",
    ),
    (HERE["answers"], value(MLFLOW_TRACKING_URI="http://127.0.0.1:1"), State.FAILED, "does not answer the host", "make logs"),
    (HERE["rows"], lambda c: renamed(c, "metrics"), State.FAILED, "MLflow answers the host with", "see Postgres"),
    (HERE["artifact"], without_policy, State.FAILED, "an artifact did not come through", "see MinIO"),
    (
        JUPYTER["answers"],
        override("jupyter", f"    environment: {{MLFLOW_TRACKING_PASSWORD: {WRONG}}}\n"),
        State.FAILED,
        "rejects the account of Jupyter",
        "make up",
    ),
    (JUPYTER["answers"], disconnected, State.FAILED, "MLflow does not answer Jupyter: .*(resolution|resolve|known)", "make logs"),
    (JUPYTER["artifact"], without_policy, State.FAILED, "an artifact did not come through", "see MinIO"),
    (JUPYTER["direct"], cut_off, State.WARNING, "do not go directly to MinIO from Jupyter: MLflow gives no", "make up"),
    (
        HERE["direct"],
        override("mlflow", "    environment: {MINIO_PORT: '1'}\n"),
        State.WARNING,
        "do not go directly to MinIO from the host: MLflow gives no presigned URLs, or MinIO cannot",
        "make up",
    ),
    (
        JUPYTER["links"],
        announcing_links,
        State.FAILED,
        "fetch files directly from MinIO",
        "use the MLflow image of this project",
    ),
    (
        JUPYTER["versions"],
        inside("jupyter", OLD_CLIENT, f"rm -r {USER_SITE}/mlflow"),
        State.WARNING,
        "the client on Jupyter is MLflow 3.0.0, the server 3",
        "%pip install mlflow==3",
    ),
    (mlflow.admin, value(MLFLOW_ADMIN_PASSWORD=WRONG), State.FAILED, r"rejects MLFLOW_ADMIN_USERNAME admin \(401\)", "make up"),
    (
        mlflow.unauthenticated,
        override("mlflow", "    environment: {MLFLOW_AUTH: 'off'}\n"),
        State.FAILED,
        "answered an unauthenticated client with 200",
        "MLFLOW_AUTH",
    ),
    (jupyter.token, value(JUPYTER_TOKEN=WRONG), State.FAILED, r"Jupyter rejects JUPYTER_TOKEN \(403\)", "make up"),
    (
        jupyter.kernel,
        inside("jupyter", NO_KERNEL, f"rm -r {KERNEL}"),
        State.FAILED,
        r"no kernel starts",
        "make logs SERVICE=jupyter",
    ),
    (jupyter.gpu, value(JUPYTER_GPU="on"), State.FAILED, "Jupyter sees no GPU", "JUPYTER_GPU=off"),
    (
        jupyter.folders,
        closed_notebooks,
        State.FAILED,
        "cannot write /home/mlstack/notebooks: Permission denied",
        "sudo chown -R",
    ),
    (jupyter.isolation, let_in, State.FAILED, "a notebook reaches the database", "keep jupyter out"),
    (jupyter.isolation, public, State.FAILED, "reaches the bucket mlflow without a presigned URL", "take public policies"),
    (
        jupyter.isolation,
        override("jupyter", "    environment: {PGPASSWORD: x}\n"),
        State.FAILED,
        "holds PGPASSWORD",
        "take it out",
    ),
]


def test_doctor_of_a_fresh_stack_passes_and_leaves_nothing(stack: Clone, role: Login, owner_keys: Keys) -> None:
    counts = "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM experiments), (SELECT count(*) FROM latest_metrics)"
    before = rows(role, counts)
    done = stack.make("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stdout
    assert "not checked" not in done.stdout
    assert re.search(r"All \d\d checks passed, 1 to look at", done.stdout)
    assert "there is no backup yet" in done.stdout
    assert not [name for name in SECRETS if stack.values[name] in done.stdout + done.stderr]
    assert rows(role, counts) == before
    assert list(histories(client_for(owner_keys), owner_keys.bucket)) == []
    assert stack.in_container("jupyter", "find", "/home/mlstack", "/logs", "-name", ".doctor*") == ""


def test_doctor_removes_the_run_of_an_interrupted_doctor(stack: Clone, role: Login) -> None:
    left = (
        "import mlflow; client = mlflow.MlflowClient();"
        "client.create_run('0', start_time=1, tags={'mlstack.doctor': '1'})"
    )  # fmt: skip
    stack.in_container("jupyter", "python3", "-c", left)
    assert rows(role, "SELECT count(*) FROM runs") == [(1,)]
    subject = Subject(Stack.of(stack.folder))
    checks = with_needs(HERE["rows"], tidying.runs)
    assert all(result.ok for result in run(subject, checks))
    assert rows(role, "SELECT count(*) FROM runs") == [(0,)]


@pytest.mark.parametrize(
    ("check", "broken", "state", "cause", "fix"), BROKEN, ids=[f"{case[0].name}-{number}" for number, case in enumerate(BROKEN)]
)
def test_doctor_names_what_is_broken_and_its_fix(
    stack: Clone, check: Check, broken: Break, state: State, cause: str, fix: str
) -> None:
    with broken(stack):
        result = result_of(Subject(Stack.of(stack.folder)), check)
        assert result.state is state, result
        assert re.search(cause, result.cause), result
        assert fix in result.fix, result
        assert result.why
        assert not [name for name in SECRETS if stack.values[name] in result.cause + result.fix]
    repaired = result_of(Subject(Stack.of(stack.folder)), check)
    assert repaired.ok, repaired


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
        (database_checks.connections, Limits(connection_share=0), r"\d+ of Postgres' 250 connections are in use"),
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
    with stopped(stack, "postgres"):
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
