"""The error envelope, read and written, and the same facts inside a stream.

Source: OpenAI API reference "Error codes" and the `error` and `response.failed` stream events, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from providers.dialects.base import ErrorBody
from providers.dialects.openai_responses import wire
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
)

# The `type` word that OpenAI's clients know for a status.
_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
# Codes that say more than the status they come with. Without money, waiting does not help: an operator must act.
KIND_OF_CODE: Mapping[str, type[ProviderError]] = {
    "billing_hard_limit_reached": AuthFailed,
    "billing_not_active": AuthFailed,
    "bio_policy": ContentFiltered,
    "content_filter": ContentFiltered,
    "content_policy_violation": ContentFiltered,
    "context_length_exceeded": ContextTooLong,
    "cyber_policy": ContentFiltered,
    "image_content_policy_violation": ContentFiltered,
    "insufficient_quota": AuthFailed,
    "invalid_api_key": AuthFailed,
    "invalid_prompt": ContentFiltered,
    "overloaded_error": Overloaded,
    "rate_limit_exceeded": Throttled,
    "server_is_overloaded": Overloaded,
    "slow_down": Overloaded,
}


def error_object(error: ErrorBody) -> dict[str, Any]:
    return {
        "message": error.message,
        "type": _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error"),
        "param": error.param,
        "code": error.code,
    }


def encode_error(error: ErrorBody) -> bytes:
    return msgspec.json.encode({"error": error_object(error)})


def decode_error(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """The kind for a non-2xx answer. Never raises."""
    facts = _facts(body)
    message = facts.message or f"HTTP {status} without a readable error"
    code = facts.code or facts.type
    if (kind := KIND_OF_CODE.get(code or "")) is not None and status != 401:
        wait_s = retry_after_s(headers)
        return kind(message, status=status, code=code, param=facts.param, body=body, retry_after_s=wait_s)
    return for_status(status, message, headers=headers, code=code, param=facts.param, body=body)


def error_in_answer(error: wire.ResponseError | None) -> ProviderError:
    """An error told inside a 200: in a stream, or as the status of a whole response."""
    message = (error.message if error else "") or "the response failed without saying why"
    code = (error.code or error.type) if error else None
    kind = KIND_OF_CODE.get(code or "", Broken)
    if kind is Broken and code is not None and code.startswith(("image_", "invalid_", "unsupported_")):
        kind = Rejected
    return kind(message, code=code, param=error.param if error else None)


def _facts(body: bytes) -> wire.ResponseError:
    """OpenAI nests the object under `error`; servers like it have been seen to send a string, or the bare object."""
    try:
        found = msgspec.json.decode(body)
        inner = found.get("error", found) if isinstance(found, dict) else None
        if isinstance(inner, str):
            return wire.ResponseError(message=inner)
        if isinstance(inner, dict):
            # Some servers write the status as a number where OpenAI has a word.
            plain = {key: value for key, value in inner.items() if isinstance(value, str)}
            return msgspec.convert(plain, wire.ResponseError)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    return wire.ResponseError()
