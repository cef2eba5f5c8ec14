"""The error envelope of the OpenAI family, both ways, and what its codes mean.

Source: OpenAI "Error codes", Groq and Cerebras error pages, Azure content filtering page, vLLM `ErrorResponse`, read
2026-11. Codes win over the status: a 400 may be the model's fault (Groq `tool_use_failed`) and a 429 an unpaid bill.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from providers.dialects.base import ErrorBody
from providers.errors import (
    AuthFailed,
    Broken,
    ContentFiltered,
    ContextTooLong,
    Overloaded,
    ProviderError,
    Rejected,
    Throttled,
    for_status,
    retry_after_s,
    says_context_too_long,
)

_KIND_OF_CODE: Mapping[str, type[ProviderError]] = {
    "context_length_exceeded": ContextTooLong,
    "content_filter": ContentFiltered,
    "content_policy_violation": ContentFiltered,
    "moderation_blocked": ContentFiltered,
    "ResponsibleAIPolicyViolation": ContentFiltered,
    "insufficient_quota": AuthFailed,
    "billing_hard_limit_reached": AuthFailed,
    "billing_not_active": AuthFailed,
    "account_deactivated": AuthFailed,
    "invalid_api_key": AuthFailed,
    "rate_limit_exceeded": Throttled,
    "capacity_exceeded": Overloaded,
    "over_capacity": Overloaded,
    "model_overloaded": Overloaded,
    # Groq: the model wrote a call or JSON that does not parse. Another try often succeeds.
    "tool_use_failed": Broken,
    "json_validate_failed": Broken,
}

# For an error inside a stream, where no status speaks.
_KIND_OF_TYPE: Mapping[str, type[ProviderError]] = {
    "rate_limit_error": Throttled,
    "too_many_requests_error": Throttled,
    "tokens": Throttled,
    "requests": Throttled,
    "insufficient_quota": AuthFailed,
    "authentication_error": AuthFailed,
    "permission_error": AuthFailed,
    "overloaded_error": Overloaded,
    "service_unavailable": Overloaded,
    "service_unavailable_error": Overloaded,
    "invalid_request_error": Rejected,
    "BadRequestError": Rejected,
    "not_found_error": Rejected,
}

_TYPE_OF_KIND: Mapping[str, str] = {
    "authentication": "authentication_error",
    "permission": "permission_error",
    "rate_limited": "rate_limit_error",
    "quota_exceeded": "insufficient_quota",
    "not_found": "not_found_error",
}


def encode_error(error: ErrorBody) -> bytes:
    """`{"error": {message, type, param, code}}`, which every SDK of the family reads."""
    return msgspec.json.encode({"error": error_object(error)})


def error_object(error: ErrorBody) -> dict[str, Any]:
    kind = _TYPE_OF_KIND.get(error.kind)
    if kind is None:
        kind = "invalid_request_error" if error.status < 500 else "server_error"
    found = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return found if error.inner is None else {**found, "innererror": error.inner}


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
    """The kind of an error object, be it a response's whole body or an event's. status: None inside a stream.

    Shapes seen: {"error": {...}}, {"error": "text"}, the bare object (vLLM before 0.10, Mistral, Cerebras), {"detail":
    ...} (FastAPI), each perhaps in a one-element array."""
    if isinstance(found, list) and found:
        found = found[0]
    outer = found if isinstance(found, dict) else {}
    inner = outer.get("error", outer)
    if isinstance(inner, str):
        inner = {"message": inner}
    if not isinstance(inner, dict):
        inner = {}
    message = inner.get("message") or inner.get("detail") or outer.get("message") or outer.get("detail")
    text = message if isinstance(message, str) and message else msgspec.json.encode(message or found).decode()[:500]
    code = _word(inner.get("code"))
    kind_word = _word(inner.get("type"))
    param = _word(inner.get("param"))
    if status is None or status < 400:
        told = _status(inner.get("code"), outer.get("status_code"), inner.get("status_code"), inner.get("status"))
        # A 200 in front of an error says nothing of it; a redirect does.
        status = told or (status if status is not None and status >= 300 else None)
    kind = _KIND_OF_CODE.get(code or "") or _KIND_OF_CODE.get(_inner_code(inner) or "")
    if kind is None and status is None:
        kind = _KIND_OF_TYPE.get(kind_word or "", Broken)
        if kind is Rejected and says_context_too_long(text):
            kind = ContextTooLong
    if kind is not None:
        wait = retry_after_s(headers) if headers else None
        error = kind(text, status=status, code=code or kind_word, param=param, body=body, retry_after_s=wait)
        if isinstance(error, ContentFiltered) and isinstance(inner.get("innererror"), dict):
            error.inner = inner["innererror"]
        return error
    assert status is not None
    return for_status(status, text, headers=headers, code=code or kind_word, param=param, body=body)


def _inner_code(error: Mapping[str, Any]) -> str | None:
    """Azure's finer code lies one level deeper."""
    inner = error.get("innererror")
    return _word(inner.get("code")) if isinstance(inner, dict) else None


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _status(*candidates: Any) -> int | None:
    for value in candidates:
        if isinstance(value, str) and value.isdigit():
            value = int(value)
        if isinstance(value, int) and 400 <= value < 600:
            return value
    return None
