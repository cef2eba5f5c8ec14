"""Anthropic Messages: `/v1/messages` as spoken by Anthropic, and by Claude on Bedrock, Vertex and Foundry."""

from __future__ import annotations

from collections.abc import Mapping

from providers.dialects import base
from providers.dialects.anthropic_messages.content import NAME
from providers.dialects.anthropic_messages.errors import decode_error, encode_error
from providers.dialects.anthropic_messages.events import EventDecoder, EventEncoder
from providers.dialects.anthropic_messages.request import (
    carries_foreign_seals,
    decode_count_request,
    decode_request,
    decode_token_count,
    encode_count_request,
    encode_request,
    encode_token_count,
)
from providers.dialects.anthropic_messages.response import decode_response, encode_response
from providers.dialects.anthropic_messages.tap import StreamTap
from providers.dialects.base import Encoded, ErrorBody
from providers.errors import ProviderError
from providers.neutral import ChatRequest, ChatResponse

__all__ = [
    "DIALECT",
    "AnthropicMessages",
    "carries_foreign_seals",
    "decode_count_request",
    "decode_token_count",
    "encode_count_request",
    "encode_token_count",
]


class AnthropicMessages(base.Whole):
    """See `providers.dialects.base.Dialect`."""

    name = NAME
    stream_media_type = "text/event-stream; charset=utf-8"

    def __init__(self, told_model: str | None = None) -> None:
        """told_model: what a client of a forwarded stream is told in place of the provider's name for the model."""
        self._told_model = told_model

    def decode_request(self, body: bytes, *, model: str | None = None, stream: bool | None = None) -> ChatRequest:
        return decode_request(body, model=model, stream=stream)

    def encode_request(self, request: ChatRequest, *, model: str, strict: bool = True) -> Encoded:
        return encode_request(request, model=model, strict=strict)

    def decode_response(self, body: bytes) -> ChatResponse:
        return decode_response(body)

    def encode_response(self, response: ChatResponse, request: ChatRequest) -> bytes:
        return encode_response(response, request)

    def event_decoder(self) -> base.EventDecoder:
        return EventDecoder()

    def event_encoder(self, request: ChatRequest) -> base.EventEncoder:
        return EventEncoder(request)

    def tap(self, request_included_usage: bool) -> base.Tap:
        return StreamTap(self._told_model)

    def encode_error(self, error: ErrorBody) -> bytes:
        return encode_error(error)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return decode_error(status, headers, body)


DIALECT: base.Dialect = AnthropicMessages()
