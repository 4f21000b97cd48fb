"""`make rotate` on a running stack: interrupted and resumed, it loses nothing but the old secrets."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from minio import Minio
from minio.error import S3Error

from mlstack import settings
from mlstack.host.stack import Stack
from mlstack.postgres import accepts
from mlstack.s3 import client_for
from tests.stack.conftest import SECRETS
from tests.support.clone import Clone

# Written before the rotation, read after it: a run with an artifact, and a secret that MLflow keeps encrypted.
WRITE = """
import mlflow
with mlflow.start_run() as run:
    mlflow.log_metric("loss", 0.25)
    mlflow.log_text("kept", "kept.txt")
print("RUN", run.info.run_id)
"""
READ = """
import mlflow, sys
run = mlflow.get_run(sys.argv[1])
print(run.data.metrics["loss"], mlflow.artifacts.load_text(f"{run.info.artifact_uri}/kept.txt"))
"""
# MLflow looks up a webhook's host when one is made through its API: this one is written with MLflow's own key and code.
ENCRYPTED = """
from mlflow.store.model_registry.dbmodels.models import EncryptedString
import psycopg2
connection = psycopg2.connect("")
secret = EncryptedString().process_bind_param("a-webhook-secret", None)
columns = "webhook_id, name, url, status, secret, creation_timestamp, last_updated_timestamp"
values = ("id", "hook", "https://hook.example", "ACTIVE", secret, 1, 1)
connection.cursor().execute(f"INSERT INTO webhooks ({columns}) VALUES %s", (values,))
connection.commit()
"""
# The secret with which the server would sign a delivery.
DECRYPTED = """
from mlflow.store.model_registry.dbmodels.models import EncryptedString
import psycopg2
connection = psycopg2.connect("")
cursor = connection.cursor()
cursor.execute("SELECT secret FROM webhooks WHERE webhook_id = 'id'")
print([EncryptedString().process_result_value(secret, None) for (secret,) in cursor.fetchall()])
"""


def who_gets_in(stack: Clone, values: dict[str, str]) -> dict[str, bool]:
    """Which of these secrets each login of the stack accepts."""
    admin, notebook = settings.admin_account(values), settings.notebook_account(values)
    roles = settings.database_roles(values)
    port = int(values["POSTGRES_PORT"])
    logins = {
        "owner": replace(settings.database_owner(values), database="postgres"),
        "tracking": roles.tracking,
        "accounts": roles.accounts,
        "reader": roles.reader,
    }
    accepted = {name: accepts(replace(login, host="127.0.0.1", port=port)) for name, login in logins.items()}
    every_key = {
        "storage owner": settings.storage_owner(values),
        "storage user": settings.tracking_keys(values),
        "console user": settings.console_keys(values),
    }
    for name, keys in every_key.items():
        accepted[name] = _opens(client_for(replace(keys, endpoint=f"127.0.0.1:{values['MINIO_PORT']}")), keys.bucket)
    for account in (admin, notebook):
        url = f"http://127.0.0.1:{values['MLFLOW_PORT']}/api/2.0/mlflow/experiments/get?experiment_id=0"
        accepted[account.username] = requests.get(url, auth=(account.username, account.password), timeout=60).status_code == 200
    headers = {"Authorization": f"token {values['JUPYTER_TOKEN']}"}
    url = f"http://127.0.0.1:{values['JUPYTER_PORT']}/api/contents"
    accepted["jupyter"] = requests.get(url, headers=headers, timeout=60).status_code == 200
    return accepted


def _opens(client: Minio, bucket: str) -> bool:
    try:
        return client.bucket_exists(bucket)
    except S3Error:
        return False


def interrupt_after(stack: Clone, words: str) -> None:
    """Kills a rotation, as a power cut would, once it has logged this."""
    process = subprocess.Popen(
        [".venv/bin/mlstack", "rotate", "--yes"], cwd=stack.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    is_logged = any(words in line for line in process.stderr)  # reads no further
    process.kill()
    process.communicate(timeout=300)
    assert is_logged, words


@pytest.mark.refusal
def test_twice_interrupted_rotation_rejects_old_secrets_and_keeps_all_data(stack: Clone) -> None:
    old = stack.values
    run = next(line for line in stack.in_container("jupyter", "python3", "-c", WRITE).splitlines() if line.startswith("RUN "))
    stack.in_container("mlflow", "python3", "-c", ENCRYPTED)
    assert all(who_gets_in(stack, old).values())

    interrupt_after(stack, "wrote fresh secrets")
    assert stack.values == old
    halfway = stack.make("up")
    assert halfway.returncode != 0 and "make rotate resumes" in halfway.stderr
    interrupt_after(stack, "Postgres knows the new password of")
    chosen = Stack.of(stack.folder, file=".env.next").values if _next(stack).exists() else stack.values

    done = stack.make("rotate", "YES=1")
    assert done.returncode == 0, done.stderr
    new = stack.values
    assert not _next(stack).exists()
    assert {name for name in settings.VARIABLES if old[name] != new[name]} == set(SECRETS)
    assert "going on with the secrets" not in done.stderr or new == chosen
    assert not [name for name in SECRETS if new[name] in done.stdout + done.stderr]

    assert all(who_gets_in(stack, new).values()), who_gets_in(stack, new)
    assert not [name for name, works in who_gets_in(stack, old).items() if works]
    assert stack.in_container("jupyter", "python3", "-c", READ, run.split()[1]).splitlines()[-1] == "0.25 kept"
    assert stack.in_container("mlflow", "python3", "-c", DECRYPTED).splitlines()[-1] == "['a-webhook-secret']"


def _next(stack: Clone) -> Path:
    return stack.folder / ".env.next"


def test_rotate_rejects_a_secret_that_the_shell_sets(stack: Clone) -> None:
    done = stack.make("rotate", "YES=1", JUPYTER_TOKEN="set-in-the-shell")
    assert done.returncode != 0
    assert "JUPYTER_TOKEN comes from your shell" in done.stderr and "unset JUPYTER_TOKEN" in done.stderr
    assert not _next(stack).exists()
