"""The hot path: one request of the data plane to its reply. Free of sockets and of ASGI; `connection.py` carries it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import structlog
from msgspec import Struct
from msgspec.structs import replace

from gateway.errors import BodyTooLarge, GatewayError, InvalidRequest
from gateway.exchange import Inbound, Reply
from gateway.ingress.credentials import check_signature, presented_key
from gateway.ingress.endpoints import Route, match
from gateway.ingress.envelopes import Wrapping, unwrapped, wrapping_of
from gateway.ingress.errors import as_body, headers_for
from gateway.ingress.invoked import Watch, told_whole
from gateway.ingress.models import list_models, wants_models
from gateway.observe.metrics import METRICS
from gateway.observe.seldom import Seldom
from gateway.observe.trail import TRAIL
from gateway.pipeline import Pipeline
from gateway.routing.catalog import Catalog
from providers.dialects import load
from providers.dialects.base import ErrorBody
from providers.errors import BadRequest, ProviderError
from providers.neutral import ChatRequest

if TYPE_CHECKING:
    from gateway.observe.traces import Traces

log = structlog.get_logger(__name__)

# Cerebras's SDK opens its connection with it before the first request. Source: cerebras_cloud_sdk 1.91, read 2026-11.
_WARMING = "/v1/tcp_warming"
_WARM = Route("openai_chat", "warming")
_MODELS = Route("openai_chat", "models")
_ASKS_FOR_STREAM = re.compile(rb'"stream"\s*:\s*true')


class Asked(Struct, frozen=True):
    """A request as it came. path, query: raw. headers: lower-case names; of one given twice, the last."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    client_ip: str


