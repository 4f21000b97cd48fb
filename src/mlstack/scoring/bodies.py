"""Bodies of requests: limited in size and time."""

import asyncio
import zlib
from typing import Any

from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

LARGEST_BODY = 16 << 20  # bytes
BODY_SECONDS = 30
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


async def whole_body(request: Request) -> bytes:
    """The whole body, unpacked. Raises HTTPException 413, 408, 415, or 400 for one that cannot be unpacked."""
    too_large = HTTPException(413, f"The body is larger than {LARGEST_BODY >> 20} MiB: send the rows in several requests.")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise HTTPException(415, "The service unpacks gzip and deflate only.")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > LARGEST_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for block in request.stream():
                body += block
                if len(body) > LARGEST_BODY:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, "The body takes too long.") from None
    except ClientDisconnect:
        raise HTTPException(400, "The client disconnected.") from None
    if encoding == "identity":
        return bytes(body)
    unpacking = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        unpacked = unpacking.decompress(body, LARGEST_BODY + 1)
    except zlib.error:
        raise HTTPException(400, f"The body is not packed with {encoding}.") from None
    if len(unpacked) > LARGEST_BODY:
        raise too_large
    if not unpacking.eof:
        raise HTTPException(400, f"The body ends before what {encoding} packed.")
    return unpacked


async def json_body(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises HTTPException as `whole_body` does, and 400."""
    try:
        content = from_json(await whole_body(request))
    except ValueError:
        raise HTTPException(400, "The body is not JSON.") from None
    if not isinstance(content, dict):
        raise HTTPException(400, "The body is not a JSON object.")
    return content
