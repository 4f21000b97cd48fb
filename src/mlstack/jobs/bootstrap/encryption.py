"""Encrypts with new keys what MLflow's server has stored encrypted, row by row. A second time it changes nothing."""

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack.jobs.bootstrap import Outcome, log, report
from mlstack.settings import Encryption


def rekey(connection: Connection, old: Encryption, new: Encryption) -> None:
    """Encrypts again, with the new keys, everything that the old keys decrypt."""
    report("secrets of webhooks", ensure_webhooks(connection, old.webhook_key, new.webhook_key))
    report("keys of model providers", ensure_providers(connection, old.passphrase, new.passphrase))


def ensure_webhooks(connection: Connection, old: str, new: str) -> Outcome:
    """Every webhook's secret is encrypted with `new`."""
    both, current = MultiFernet([Fernet(new), Fernet(old)]), Fernet(new)
    outcome = Outcome.ALREADY_THERE
    with connection.cursor() as cursor:
        cursor.execute("SELECT webhook_id, name, secret FROM webhooks WHERE secret IS NOT NULL")
        for webhook, name, secret in cursor.fetchall():
            if _decrypts(current, secret):
                continue
            try:
                rotated = both.rotate(secret).decode()
            except InvalidToken:
                _warn_unreadable(f"the secret of webhook {name}")
                continue
            cursor.execute("UPDATE webhooks SET secret = %s WHERE webhook_id = %s", (rotated, webhook))
            outcome = Outcome.CHANGED
    return outcome


def ensure_providers(connection: Connection, old: str, new: str) -> Outcome:
    """Every provider key's data key is wrapped with a key derived from `new`."""
    outcome = Outcome.ALREADY_THERE
    with connection.cursor() as cursor:
        cursor.execute("SELECT secret_id, secret_name, wrapped_dek, kek_version FROM secrets")
        rows = cursor.fetchall()
        if not rows:
            return outcome
        from mlflow.exceptions import MlflowException
        from mlflow.utils.crypto import KEKManager, unwrap_dek, wrap_dek

        for secret, name, wrapped, kek_version in rows:
            before, after = (KEKManager(passphrase, kek_version).get_kek() for passphrase in (old, new))
            try:
                unwrap_dek(bytes(wrapped), after)
            except MlflowException:
                try:
                    rewrapped = wrap_dek(unwrap_dek(bytes(wrapped), before), after)
                except MlflowException:
                    _warn_unreadable(f"the provider key {name}")
                    continue
                cursor.execute("UPDATE secrets SET wrapped_dek = %s WHERE secret_id = %s", (rewrapped, secret))
                outcome = Outcome.CHANGED
    return outcome


def _decrypts(cipher: Fernet, secret: str) -> bool:
    try:
        cipher.decrypt(secret)
    except InvalidToken:
        return False
    return True


def _warn_unreadable(secret: str) -> None:
    log.warning("%s was encrypted with a key that .env does not have: set it again in MLflow", secret)
