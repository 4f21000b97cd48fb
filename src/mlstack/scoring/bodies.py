"""Bodies of requests: limited in size and time."""

import asyncio
from typing import Any

from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

LARGEST_BODY = 16 << 20  # bytes
BODY_SECONDS = 30


async def whole_body(request: Request) -> bytes:
    """The whole body. Raises HTTPException 413 or 408."""
    too_large = HTTPException(413, f"The body is larger than {LARGEST_BODY >> 20} MiB: send the rows in several requests.")
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
    return bytes(body)


async def json_body(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises HTTPException 400, 413 or 408."""
    try:
        content = from_json(await whole_body(request))
    except ValueError:
        raise HTTPException(400, "The body is not JSON.") from None
    if not isinstance(content, dict):
        raise HTTPException(400, "The body is not a JSON object.")
    return content
