"""The error envelope of Google's APIs, both ways.

Source: google.rpc.Status and the Gemini API's "Troubleshooting" page, read 2026-11. A stream asked for as JSON array
wraps its error in a one-element array.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

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

# google.rpc.Code says more than the HTTP status. FAILED_PRECONDITION is billing not enabled or a place not served.
_KIND_OF_STATUS: Final[Mapping[str, type[ProviderError]]] = {
    "ABORTED": Broken,
    "CANCELLED": Broken,
    "DATA_LOSS": Broken,
    "DEADLINE_EXCEEDED": Broken,
    "FAILED_PRECONDITION": AuthFailed,
    "INTERNAL": Broken,
    "INVALID_ARGUMENT": Rejected,
    "NOT_FOUND": Rejected,
    "OUT_OF_RANGE": Rejected,
    "PERMISSION_DENIED": AuthFailed,
    "RESOURCE_EXHAUSTED": Throttled,
    "UNAUTHENTICATED": AuthFailed,
    "UNAVAILABLE": Overloaded,
    "UNIMPLEMENTED": Rejected,
    "UNKNOWN": Broken,
}
# A bad key comes as a 400 with one of these.
_OUR_KEY: Final = frozenset(
    {"API_KEY_INVALID", "API_KEY_EXPIRED", "API_KEY_SERVICE_BLOCKED", "BILLING_DISABLED", "SERVICE_DISABLED"}
)
_STATUS_WORD: Final[Mapping[int, str]] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "RESOURCE_EXHAUSTED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")


def encode_error(error: ErrorBody) -> bytes:
    return msgspec.json.encode(error_object(error))


def error_object(error: ErrorBody) -> dict[str, Any]:
    """Our own stable code rides as the reason of an ErrorInfo, where Google's clients look for one."""
    word = _STATUS_WORD.get(error.status, "INTERNAL" if error.status >= 500 else "INVALID_ARGUMENT")
    info: dict[str, Any] = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": error.code.upper(),
        "domain": "farebox",
    }
    facts = {"requestId": error.request_id, "field": error.param}
    if metadata := {key: value for key, value in facts.items() if value}:
        info["metadata"] = metadata
    details = [info]
    if error.retry_after_s is not None:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{error.retry_after_s:g}s"})
    return {"error": {"code": error.status, "message": error.message, "status": word, "details": details}}


def decode_error(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """The kind for a non-2xx answer. Never raises."""
    facts = _facts(body)
    if not facts:
        text = body[:500].decode("utf-8", "replace").strip() or f"HTTP {status} without a body"
        return for_status(status, text, headers=headers, body=body)
    return _kind(facts, status, headers, body)


def error_in_answer(body: bytes) -> ProviderError:
    """An error object behind a 200, whole or in a stream."""
    return _kind(_facts(body), None, {}, body)


def _kind(facts: Mapping[str, Any], status: int | None, headers: Mapping[str, str], body: bytes) -> ProviderError:
    given = facts.get("message")
    message = given if isinstance(given, str) and given else "an error without a message"
    word = facts.get("status")
    code = word if isinstance(word, str) else None
    number = facts.get("code")
    if status is None and isinstance(number, int) and 400 <= number < 600:
        status = number
    listed = facts.get("details")
    details = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    reasons = {str(entry["reason"]) for entry in details if "reason" in entry}
    wait_s = _retry_delay_s(details)
    if wait_s is None:
        wait_s = retry_after_s(headers)
    kind = _KIND_OF_STATUS.get(code or "")
    if reasons & _OUR_KEY:
        kind = AuthFailed
    elif kind is Rejected or (kind is None and status in (400, 413)):
        if says_context_too_long(message):
            kind = ContextTooLong
        elif "blocked" in message.lower() and "safety" in message.lower():
            kind = ContentFiltered
    if kind is None:
        if status is None:
            kind = Broken
        else:
            return for_status(status, message, headers=headers, code=code, body=body)
    return kind(message, status=status, code=code, param=_field(details), body=body, retry_after_s=wait_s)


def _retry_delay_s(details: list[dict[str, Any]]) -> float | None:
    for entry in details:
        delay = entry.get("retryDelay")
        if isinstance(delay, str) and (found := _DURATION.fullmatch(delay)) is not None:
            return float(found[1])
    return None


def _field(details: list[dict[str, Any]]) -> str | None:
    for entry in details:
        listed = entry.get("fieldViolations")
        for violation in listed if isinstance(listed, list) else ():
            if isinstance(violation, dict) and isinstance(violation.get("field"), str):
                return str(violation["field"])
    return None


def _facts(body: bytes) -> Mapping[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    if isinstance(found, list) and found:
        found = found[0]
    inner = found.get("error") if isinstance(found, dict) else None
    if isinstance(inner, str):
        return {"message": inner}
    return inner if isinstance(inner, dict) else {}
