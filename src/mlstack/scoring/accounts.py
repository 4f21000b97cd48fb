"""MLflow's accounts, for what a key does not allow: MLflow is asked whether a password is right."""

import asyncio
import base64
import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor

import requests
from cachetools import TTLCache

log = logging.getLogger(__name__)

REMEMBERED = 60  # seconds for which a right password is not asked again
CHECKS, MOST_WAITING = 2, 10
SECONDS = 10
_PATH = "/api/2.0/mlflow/experiments/get?experiment_id=0"


class AccountsError(Exception):
    """MLflow does not answer, or too many passwords wait to be checked."""

    retry_after = 5  # seconds


class Accounts:
    """Whether a name and a password are an account of MLflow. Belongs to one event loop.

    `excluded` is the service's own account: models could use it.
    """

    def __init__(self, mlflow: str, excluded: str) -> None:
        self._url, self._excluded = mlflow.rstrip("/") + _PATH, excluded
        self._known: TTLCache[str, None] = TTLCache(1000, REMEMBERED)
        self._threads = ThreadPoolExecutor(CHECKS, "accounts")
        self._waiting = 0

    async def has(self, name: str, password: str) -> bool:
        """Raises AccountsError if it cannot be known now."""
        if not name or not password or name == self._excluded:
            return False
        key = hashlib.sha256(f"{len(name)} {name} {password}".encode()).hexdigest()
        if key in self._known:
            return True
        if self._waiting >= MOST_WAITING:
            raise AccountsError
        self._waiting += 1
        try:
            is_right = await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, name, password)
        finally:
            self._waiting -= 1
        if is_right:
            self._known[key] = None
        return is_right

    def _ask(self, name: str, password: str) -> bool:
        try:
            login = base64.b64encode(f"{name}:{password}".encode()).decode()
            status = requests.get(self._url, headers={"Authorization": f"Basic {login}"}, timeout=SECONDS).status_code
        except requests.RequestException as error:
            log.warning("MLflow does not say whether a password is right: %s", type(error).__name__)
            raise AccountsError from error
        if status not in (200, 401, 403, 404):
            raise AccountsError
        return status != 401  # noqa: PLR2004
