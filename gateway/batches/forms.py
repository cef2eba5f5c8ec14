"""What one line's end looks like to the batch's client: in OpenAI's output files, in Anthropic's results. Pure."""

from __future__ import annotations

import hashlib
from typing import Any, Final, Literal

import msgspec

from gateway.batches.lines import MESSAGES

Unrun = Literal["batch_cancelled", "batch_expired"]
_SAID: Final[dict[Unrun, str]] = {
    "batch_cancelled": "the batch was cancelled before this request was run",
    "batch_expired": "this request could not be run within the completion window of its batch",
}
_RESULT: Final[dict[Unrun, str]] = {"batch_cancelled": "canceled", "batch_expired": "expired"}


def line_of(endpoint: str, ident: str, custom_id: str, status: int, body: bytes) -> bytes:
    """Of a request that was run. body: its answer, or the error in the endpoint's own dialect."""
    if endpoint == MESSAGES:
        result: dict[str, Any] = {"type": "succeeded", "message": msgspec.Raw(body)}
        if status != 200:
            result = {"type": "errored", "error": msgspec.Raw(body)}
        return msgspec.json.encode({"custom_id": custom_id, "result": result})
    response = {"status_code": status, "request_id": ident, "body": msgspec.Raw(body)}
    return msgspec.json.encode({"id": ident, "custom_id": custom_id, "response": response, "error": None})


def unrun_of(code: Unrun, endpoint: str, batch_id: str, custom_id: str) -> bytes:
    if endpoint == MESSAGES:
        return msgspec.json.encode({"custom_id": custom_id, "result": {"type": _RESULT[code]}})
    ident = hashlib.sha256(f"{batch_id}:{custom_id}".encode()).hexdigest()[:24]
    error = {"code": code, "message": _SAID[code]}
    return msgspec.json.encode({"id": f"batch_req_{ident}", "custom_id": custom_id, "response": None, "error": error})


class _Result(msgspec.Struct):
    type: str


class _Line(msgspec.Struct):
    result: _Result


def result_type(line: bytes) -> str:
    """Of a line of Anthropic's."""
    return msgspec.json.decode(line, type=_Line).result.type
