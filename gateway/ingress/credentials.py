"""Where each dialect's clients carry their key. Nothing here judges a key; `admission/keys.py` does."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs


def presented_key(headers: Mapping[str, str], query: str) -> str | None:
    """The key as the client sent it, or None.

    Order: bearer, then the header of each vendor, then Gemini's query parameter. An empty bearer is skipped, since
    some SDKs send one beside their own header.
    """
    authorization = headers.get("authorization", "")
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    for name in ("x-api-key", "api-key", "x-goog-api-key"):
        if value := headers.get(name, "").strip():
            return value
    if "key=" in query:
        return next(iter(parse_qs(query).get("key", ())), None)
    return None
