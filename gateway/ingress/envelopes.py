"""A known dialect in another one's wrapping: Claude's Messages as Bedrock's InvokeModel and Vertex's rawPredict carry
them, and Gemini's stream as one JSON array. Unwrapped on the way in, wrapped on the way out; the rest of the house sees
only the dialect.

Source: Bedrock user guide and botocore 1.44, anthropic-python 2.12 `lib/bedrock` and `lib/vertex`, Google API design
guide, read 2026-11.
"""

from __future__ import annotations

import base64
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from gateway.exchange import Inbound
from gateway.ingress.endpoints import Envelope, Operation
from providers.wire import eventstream, jsonio
from providers.wire.sse import SseDecoder

JSON_ARRAY_TYPE = "application/json; charset=UTF-8"
EVENT_STREAM_TYPE = "application/vnd.amazon.eventstream"

# What may end an InvokeModelWithResponseStream, by the type of Anthropic's own error event.
_EXCEPTIONS = {
    "invalid_request_error": "validationException",
    "not_found_error": "validationException",
    "rate_limit_error": "throttlingException",
    "overloaded_error": "serviceUnavailableException",
    "timeout_error": "modelTimeoutException",
}


# Members that only such a body has, the dialect and the operation.
_INVOKED: tuple[tuple[frozenset[str], str, Operation], ...] = (
    (frozenset({"inputText"}), "bedrock_titan_embed", "embeddings"),
    (frozenset({"texts", "input_type"}), "bedrock_cohere_embed", "embeddings"),
    (frozenset({"query", "documents"}), "rerank", "rerank"),
)


class Wrapping(Protocol):
    """What a dialect's stream is put into; `media_type` is that of the whole."""

    media_type: str

    def feed(self, data: bytes) -> bytes: ...

    def close(self) -> bytes: ...


def wrapping_of(envelope: Envelope) -> Wrapping | None:
    """None where the stream goes out as its dialect writes it."""
    match envelope:
        case "json_array":
            return JsonArray()
        case "invoke_model":
            return ChunkFrames()
    return None


def unwrapped(inbound: Inbound) -> Inbound:
    """The request as the dialect's own endpoint would have received it: model and streaming in the body, version and
    betas in the headers. Raises: BadRequest."""
    route = inbound.route
    if route.envelope not in ("invoke_model", "raw_predict"):
        return inbound
    members = jsonio.split_object(inbound.body)
    if route.envelope == "invoke_model" and not route.stream:
        # One path for every kind of model there; the body tells which it is.
        for marks, dialect, operation in _INVOKED:
            if marks <= members.keys():
                return replace(inbound, route=replace(route, dialect=dialect, operation=operation, version="2"))
    members.pop("anthropic_version", None)  # of the envelope, which ends here
    headers = dict(inbound.headers)
    betas = jsonio.plain(members.pop("anthropic_beta", None))
    if isinstance(betas, list) and betas:
        headers["anthropic-beta"] = ",".join(map(str, betas))
    if route.model is not None:
        members["model"] = route.model
    if route.stream:
        members["stream"] = True
    else:
        members.pop("stream", None)
    return replace(inbound, body=jsonio.joined(members), headers=headers)


class JsonArray:
    """SSE frames as the elements of one array."""

    media_type = JSON_ARRAY_TYPE

    def __init__(self) -> None:
        self._frames = SseDecoder()
        self._wrote = False

    def feed(self, data: bytes) -> bytes:
        out = b""
        for frame in self._frames.feed(data):
            if frame.data:
                out += (b",\r\n" if self._wrote else b"[") + frame.data
                self._wrote = True
        return out

    def close(self) -> bytes:
        return b"]" if self._wrote else b"[]"


class ChunkFrames:
    """Each Messages event in a `chunk` frame; an error event as the exception frame that ends such a stream."""

    media_type = EVENT_STREAM_TYPE

    def __init__(self) -> None:
        self._frames = SseDecoder()

    def feed(self, data: bytes) -> bytes:
        out = b""
        for frame in self._frames.feed(data):
            if frame.event == "error":
                out += _exception(frame.data)
            elif frame.data:
                payload = {"bytes": base64.b64encode(frame.data).decode()}
                out += eventstream.encode_event("chunk", msgspec.json.encode(payload))
        return out

    def close(self) -> bytes:
        return b""


def _exception(data: bytes) -> bytes:
    error: dict[str, Any] = msgspec.json.decode(data)["error"]
    name = _EXCEPTIONS.get(error["type"], "internalServerException")
    return eventstream.encode_exception(name, msgspec.json.encode({"message": error["message"]}))
