"""Presigned URLs (AWS Signature Version 4) that also bind the headers of the request.

minio-py signs only the header Host, and MinIO obeys all others too. botocore could sign more, in four times the time.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.parse import quote, urlencode

from mlstack.settings import VERSITYGW, Keys

ALGORITHM = "AWS4-HMAC-SHA256"
CHECKSUM = "x-amz-checksum-sha256"
# Headers that MinIO obeys in an upload, although no client of the stack sends them: they set an object's date, checksum, tags
# and encoding. The policy of MLflow's user can name tags and denies them too; it cannot name the others.
NOT_IN_UPLOADS = (
    "content-encoding",
    "x-amz-tagging",
    "x-minio-source-etag",
    "x-minio-source-mtime",
    "x-minio-source-replication-request",
    "x-minio-source-version-id",
)


class Signer:
    """Signs URLs of one method, dated now; their common parts are computed once.

    `parameters` belong to the query. A request with another value in one of the `headers` is denied: they are signed, and are
    in the URL, because MinIO reads a signed header that a request lacks from the query. So a client need not send empty ones; a
    value that it does send takes precedence over the query and does not match the signature.
    """

    def __init__(
        self,
        method: str,
        host: str,
        keys: Keys,
        lifetime: timedelta,
        *,
        parameters: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        bucket: str | None = None,
    ) -> None:
        self._method, self._host, self._bucket = method, host, bucket or keys.bucket
        self._scheme = keys.public.partition("://")[0] if keys.is_external else "http"
        self._date = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        self._scope = f"{self._date[:8]}/{keys.region}/s3/aws4_request"
        signed = dict(sorted({"host": host, **(headers or {})}.items()))
        self._headers = "".join(f"{name}:{value}\n" for name, value in signed.items())
        self._signed = ";".join(signed)
        self._parameters = {
            "X-Amz-Algorithm": ALGORITHM,
            "X-Amz-Credential": f"{keys.access_key}/{self._scope}",
            "X-Amz-Date": self._date,
            "X-Amz-Expires": str(int(lifetime.total_seconds())),
            "X-Amz-SignedHeaders": self._signed,
            **(parameters or {}),
            **(headers or {}),
        }
        self._query = _encoded(self._parameters)
        self._key = f"AWS4{keys.secret_key}".encode()
        for part in self._scope.split("/"):
            self._key = hmac.digest(self._key, part.encode(), "sha256")

    def url(self, name: str) -> str:
        """A URL for the object of this name."""
        return self._signed_url(name, self._query, "UNSIGNED-PAYLOAD")

    def url_for_content(self, name: str, sha256: str, part: Mapping[str, str]) -> str:
        """A URL that accepts only the content with this checksum. `part` says which part of a large object it is."""
        query = _encoded({**self._parameters, **part, "X-Amz-Content-Sha256": sha256})
        return self._signed_url(name, query, sha256)

    def _signed_url(self, name: str, query: str, payload: str) -> str:
        path = quote(f"/{self._bucket}/{name}", safe="/~")
        request = f"{self._method}\n{path}\n{query}\n{self._headers}\n{self._signed}\n{payload}"
        digest = hashlib.sha256(request.encode()).hexdigest()
        signature = hmac.digest(self._key, f"{ALGORITHM}\n{self._date}\n{self._scope}\n{digest}".encode(), "sha256")
        return f"{self._scheme}://{self._host}{path}?{query}&X-Amz-Signature={signature.hex()}"


class SignerForVersityGW(Signer):
    """Signs uploads for VersityGW, which rejects every header of S3 that was not signed, and reads none from the query.

    So no header has to be signed as empty; the client sends the checksum as the header CHECKSUM, whose value is in the URL too.
    """

    def __init__(self, method: str, host: str, keys: Keys, lifetime: timedelta, *, bucket: str | None = None) -> None:
        super().__init__(method, host, keys, lifetime, bucket=bucket)
        self._bound = partial(Signer, method, host, keys, lifetime, bucket=bucket)

    def url_for_content(self, name: str, sha256: str, part: Mapping[str, str]) -> str:
        """As MinIO's, for a client that sends the checksum."""
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        return self._bound(parameters=part, headers={CHECKSUM: checksum}).url(name)


def signer_for_uploads(storage: str, host: str, keys: Keys, lifetime: timedelta, bucket: str | None = None) -> Signer:
    """Signs URLs to which a client may send one object's content and no header that S3 obeys."""
    if keys.is_external:  # it rejects headers that were not signed, and requests that lack a signed one
        return Signer("PUT", host, keys, lifetime, bucket=bucket)
    if storage == VERSITYGW:
        return SignerForVersityGW("PUT", host, keys, lifetime, bucket=bucket)
    return Signer("PUT", host, keys, lifetime, headers=dict.fromkeys(NOT_IN_UPLOADS, ""), bucket=bucket)


def _encoded(parameters: Mapping[str, str]) -> str:
    return urlencode(sorted(parameters.items()), quote_via=quote, safe="~")
