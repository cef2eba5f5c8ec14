"""Anthropic's error envelope, both ways: `{"type":"error","error":{"type","message"},"request_id"}`.

Source: "Errors" reference and anthropic-python 2.12 `types/shared/error_type.py`, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from providers.dialects.base import ErrorBody
from providers.errors import (
    AuthFailed,
    Broken,
    ContextTooLong,
    Overloaded,
    ProviderError,
    Rejected,
    Throttled,
    for_status,
    retry_after_s,
    says_context_too_long,
)

_KIND_OF_TYPE: Mapping[str, type[ProviderError]] = {
    "invalid_request_error": Rejected,
    "not_found_error": Rejected,
    "request_too_large": Rejected,
    "authentication_error": AuthFailed,
    "permission_error": AuthFailed,
    "billing_error": AuthFailed,
    "rate_limit_error": Throttled,
    "overloaded_error": Overloaded,
    "timeout_error": Broken,
    "api_error": Broken,
}

_TYPE_OF_KIND: Mapping[str, str] = {
    "authentication": "authentication_error",
    "permission": "permission_error",
    "not_found": "not_found_error",
    "rate_limited": "rate_limit_error",
    "quota_exceeded": "rate_limit_error",
    "unavailable": "overloaded_error",
}


def error_object(error: ErrorBody) -> dict[str, Any]:
    kind = _TYPE_OF_KIND.get(error.kind)
    if kind is None:
        if error.status == 413:
            kind = "request_too_large"
        elif error.status < 500:
            kind = "invalid_request_error"
        else:
            kind = "timeout_error" if error.status == 504 else "api_error"
    message = error.message
    if error.param and error.param not in message:
        message = f"{error.param}: {message}"  # Anthropic itself names the field so; its envelope has no `param`
    inner = {"type": kind, "message": message, "details": {"error_code": error.code}}
    return {"type": "error", "error": inner, "request_id": error.request_id or None}


def encode_error(error: ErrorBody) -> bytes:
    return msgspec.json.encode(error_object(error))


def decode_error(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """Never raises: what cannot be read is judged by its status and kept in `body`."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = body[:500].decode("utf-8", "replace").strip() or f"HTTP {status} without a body"
        return for_status(status, text, headers=headers, body=body)
    return from_object(found, status=status, headers=headers, body=body)


def from_object(
    found: Any, *, status: int | None = None, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> ProviderError:
    """The kind of an error object, be it a whole body or an event's. status: None where none says an error."""
    outer = found if isinstance(found, dict) else {}
    inner = outer.get("error")
    if isinstance(inner, str):
        inner = {"message": inner}
    if not isinstance(inner, dict):
        inner = outer
    word = inner.get("type") if isinstance(inner.get("type"), str) else None
    message = inner.get("message")
    text = message if isinstance(message, str) else msgspec.json.encode(found).decode()[:500]
    if status is not None and status < 400:
        status = None
    if "credit balance is too low" in text:
        kind: type[ProviderError] | None = AuthFailed  # said with a 400, yet it is our account that lacks the money
    else:
        kind = _KIND_OF_TYPE.get(word or "")
        if kind is Rejected and says_context_too_long(text):
            kind = ContextTooLong
    if kind is None and status is not None:
        return for_status(status, text, headers=headers, code=word, body=body)
    wait = retry_after_s(headers) if headers else None
    return (kind or Broken)(text, status=status, code=word, body=body, retry_after_s=wait)