class HotPath:
    """One instance a process. `request_id` and `clock` (unix nanoseconds) are the edge: inside, both are values."""

    def __init__(
        self,
        pipeline: Pipeline,
        catalog: Callable[[], Catalog],
        *,
        max_body_bytes: int,
        clock: Callable[[], int],
        request_id: Callable[[], str],
        heartbeat_s: float | None = None,
        cancels_whole: bool = False,
        traces: Traces | None = None,
    ) -> None:
        """heartbeat_s: silence on a stream after which a comment is sent. cancels_whole: a whole answer, too, is given
        up when its client goes."""
        self.heartbeat_s = heartbeat_s
        self.cancels_whole = cancels_whole
        self._traces = traces
        self._seldom = Seldom()
        self._pipeline = pipeline
        self._catalog = catalog
        self.max_body_bytes = max_body_bytes
        self._clock = clock
        self.request_id = request_id

    @staticmethod
    def route_of(method: str, path: str, query: str) -> Route | None:
        """None where the path is not for the data plane."""
        if (route := match(method, path, query)) is not None:
            return route
        if wants_models(method, path):
            return _MODELS
        return _WARM if path == _WARMING and method in ("GET", "HEAD") else None

    def objection(self, asked: Asked) -> GatewayError | None:
        """Why a request is refused by its head, before any of its body is kept."""
        headers = asked.headers
        if headers.get("content-encoding", "identity") not in ("", "identity"):
            return InvalidRequest("send the body without content-encoding", code="unsupported_content_encoding")
        announced = headers.get("content-length")
        if announced is not None and announced.isdigit() and int(announced) > self.max_body_bytes:
            return self.too_large()
        return None

    def too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self.max_body_bytes} bytes, this server's limit")

    def serve(
        self, asked: Asked, route: Route, body: bytes, request_id: str, refused: GatewayError | None = None
    ) -> Awaitable[Reply]:
        """The answer, or the error in the client's dialect: raises nothing but cancellation."""
        now_ns = self._clock()
        if self._traces is not None:
            return self._traced(self._traces, asked, route, body, request_id, refused, now_ns)
        return self._serve(asked, route, body, request_id, refused, now_ns)

    async def _traced(
        self,
        traces: Traces,
        asked: Asked,
        route: Route,
        body: bytes,
        request_id: str,
        refused: GatewayError | None,
        now_ns: int,
    ) -> Reply:
        TRAIL.set(traces.begin(route, asked.headers, request_id, now_ns))
        reply = await self._serve(asked, route, body, request_id, refused, now_ns)
        if isinstance(reply.body, bytes) and (trail := TRAIL.get()) is not None:
            trail.end()
        return reply

    async def _serve(
        self, asked: Asked, route: Route, body: bytes, request_id: str, refused: GatewayError | None, now_ns: int
    ) -> Reply:
        try:
            if refused is not None:
                raise refused
            if route.operation == "warming":
                return Reply(204, [], b"")
            check_signature(asked.method, asked.path, asked.query, asked.headers, body, now_ns)
            inbound = Inbound(
                route=route,
                headers=asked.headers,
                body=body,
                key=presented_key(asked.headers, asked.query),
                client_ip=asked.client_ip,
                request_id=request_id,
                now_ns=now_ns,
            )
            if route.operation == "models":
                return await self._models(inbound, asked.path)
            who = await self._pipeline.principal(inbound)
            if not route.envelope:
                return await self._pipeline.serve_as(inbound, who)
            inner, watch = unwrapped(inbound), Watch(self._clock, now_ns)
            return _wrapped(await self._pipeline.serve_as(inner, who), inner.route, watch)
        except Exception as error:
            return self._refusal(error, route, request_id)

    async def _models(self, inbound: Inbound, path: str) -> Reply:
        principal = await self._pipeline.principal(inbound)
        fields = [("content-type", "application/json"), ("x-request-id", inbound.request_id)]
        return Reply(200, fields, list_models(self._catalog(), principal, inbound.headers, path))

    def _refusal(self, error: Exception, route: Route, request_id: str) -> Reply:
        body = as_body(error, request_id)
        METRICS.refused(route.dialect, body.code)
        if (trail := TRAIL.get()) is not None:
            trail.refused(body.code, body.status)
        if isinstance(error, BadRequest | RecursionError):
            METRICS.malformed("body")
        if body.status == 500:
            log.exception("unforeseen error", request_id=request_id, exc_info=error)
        elif not isinstance(error, GatewayError):
            if body.status >= 500:
                log.warning("request failed", request_id=request_id, code=body.code, status=body.status)
            elif (unsaid := self._seldom.unsaid()) is not None:  # A client's own mistake: counted, told now and then.
                log.warning(
                    "request refused", request_id=request_id, code=body.code, status=body.status, others_unsaid=unsaid
                )
        told = headers_for(error, route.error_dialect, self._clock())
        headers = [("content-type", "application/json"), ("x-request-id", request_id), *told]
        return Reply(body.status, headers, load(route.error_dialect).encode_error(body), body)


def streamed(route: Route, body: bytes) -> ChatRequest | None:
    """The request if it really asks for a stream, which `asks_for_stream` only guesses."""
    try:
        request = load(route.dialect).decode_request(body, model=route.model, stream=route.stream)
    except (ProviderError, RecursionError):
        return None
    return request if request.stream else None


def failed(route: Route, request: ChatRequest, error: ErrorBody) -> bytes:
    """The error as the only thing that a stream says."""
    return load(route.dialect).event_encoder(request).fail(error)


def asks_for_stream(route: Route, body: bytes) -> bool:
    """Only a stream is given up when its client goes: a whole answer is paid for by then, so it is finished."""
    if route.operation == "retrieve":
        return "stream=true" in route.query
    return bool(route.stream) or (
        route.stream is None and b'"stream"' in body and _ASKS_FOR_STREAM.search(body) is not None
    )


def _wrapped(reply: Reply, route: Route, watch: Watch) -> Reply:
    if isinstance(reply.body, bytes):
        if route.envelope != "invoke_model" or reply.status != 200:
            return reply
        return replace(reply, headers=[*reply.headers, *told_whole(route.dialect, reply.body, watch)])
    wrapping = wrapping_of(route, watch)
    if wrapping is None:
        return reply
    headers = [(n, wrapping.media_type if n == "content-type" else v) for n, v in reply.headers]
    return replace(reply, headers=headers, body=_put_into(wrapping, reply.body))


async def _put_into(wrapping: Wrapping, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for piece in pieces:
            yield wrapping.feed(piece)
        yield wrapping.close()
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]
