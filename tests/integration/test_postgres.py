"""docker/postgres: the official image's interface, and a server that loses nothing and leaves nothing half-created."""

import gzip
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import ExecWaitStrategy

from mlstack.errors import MlstackError
from mlstack.host.compose import docker
from mlstack.postgres import connected
from mlstack.settings import Login
from tests.support.clone import Clone
from tests.support.service import Service, wait_until

READY = ExecWaitStrategy(["pg_isready", "-h", "127.0.0.1"])
PASSWORD = "pa$$ 'w0rd\" #\\"


@pytest.fixture
def fresh(built: Clone) -> Callable[..., PostgresContainer]:
    """A container of our image as testcontainers makes one of the official image."""
    return lambda **options: PostgresContainer(
        built.image("postgres"), username="somebody", password=PASSWORD, dbname="some_db", driver=None,
        name=f"{built.name}-postgres-fresh", **options,
    )  # fmt: skip


@pytest.fixture
def bare(built: Clone) -> Callable[..., DockerContainer]:
    """The same without testcontainers' wait, for starts that may fail."""

    def make(**environment: str) -> DockerContainer:
        names = {"POSTGRES_USER": "somebody", "POSTGRES_DB": "some_db"}
        return DockerContainer(built.image("postgres"), env=names | environment, ports=[5432], name=f"{built.name}-postgres-bare")

    return make


@pytest.fixture
def volume(built: Clone) -> Iterator[str]:
    name = docker("volume", "create", f"{built.name}-postgres-volume").strip()
    yield name
    docker("volume", "rm", name)


def query(container: DockerContainer, statement: str, *, password: str = PASSWORD) -> list[tuple[object, ...]]:
    host, port = container.get_container_host_ip(), container.get_exposed_port(5432)
    with connected(Login("somebody", password, "some_db", host, int(port)), 20) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def test_row_is_read_back_as_written(owner: Login) -> None:
    with connected(owner) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE t (x double precision, y text)")
        cursor.execute("INSERT INTO t VALUES (%s, %s)", (0.1 + 0.2, "ünï'cödé"))
        cursor.execute("SELECT x, y FROM t")
        assert cursor.fetchall() == [(0.1 + 0.2, "ünï'cödé")]


def test_postgres_is_17_with_pgvector_and_page_checksums(fresh: Callable[..., PostgresContainer]) -> None:
    with fresh() as container:
        assert str(query(container, "SHOW server_version")[0][0]).startswith("17.")
        assert query(container, "SHOW data_checksums") == [("on",)]
        query(container, "CREATE EXTENSION vector")
        assert query(container, "SELECT '[3,4]'::vector <-> '[0,0]'::vector") == [(5.0,)]


def test_postgres_runs_as_its_own_uid_and_leaves_no_zombie(postgres: Service, owner: Login) -> None:
    assert postgres.run("id", "-u") == "999\n"
    for _ in range(3):
        psycopg2.connect(
            host=owner.host, port=owner.port, user=owner.user, password=owner.password, dbname=owner.database
        ).close()
    states = postgres.run("bash", "-c", "cat /proc/[0-9]*/status | grep ^State")
    assert "Z" not in states, states


def test_init_scripts_run_once_in_order(fresh: Callable[..., PostgresContainer], tmp_path: Path) -> None:
    (tmp_path / "1.sql").write_text("CREATE TABLE seen (id serial, what text); INSERT INTO seen (what) VALUES ('sql')")
    (tmp_path / "2.sh").write_text("#!/bin/sh\npsql -c \"INSERT INTO seen (what) VALUES ('$POSTGRES_USER')\"\n")
    (tmp_path / "2.sh").chmod(0o755)
    (tmp_path / "3.sql.gz").write_bytes(gzip.compress(b"INSERT INTO seen (what) VALUES ('gz')"))
    tmp_path.chmod(tmp_path.stat().st_mode | stat.S_IROTH | stat.S_IXOTH)
    with fresh().with_volume_mapping(tmp_path, "/docker-entrypoint-initdb.d") as container:
        expected = [("sql",), ("somebody",), ("gz",)]
        assert query(container, "SELECT what FROM seen ORDER BY id") == expected
        container.get_wrapped_container().restart()
        wait_until(lambda: "ready to accept" in container.get_logs()[1].decode())
        assert query(container, "SELECT what FROM seen ORDER BY id") == expected


