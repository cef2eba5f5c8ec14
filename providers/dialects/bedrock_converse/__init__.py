"""Bedrock Converse: one dialect for every model that Bedrock hosts, and what boto3 speaks to us.

Converse answers name neither themselves nor their model, so an adapter makes a `BedrockConverse` for each answer."""

from __future__ import annotations

from collections.abc import Mapping

from providers.dialects import base
from providers.dialects.base import Encoded, ErrorBody
from providers.dialects.bedrock_converse.content import NAME
from providers.dialects.bedrock_converse.errors import decode_error, encode_error
from providers.dialects.bedrock_converse.events import EventDecoder, EventEncoder
from providers.dialects.bedrock_converse.request import (
    decode_request,
    decode_token_count,
    encode_count_request,
    encode_request,
)
from providers.dialects.bedrock_converse.response import decode_response, encode_response
from providers.dialects.bedrock_converse.tap import StreamTap
from providers.errors import ProviderError
from providers.neutral import ChatRequest, ChatResponse

__all__ = ["DIALECT", "BedrockConverse", "decode_token_count", "encode_count_request"]


class BedrockConverse(base.Whole):
    """See `providers.dialects.base.Dialect`. response_id, model: told of an answer that this one decodes."""

    name = NAME
    stream_media_type = "application/vnd.amazon.eventstream"

    def __init__(self, response_id: str = "", model: str = "") -> None:
        self._response_id = response_id
        self._model = model

    def decode_request(self, body: bytes, *, model: str | None = None, stream: bool | None = None) -> ChatRequest:
        return decode_request(body, model=model, stream=stream)

    def encode_request(self, request: ChatRequest, *, model: str, strict: bool = True) -> Encoded:
        return encode_request(request, model=model, strict=strict)

    def decode_response(self, body: bytes) -> ChatResponse:
        return decode_response(body, ident=self._response_id, model=self._model)

    def encode_response(self, response: ChatResponse, request: ChatRequest) -> bytes:
        return encode_response(response, request)

    def event_decoder(self) -> base.EventDecoder:
        return EventDecoder(self._response_id, self._model)

    def event_encoder(self, request: ChatRequest) -> base.EventEncoder:
        return EventEncoder(request)

    def tap(self, request_included_usage: bool) -> base.Tap:
        return StreamTap()

    def encode_error(self, error: ErrorBody) -> bytes:
        return encode_error(error)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return decode_error(status, headers, body)


DIALECT: base.Dialect = BedrockConverse()
