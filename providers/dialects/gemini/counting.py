"""countTokens: how many tokens a prompt is, asked and answered without running it.

Source: Gemini API v1beta and Vertex AI v1 discovery, read 2026-11. The Gemini API takes bare `contents` or a whole
request under `generateContentRequest`; Vertex takes the parts of a request side by side.
"""

from __future__ import annotations

from typing import Any

import msgspec

from providers.dialects.gemini.encode import encode_request
from providers.dialects.gemini.request import decode_request, read_object
from providers.errors import BadRequest, WireError
from providers.neutral import ChatRequest


def decode_count_request(body: bytes, *, model: str) -> ChatRequest:
    """The prompt to count. Raises: BadRequest."""
    fields = read_object(body)
    inner = fields.get("generateContentRequest", fields)
    if not isinstance(inner, dict):
        raise BadRequest("generateContentRequest must be an object", param="generateContentRequest")
    return decode_request(msgspec.json.encode(inner), model=model)


def encode_count_request(request: ChatRequest, *, model: str, vertex: bool = False) -> dict[str, Any]:
    """What does not change the count (sampling, safety) is left out."""
    body = encode_request(request, model=model, strict=False).body
    prompt: dict[str, Any] = {key: body[key] for key in ("contents", "systemInstruction", "tools") if key in body}
    if vertex:
        return prompt
    return {"generateContentRequest": {"model": f"models/{model}", **prompt}}


def decode_count_response(body: bytes) -> int:
    """Raises: WireError."""
    try:
        found = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a countTokens response: {error}", body=body[:4096]) from None
    total = found.get("totalTokens", 0)  # proto JSON leaves a zero out
    if not isinstance(total, int) or total < 0:
        raise WireError("a countTokens response without totalTokens", body=body[:4096])
    return total


def encode_count_response(tokens: int) -> bytes:
    return msgspec.json.encode(
        {"totalTokens": tokens, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens}]}
    )
