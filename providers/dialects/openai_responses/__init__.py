"""OpenAI Responses, both ways. `DIALECT` is what adapters and the ingress use."""

from __future__ import annotations

from providers.dialects.base import Dialect, Whole
from providers.dialects.openai_responses import wire
from providers.dialects.openai_responses.errors import decode_error, encode_error
from providers.dialects.openai_responses.events import EventDecoder, EventEncoder, Tap
from providers.dialects.openai_responses.request import decode_request, encode_request
from providers.dialects.openai_responses.response import decode_response, encode_response
from providers.neutral import ChatRequest


class OpenAIResponses(Whole):
    name = wire.NAME
    stream_media_type = "text/event-stream; charset=utf-8"
    decode_request = staticmethod(decode_request)
    encode_request = staticmethod(encode_request)
    decode_response = staticmethod(decode_response)
    encode_response = staticmethod(encode_response)
    encode_error = staticmethod(encode_error)
    decode_error = staticmethod(decode_error)

    def event_decoder(self) -> EventDecoder:
        return EventDecoder()

    def event_encoder(self, request: ChatRequest) -> EventEncoder:
        return EventEncoder(request)

    def tap(self, request_included_usage: bool) -> Tap:
        return Tap()  # usage is always in the terminal event: nothing to hold back


def carries_foreign_seals(body: bytes) -> bool:
    """Another model's thinking is in the client's bytes under our mark: OpenAI would refuse it, so such a request is
    encoded anew in place of being forwarded."""
    return b'"fbx1.' in body


DIALECT: Dialect = OpenAIResponses()

__all__ = ["DIALECT", "carries_foreign_seals"]
