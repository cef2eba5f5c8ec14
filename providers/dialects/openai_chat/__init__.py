"""OpenAI Chat Completions, which half of the field speaks: OpenAI, Azure, Groq, Cerebras, vLLM, SGLang, our engine.

`wire.py` holds their structs, `request.py` and `encode.py` the request both ways, `response.py` the whole answer,
`events.py` the stream; errors, usage and the tap are shared with the family in `openai_common`.
"""

from __future__ import annotations

from collections.abc import Mapping

from providers.dialects.base import Dialect, Encoded, ErrorBody
from providers.dialects.openai_chat import events, response
from providers.dialects.openai_chat.encode import encode_request
from providers.dialects.openai_chat.request import NAME, decode_request
from providers.dialects.openai_common import errors
from providers.dialects.openai_common.tap import StreamTap
from providers.errors import ProviderError
from providers.neutral import ChatRequest, ChatResponse, Usage


class OpenAIChat:
    """See `providers.dialects.base.Dialect`."""

    name = NAME
    stream_media_type = "text/event-stream; charset=utf-8"

    def decode_request(self, body: bytes, *, model: str | None = None, stream: bool | None = None) -> ChatRequest:
        return decode_request(body, model=model, stream=stream)

    def encode_request(self, request: ChatRequest, *, model: str, strict: bool = True) -> Encoded:
        return encode_request(request, model=model, strict=strict)

    def decode_response(self, body: bytes) -> ChatResponse:
        return response.decode_response(body)

    def ending(self, body: bytes) -> tuple[Usage, str | None]:
        return response.ending(body)

    def encode_response(self, response_: ChatResponse, request: ChatRequest) -> bytes:
        return response.encode_response(response_, request)

    def event_decoder(self) -> events.EventDecoder:
        return events.EventDecoder()

    def event_encoder(self, request: ChatRequest) -> events.EventEncoder:
        return events.EventEncoder(request)

    def tap(self, request_included_usage: bool) -> StreamTap:
        return StreamTap(request_included_usage)

    def encode_error(self, error: ErrorBody) -> bytes:
        return errors.encode_error(error)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return errors.decode_error(status, headers, body)


DIALECT: Dialect = OpenAIChat()
