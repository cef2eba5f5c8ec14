"""Google's Interactions API, for clients of it: a request's steps in, an answer's steps out, whole and streamed.

Only the two maps that an ingress needs: no provider is asked in this dialect, since Gemini itself is asked by
generateContent, which says the same. Source: Google's OpenAPI of the API inside llm-comply 0.5 and the types of
google-genai 3.4, read 2026-11.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from providers.dialects.base import ErrorBody
from providers.dialects.gemini_interactions.answer import EventEncoder, encode_response
from providers.dialects.gemini_interactions.request import NAME, decode_request
from providers.neutral import ChatRequest


def error_object(error: ErrorBody) -> dict[str, Any]:
    """`code` is a word here, not the status."""
    return {"code": error.code or error.kind, "message": error.message}


class GeminiInteractions:
    name = NAME
    stream_media_type = "text/event-stream"
    decode_request = staticmethod(decode_request)
    encode_response = staticmethod(encode_response)

    def event_encoder(self, request: ChatRequest) -> EventEncoder:
        return EventEncoder(request, error_object)

    def encode_error(self, error: ErrorBody) -> bytes:
        return msgspec.json.encode({"error": error_object(error)})


DIALECT: Final = GeminiInteractions()

__all__ = ["DIALECT", "GeminiInteractions"]
