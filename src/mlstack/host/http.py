"""HTTP calls to the services' published ports."""

from collections.abc import Mapping

import urllib3

from mlstack.errors import MlstackError
from mlstack.settings import Account


def call(
    service: str,
    method: str,
    url: str,
    *,
    why: str,
    timeout: float,
    account: Account | None = None,
    headers: Mapping[str, str] | None = None,
    body: str | None = None,
    authorities: str = "",
) -> urllib3.BaseHTTPResponse:
    """The answer, whatever its status. Raises MlstackError with `why` it matters if there is none within `timeout` seconds.

    `authorities` is a file with the certificates to trust instead of the host's.
    """
    login = urllib3.make_headers(basic_auth=f"{account.username}:{account.password}") if account else {}
    try:
        sender = urllib3.PoolManager(ca_certs=authorities) if authorities else urllib3
        return sender.request(method, url, body=body, headers={**login, **(headers or {})}, timeout=timeout, retries=False)
    except urllib3.exceptions.HTTPError as error:
        raise MlstackError(
            f"{service} does not answer at {url}: {type(error).__name__}.",
            why,
            f"make up, if it is stopped; make logs SERVICE={service.lower()} says more",
        ) from error
