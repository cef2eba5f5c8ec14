"""A known dialect in another one's wrapping: Claude's Messages as Vertex's rawPredict carries them, what InvokeModel
carries (`invoked.py`), and Gemini's stream as one JSON array. Unwrapped on the way in, wrapped on the way out; the rest
of the house sees only the dialect.

Source: Bedrock user guide and botocore 1.44, anthropic-python 2.12 `lib/bedrock` and `lib/vertex`, Google API design
guide, read 2026-11.
"""

from __future__ import annotations

from typing import Protocol

from msgspec.structs import replace

from gateway.exchange import Inbound
from gateway.ingress.endpoints import Route
from gateway.ingress.invoked import Watch, invoked, wrapping_for
from providers.wire import jsonio
from providers.wire.sse import SseDecoder

JSON_ARRAY_TYPE = "application/json; charset=UTF-8"


class Wrapping(Protocol):
    """What a dialect's stream is put into; `media_type` is that of the whole."""

    media_type: str

    def feed(self, data: bytes) -> bytes: ...

    def close(self) -> bytes: ...


def wrapping_of(route: Route, watch: Watch) -> Wrapping | None:
    """None where the stream goes out as its dialect writes it. route: as unwrapped."""
    match route.envelope:
        case "json_array":
            return JsonArray()
        case "invoke_model":
            return wrapping_for(route.dialect, watch)
    return None


def unwrapped(inbound: Inbound) -> Inbound:
    """The request as the dialect's own endpoint would have received it: model and streaming in the body, version and
    betas in the headers. Raises: BadRequest."""
    match inbound.route.envelope:
        case "invoke_model":
            inbound = invoked(inbound)
            return _as_messages(inbound) if inbound.route.dialect == "anthropic_messages" else inbound
        case "raw_predict":
            return _as_messages(inbound)
    return inbound


def _as_messages(inbound: Inbound) -> Inbound:
    """Claude's Messages as both clouds wrap them."""
    route, members = inbound.route, jsonio.split_object(inbound.body)
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
