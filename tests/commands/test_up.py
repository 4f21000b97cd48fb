"""`make up` with what keeps it from starting the stack, and beside another command."""

import socket
import subprocess

from mlstack.settings import Login
from tests.stack.conftest import rows
from tests.support.clone import Clone


def test_up_explains_a_changed_password_and_accepts_the_old_one(stack: Clone, role: Login) -> None:
    old = stack.values["POSTGRES_PASSWORD"]
    runs = rows(role, "SELECT count(*) FROM runs")
    stack.set(POSTGRES_PASSWORD="0123456789abcdef0123456789abcdef")
    done = stack.make("up")
    assert done.returncode != 0
    assert "the volume keeps the old one" in done.stderr
    assert "put the old POSTGRES_USER and POSTGRES_PASSWORD back" in done.stderr
    assert "Traceback" not in done.stderr
    stack.set(POSTGRES_PASSWORD=old)
    done = stack.make("up")
    assert done.returncode == 0, done.stderr
    assert rows(role, "SELECT count(*) FROM runs") == runs


def test_up_names_the_process_and_variable_of_a_port_in_use(stack: Clone) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = stack.make("up", MLFLOW_PORT=str(port))
    assert done.returncode != 0
    assert f"port {port} is used by" in done.stderr
    assert "set MLFLOW_PORT in .env" in done.stderr
    assert "MLFLOW_PORT comes from your shell" in done.stderr


def test_second_concurrent_up_is_rejected_and_names_the_first(stack: Clone) -> None:
    first = subprocess.Popen(
        [".venv/bin/mlstack", "up"], cwd=stack.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert first.stderr
    first.stderr.readline()  # it has the lock once it prints anything
    done = stack.make("down")
    assert done.returncode != 0
    assert f"make up, process {first.pid}" in done.stderr
    _, rest = first.communicate(timeout=300)
    assert first.returncode == 0, rest


def test_up_names_a_network_that_docker_does_not_create(stack: Clone) -> None:
    """Docker's addresses would be used up for all stacks on the host: an unknown driver ends the same way."""
    override = stack.folder / "docker-compose.override.yml"
    override.write_text("networks: {extra: {driver: unknown}}\nservices: {jupyter: {networks: {extra: {}}}}\n")
    try:
        done = stack.make("up")
    finally:
        override.unlink()
    assert done.returncode != 0
    assert f"Docker did not create the network {stack.name}_extra" in done.stderr
    assert "docker network prune" in done.stderr
