"""The client's body: read once, bounded, and refused in any coding we do not speak."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway.errors import BodyTooLarge, GatewayError, InvalidRequest

Receive = Callable[[], Awaitable[dict[str, Any]]]


class ClientGone(GatewayError):
    """The client left before its request was whole: nobody is there to answer."""


async def read_body(receive: Receive, headers: Mapping[str, str], limit_bytes: int) -> bytes:
    """The whole body.

    Raises: BodyTooLarge as soon as the announced or received size passes the limit; InvalidRequest for a coded body;
    ClientGone.
    """
    if headers.get("content-encoding", "identity") not in ("", "identity"):
        raise InvalidRequest("send the body without content-encoding", code="unsupported_content_encoding")
    announced = headers.get("content-length")
    if announced is not None and announced.isdigit() and int(announced) > limit_bytes:
        raise _too_large(limit_bytes)
    first = await receive()
    if first["type"] == "http.disconnect":
        raise ClientGone("client left")
    body: bytes = first.get("body", b"")
    if not first.get("more_body", False):
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
        return body
    pieces, size = [body], len(body)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("client left")
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit_bytes} bytes, this server's limit")
