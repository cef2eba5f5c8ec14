"""Bedrock's errors, both ways: a type and a message, over HTTP and as an exception frame inside a stream.

Source: botocore 1.44 bedrock-runtime error shapes and `parsers.py`; recorded answers, where the type reads
"ValidationException:http://internal.amazon.com/...", read 2026-11.
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
    "ValidationException": Rejected,
    "ResourceNotFoundException": Rejected,
    "ConflictException": Broken,
    "ServiceQuotaExceededException": Throttled,
    "ThrottlingException": Throttled,
    "ModelNotReadyException": Overloaded,
    "ServiceUnavailableException": Overloaded,
    "ModelTimeoutException": Broken,
    "ModelErrorException": Broken,
    "ModelStreamErrorException": Broken,
    "InternalServerException": Broken,
    # Our key, whatever the status.
    "AccessDeniedException": AuthFailed,
    "UnrecognizedClientException": AuthFailed,
    "InvalidSignatureException": AuthFailed,
    "IncompleteSignature": AuthFailed,
    "IncompleteSignatureException": AuthFailed,
    "MissingAuthenticationToken": AuthFailed,
    "MissingAuthenticationTokenException": AuthFailed,
    "ExpiredTokenException": AuthFailed,
    "ExpiredToken": AuthFailed,
    "InvalidClientTokenId": AuthFailed,
    "OptInRequired": AuthFailed,
}

_TYPE_OF_STATUS: Mapping[int, str] = {
    401: "AccessDeniedException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
    504: "ModelTimeoutException",
}

# What may stand in a Converse stream; anything else fails to parse at the client.
_IN_STREAM: Mapping[str, str] = {
    "ThrottlingException": "throttlingException",
    "ValidationException": "validationException",
    "ServiceUnavailableException": "serviceUnavailableException",
    "InternalServerException": "internalServerException",
}


def type_of(error: ErrorBody) -> str:
    found = _TYPE_OF_STATUS.get(error.status)
    if found is None:
        found = "ValidationException" if error.status < 500 else "InternalServerException"
    return found


def encode_error(error: ErrorBody) -> bytes:
    """The type goes in the body, one of the two places where the SDKs look; the other is a header."""
    return msgspec.json.encode({"message": _message(error), "__type": type_of(error)})


def stream_exception(error: ErrorBody) -> tuple[str, bytes]:
    """Exception type and payload of the frame that ends a stream."""
    name = _IN_STREAM.get(type_of(error))
    if name is None:
        name = "validationException" if error.status < 500 else "modelStreamErrorException"
    return name, msgspec.json.encode({"message": _message(error)})


def _message(error: ErrorBody) -> str:
    if error.param and error.param not in error.message:
        return f"{error.param}: {error.message}"
    return error.message


def decode_error(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """Never raises: what cannot be read is judged by its status and kept in `body`."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    members = found if isinstance(found, dict) else {}
    word = bare_type(headers.get("x-amzn-errortype") or members.get("__type") or members.get("code"))
    text = message_of(members)
    if text is None:
        text = body[:500].decode("utf-8", "replace").strip() or f"HTTP {status} without a body"
    return of_type(word, text, members, status=status, headers=headers, body=body)


def of_type(
    word: str | None,
    text: str,
    members: Mapping[str, Any],
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> ProviderError:
    """The kind by the error's type, else by its status. status: None inside a stream."""
    original = members.get("originalStatusCode")
    if word in ("ModelErrorException", "ModelStreamErrorException") and isinstance(original, int) and original >= 400:
        # The model's own status says more than the 424 round it; but its 401 is not about our key.
        status = 500 if original in (401, 402, 403) else original
        return for_status(status, text, headers=headers, code=word, body=body)
    kind = _KIND_OF_TYPE.get(word or "")
    if kind is Rejected and says_context_too_long(text):
        kind = ContextTooLong
    if kind is None:
        if status is None:
            return Broken(text, code=word, body=body)
        return for_status(status, text, headers=headers, code=word, body=body)
    wait = retry_after_s(headers) if headers else None
    return kind(text, status=status, code=word, body=body, retry_after_s=wait)


def of_exception(name: str, payload: bytes) -> ProviderError:
    """An exception frame; its name is the type with a small first letter."""
    try:
        found = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = None
    members = found if isinstance(found, dict) else {}
    text = message_of(members) or payload[:500].decode("utf-8", "replace") or name
    return of_type(name[:1].upper() + name[1:], text, members, body=payload)


def message_of(members: Mapping[str, Any]) -> str | None:
    for name in ("message", "Message", "originalMessage", "OriginalMessage"):
        value = members.get(name)
        if isinstance(value, str) and value:
            return value
    return None


def bare_type(word: Any) -> str | None:
    """Without the namespace before `#` and the address behind `:`."""
    if not isinstance(word, str) or not word:
        return None
    return word.partition(":")[0].rpartition("#")[2].strip() or None
