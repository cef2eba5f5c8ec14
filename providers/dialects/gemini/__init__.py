"""Google's generateContent, both ways. `DIALECT` is what adapters and the ingress use.

A client that streams without `alt=sse` wants one JSON array: the ingress puts the frames into it. `counting` and
`embeddings` hold the maps of the other verbs.
"""

from __future__ import annotations

from providers.dialects.base import Dialect, Whole
from providers.dialects.gemini import wire
from providers.dialects.gemini.encode import encode_request
from providers.dialects.gemini.errors import decode_error, encode_error
from providers.dialects.gemini.events import EventDecoder, EventEncoder, Tap
from providers.dialects.gemini.request import decode_request
from providers.dialects.gemini.response import decode_response, encode_response
from providers.neutral import ChatRequest


class Gemini(Whole):
    name = wire.NAME
    stream_media_type = "text/event-stream"
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
        return Tap()  # usage is always there: nothing to hold back


DIALECT = Gemini()
_CHECKED: Dialect = DIALECT

__all__ = ["DIALECT", "Gemini"]
