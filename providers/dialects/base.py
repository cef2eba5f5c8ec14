"""The contract of a dialect: four pure maps between one wire format and the neutral form, and its error envelope.

A dialect does no I/O, holds no state but what one stream needs, and imports no other dialect. Ingress uses
`decode_request`, `encode_response`, `event_encoder` and `encode_error`; an adapter uses `encode_request`,
`decode_response`, `event_decoder` and `decode_error`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from msgspec import Struct

from providers.errors import ProviderError
from providers.neutral import ChatRequest, ChatResponse, EmbeddingRequest, EmbeddingResponse, Event, Usage


class ErrorBody(Struct, frozen=True):
    """An error on its way to a client: the gateway fills it, the dialect writes its own envelope round it.

    status: HTTP status. kind: the gateway's stable word, e.g. "invalid_request", "rate_limited", "quota_exceeded".
    code: finer and stable, e.g. "model_not_found", "insufficient_quota".
    """

    status: int
    kind: str
    code: str
    message: str
    param: str | None = None
    request_id: str = ""
    retry_after_s: float | None = None
    """For dialects whose clients look for it in the body; the headers carry it in any case."""
    inner: Mapping[str, Any] | None = None
    """Azure's `innererror`: which of its filters struck. Clients of the OpenAI dialects read it."""


class Encoded(Struct, frozen=True):
    """A request in a provider's words. `dropped`: what a lenient encoding left out, by the client's field names."""

    body: dict[str, Any]
    dropped: tuple[str, ...] = ()


class EventDecoder(Protocol):
    """Provider bytes to events. How the network sliced the bytes cannot change the events."""

    @property
    def usage(self) -> Usage:
        """What is known so far; read after an interruption too."""

    def feed(self, data: bytes) -> Iterator[Event]:
        """Raises: WireError for bytes the format rules out; a ProviderError kind for an error sent in the stream."""

    def close(self) -> Iterator[Event]:
        """The upstream ended. Raises: Interrupted when the answer was not whole."""


class EventEncoder(Protocol):
    """Events to a client's bytes."""

    def encode(self, events: Iterable[Event]) -> bytes: ...

    def close(self) -> bytes:
        """What follows the last event (`data: [DONE]`), once."""

    def fail(self, error: ErrorBody) -> bytes:
        """The error as this dialect says it in the middle of a stream."""


class Tap(Protocol):
    """Watches a stream that stays in its own dialect: bytes through, usage aside.

    It must hold back what the client did not ask for (a usage chunk that we asked for) and nothing else.
    """

    @property
    def usage(self) -> Usage: ...

    @property
    def finish_reason(self) -> str | None: ...

    @property
    def started(self) -> bool:
        """A first content-bearing frame has gone through."""

    @property
    def output_bytes(self) -> int:
        """Bytes of generated text so far: what an estimate rests on when the stream dies without usage."""

    def feed(self, data: bytes) -> bytes:
        """Raises: a ProviderError kind for an error sent in the stream, before the bytes that carry it leave."""

    def close(self) -> bytes:
        """The upstream ended. Raises: Interrupted when the answer was not whole."""


class Dialect(Protocol):
    """What `providers/dialects/<name>/__init__.py` exposes as `DIALECT`."""

    name: str
    stream_media_type: str
    """Content type of a streamed answer, e.g. "text/event-stream; charset=utf-8"."""

    def decode_request(self, body: bytes, *, model: str | None = None, stream: bool | None = None) -> ChatRequest:
        """model, stream: where the path carries them (Gemini, Bedrock), not the body. Raises: BadRequest."""

    def encode_request(self, request: ChatRequest, *, model: str, strict: bool = True) -> Encoded:
        """Raises: Unsupported naming every feature this dialect cannot say; with strict=False those that can be left
        out without changing the answer's meaning are listed in `Encoded.dropped` instead."""

    def decode_response(self, body: bytes) -> ChatResponse:
        """Raises: WireError; a ProviderError kind for an error object behind a 200."""

    def ending(self, body: bytes) -> tuple[Usage, str | None]:
        """Of a whole answer that goes on as it is: what it used and how it ended. Raises: as `decode_response`."""

    def encode_response(self, response: ChatResponse, request: ChatRequest) -> bytes: ...

    def event_decoder(self) -> EventDecoder: ...

    def event_encoder(self, request: ChatRequest) -> EventEncoder: ...

    def tap(self, request_included_usage: bool) -> Tap: ...

    def encode_error(self, error: ErrorBody) -> bytes: ...

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """The right kind for a non-2xx answer. Never raises: an unreadable body is kept in the error's `body`."""


class Whole:
    """What dialects share that read all of an answer to know its end."""

    def decode_response(self, body: bytes) -> ChatResponse:
        raise NotImplementedError

    def ending(self, body: bytes) -> tuple[Usage, str | None]:
        """See `Dialect.ending`."""
        response = self.decode_response(body)
        return response.usage, response.candidates[0].finish_reason if response.candidates else None


class EmbeddingDialect(Protocol):
    """The same contract for embeddings, which do not stream."""

    name: str

    def decode_request(self, body: bytes, *, model: str | None = None) -> EmbeddingRequest:
        """Raises: BadRequest."""

    def encode_request(self, request: EmbeddingRequest, *, model: str, strict: bool = True) -> Encoded:
        """Raises: Unsupported."""

    def decode_response(self, body: bytes) -> EmbeddingResponse:
        """Raises: WireError; a ProviderError kind for an error object behind a 200."""

    def encode_response(self, response: EmbeddingResponse, request: EmbeddingRequest) -> bytes: ...

    def encode_error(self, error: ErrorBody) -> bytes: ...

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError: ...