def test_password_may_come_from_a_file(bare: Callable[..., DockerContainer], tmp_path: Path) -> None:
    (tmp_path / "password").write_text("from-the-file\n")
    tmp_path.chmod(0o755)
    container = bare(POSTGRES_PASSWORD="unused", POSTGRES_PASSWORD_FILE="/secret/password").with_volume_mapping(
        tmp_path, "/secret"
    )
    with container.waiting_for(READY):
        assert query(container, "SELECT 1", password="from-the-file") == [(1,)]
        with pytest.raises(MlstackError, match="rejects the password"):
            query(container, "SELECT 1", password="unused")


@pytest.mark.refusal
def test_postgres_without_a_password_does_not_start(built: Clone) -> None:
    code, log = run_to_its_end(built)
    assert code == 1
    assert "POSTGRES_PASSWORD is empty" in log
    assert "make env" in log


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_data_survives_a_clean_stop_and_start(bare: Callable[..., DockerContainer], signal: str) -> None:
    with bare(POSTGRES_PASSWORD=PASSWORD).waiting_for(READY) as container:
        query(container, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS x")
        wrapped = container.get_wrapped_container()
        wrapped.kill(signal)
        assert wrapped.wait(timeout=60)["StatusCode"] == 0
        assert "database system is shut down" in wrapped.logs(tail=2).decode()
        wrapped.start()
        READY.wait_until_ready(container)
        assert query(container, "SELECT count(*) FROM kept") == [(1000,)]
        assert "automatic recovery" not in wrapped.logs().decode()


def test_postgres_stops_cleanly_while_clients_are_connected(postgres: Service, owner: Login) -> None:
    with connected(owner) as idle:
        container = postgres.wrapped
        container.stop(timeout=60)
        assert postgres.wrapped.attrs["State"]["ExitCode"] == 0
        assert "database system is shut down" in container.logs(tail=2).decode()
        assert idle.closed == 0  # it did not wait for this client to leave
    container.start()
    wait_until(postgres.is_healthy)


def test_first_start_that_was_killed_starts_over(built: Clone, bare: Callable[..., DockerContainer], volume: str) -> None:
    data = "/var/lib/postgresql/data"
    with bare(POSTGRES_PASSWORD=PASSWORD).with_volume_mapping(volume, data, "rw") as killed:
        container = killed.get_wrapped_container()
        wait_until(lambda: container.exec_run(f"test -e {data}/.first-start/PG_VERSION").exit_code == 0, interval=0.02)
        container.kill("SIGKILL")
        container.wait(timeout=60)
    left = docker("run", "--rm", "--volume", f"{volume}:{data}", "--entrypoint", "ls", built.image("postgres"), "-A", data)
    assert left.split() == [".first-start"]
    again = bare(POSTGRES_PASSWORD=PASSWORD).with_volume_mapping(volume, data, "rw")
    with again.waiting_for(READY):
        assert query(again, "SELECT current_database()") == [("some_db",)]


def test_volume_of_another_major_version_is_rejected_unchanged(built: Clone, volume: str) -> None:
    mount = ("--volume", f"{volume}:/var/lib/postgresql/data")
    image = built.image("postgres")
    docker("run", "--rm", *mount, "--entrypoint", "sh", image, "-c", "echo 16 > /var/lib/postgresql/data/PG_VERSION")
    code, log = run_to_its_end(built, *mount, "--env", "POSTGRES_PASSWORD=some-password")
    assert code == 1
    assert "Postgres 16" in log
    assert "POSTGRES_IMAGE=postgres:16" in log
    assert docker("run", "--rm", *mount, "--entrypoint", "ls", image, "-A", "/var/lib/postgresql/data").split() == ["PG_VERSION"]


def test_volume_with_unknown_files_is_rejected(built: Clone, volume: str) -> None:
    mount = ("--volume", f"{volume}:/var/lib/postgresql/data")
    docker(
        "run",
        "--rm",
        *mount,
        "--entrypoint",
        "sh",
        built.image("postgres"),
        "-c",
        "echo thesis > /var/lib/postgresql/data/thesis.tex",
    )
    code, log = run_to_its_end(built, *mount, "--env", "POSTGRES_PASSWORD=some-password")
    assert code == 1
    assert "holds files but no database" in log


def run_to_its_end(built: Clone, *options: str) -> tuple[int, str]:
    """Exit code and output of a container that is expected to stop by itself."""
    done = subprocess.run(
        ["docker", "run", "--rm", *options, built.image("postgres")], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr
