"""The hot path: a plain ASGI callable. A path that is not for the data plane falls through to `fallback` (Litestar)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import structlog

from gateway.errors import GatewayError
from gateway.exchange import Headers, Inbound
from gateway.ingress.body import ClientGone, Receive, read_body
from gateway.ingress.credentials import check_signature, presented_key
from gateway.ingress.endpoints import Route, match
from gateway.ingress.envelopes import unwrapped, wrapping_of
from gateway.ingress.errors import as_body, headers_for
from gateway.ingress.models import list_models, wants_models
from gateway.observe.metrics import METRICS
from gateway.pipeline import Pipeline
from gateway.routing.catalog import Catalog
from providers.dialects import load

log = structlog.get_logger(__name__)
Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# Cerebras's SDK opens its connection with it before the first request. Source: cerebras_cloud_sdk 1.91, read 2026-11.
_WARMING = "/v1/tcp_warming"
_ASKS_FOR_STREAM = re.compile(rb'"stream"\s*:\s*true')


class HotPath:
    """One instance a process. `request_id` and `clock` (unix nanoseconds) are the edge: inside, both are values."""

    def __init__(
        self,
        pipeline: Pipeline,
        catalog: Callable[[], Catalog],
        fallback: ASGIApp,
        *,
        max_body_bytes: int,
        clock: Callable[[], int],
        request_id: Callable[[], str],
    ) -> None:
        self._pipeline = pipeline
        self._catalog = catalog
        self._fallback = fallback
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._fallback(scope, receive, send)
        path, method = path_of(scope), scope["method"]
        query = scope["query_string"].decode("latin-1")
        route = match(method, path, query)
        if path == _WARMING and method in ("GET", "HEAD"):
            return await respond(send, 204, [], b"")
        if route is None and not wants_models(method, path):
            return await self._fallback(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id, started_ns = self._request_id(), self._clock()
        METRICS.arrived()
        try:
            if route is None:
                await self._models(scope, headers, path, request_id, started_ns, send)
            else:
                await self._answer(scope, receive, send, route, headers, request_id, started_ns)
        except ClientGone:
            METRICS.refused(route.dialect if route else "openai_chat", "client_gone")
        except Exception as error:
            await self._refuse(error, route, request_id, send)
        finally:
            METRICS.left()

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        route: Route,
        headers: Mapping[str, str],
        request_id: str,
        started_ns: int,
    ) -> None:
        body = await read_body(receive, headers, self._max_body_bytes)
        query = scope["query_string"].decode("latin-1")
        check_signature(scope["method"], path_of(scope), query, headers, body, started_ns)
        inbound = self._inbound(scope, route, headers, body, request_id, started_ns)
        if route.stream or (route.stream is None and _ASKS_FOR_STREAM.search(body)):
            # Only a stream is given up when its client goes: a whole answer is paid for by then, so it is finished.
            await while_connected(receive, self._deliver(inbound, send))
        else:
            await self._deliver(inbound, send)

    async def _deliver(self, inbound: Inbound, send: Send) -> None:
        reply = await self._pipeline.serve(unwrapped(inbound))
        if isinstance(reply.body, bytes):
            return await respond(send, reply.status, reply.headers, reply.body)
        pieces, headers, wrapping = aiter(reply.body), reply.headers, wrapping_of(inbound.route.envelope)
        if wrapping is not None:
            headers = [(n, wrapping.media_type if n == "content-type" else v) for n, v in headers]
        # The first piece is ready, and taking it before anything can be cancelled arms the stream's own settlement.
        first = await anext(pieces, b"")
        try:
            await send({"type": "http.response.start", "status": reply.status, "headers": encoded(headers)})
            async for piece in chain(first, pieces):
                out = piece if wrapping is None else wrapping.feed(piece)
                if out:
                    await send({"type": "http.response.body", "body": out, "more_body": True})
            last = b"" if wrapping is None else wrapping.close()
            await send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]

    async def _models(
        self, scope: Scope, headers: Mapping[str, str], path: str, request_id: str, now_ns: int, send: Send
    ) -> None:
        route = Route("openai_chat", "models")
        principal = await self._pipeline.principal(self._inbound(scope, route, headers, b"", request_id, now_ns))
        body = list_models(self._catalog(), principal, headers, path)
        fields = [("content-type", "application/json"), ("x-request-id", request_id)]
        await respond(send, 200, fields, body)

    def _inbound(
        self, scope: Scope, route: Route, headers: Mapping[str, str], body: bytes, request_id: str, now_ns: int
    ) -> Inbound:
        return Inbound(
            route=route,
            headers=headers,
            body=body,
            key=presented_key(headers, scope["query_string"].decode("latin-1")),
            client_ip=scope["client"][0] if scope.get("client") else "",
            request_id=request_id,
            now_ns=now_ns,
        )

    async def _refuse(self, error: Exception, route: Route | None, request_id: str, send: Send) -> None:
        body = as_body(error, request_id)
        METRICS.refused(route.dialect if route is not None else "openai_chat", body.code)
        dialect = route.error_dialect if route is not None else "openai_chat"
        if body.status == 500:
            log.exception("unforeseen error", request_id=request_id, exc_info=error)
        elif not isinstance(error, GatewayError):
            log.warning("request failed", request_id=request_id, code=body.code, status=body.status)
        headers = [("content-type", "application/json"), ("x-request-id", request_id), *headers_for(error)]
        await respond(send, body.status, headers, load(dialect).encode_error(body))


def path_of(scope: Scope) -> str:
    """The raw path, never one rebuilt from the Host header: what is authorised is what is served."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.split(b"?", 1)[0].decode("ascii", "replace")


async def chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


async def while_connected(receive: Receive, work: Awaitable[None]) -> None:
    """Run the work; cancel it as soon as the client goes away. The work settles what it owes when cancelled."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(receive())
    watch.add_done_callback(lambda _: task.cancel())
    try:
        await task
    except asyncio.CancelledError:
        if not watch.done():
            task.cancel()  # not the client but the server goes: hand the cancellation on
            raise
    finally:
        watch.cancel()


async def respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    # A 204 has no body, so it has no length of one either (RFC 9110, 8.6).
    fields = headers if status == 204 else [*headers, ("content-length", str(len(body)))]
    await send({"type": "http.response.start", "status": status, "headers": encoded(fields)})
    await send({"type": "http.response.body", "body": body})


def encoded(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Header values may quote provider text: control characters, which would split the header, become spaces."""
    return [(n.encode("ascii"), _CONTROL.sub(" ", v).encode("latin-1", "replace")) for n, v in headers]


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
