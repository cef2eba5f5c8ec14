"""Where each dialect's clients carry their key. Nothing here judges a key; `admission/keys.py` does."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs

from gateway.errors import Unauthenticated
from providers.auth.sigv4 import scope_of, verify


def presented_key(headers: Mapping[str, str], query: str) -> str | None:
    """The key as the client sent it, or None.

    Order: bearer, then the header of each vendor, then Gemini's query parameter. An empty bearer is skipped, since
    some SDKs send one beside their own header.
    """
    authorization = headers.get("authorization", "")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    if (scope := scope_of(authorization)) is not None:
        return scope.access_key_id
    for name in ("x-api-key", "api-key", "x-goog-api-key"):
        if value := headers.get(name, "").strip():
            return value
    if "key=" in query:
        return next(iter(parse_qs(query).get("key", ())), None)
    return None


def check_signature(method: str, path: str, query: str, headers: Mapping[str, str], body: bytes, now_ns: int) -> None:
    """For AWS SDKs, which sign and do not send their secret: the Farebox key is both access key id and secret access
    key. It is no secret from us, so this proves not who asks (the key itself does) but that the request is whole.

    path, query: raw. Raises: Unauthenticated when an AWS signature is there and does not fit."""
    scope = scope_of(headers.get("authorization", ""))
    if scope is None:
        return
    if not verify(method, path, query, headers, body, scope.access_key_id, now_ns / 10**9):
        raise Unauthenticated(
            "the AWS signature does not fit this request; set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to the "
            "Farebox key, and check the clock",
            code="invalid_signature",
        )
