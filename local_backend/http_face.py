"""What every face of the engine has over HTTP: routes, health, metrics, the model's card, bodies, errors, streams."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from local_backend import openai_response
from local_backend.client import CoreClient
from local_backend.config import Settings, adapter_folders
from local_backend.errors import (
    BodyTooLarge,
    EngineError,
    ModelNotFound,
    NotReady,
    QueueFull,
    RouteNotFound,
    Unauthorized,
)
from local_backend.generate import Delta
from local_backend.metrics import Metrics

log = logging.getLogger("local_backend")

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

T = TypeVar("T")

JSON = (b"content-type", b"application/json")


class Gone(Exception):
    """The client closed its connection; nobody is left to answer."""


class Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"")
        self.id = given.decode() if 0 < len(given) <= 128 and given.isalnum() else secrets.token_hex(16)
        self.ignored: list[str] = []
        self._receive = receive
        self._send = send
        self._max_body_bytes = max_body_bytes
        self._started = False

    async def body(self) -> bytes:
        """The whole body. Raises BodyTooLarge as soon as the bound is passed, Gone if the client leaves."""
        pieces: list[bytes] = []
        size = 0
        declared = self.headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise BodyTooLarge(f"the body has {int(declared)} bytes, at most {self._max_body_bytes} are taken")
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self._max_body_bytes:
                raise BodyTooLarge(f"the body has over {self._max_body_bytes} bytes")
            if not message.get("more_body", False):
                return b"".join(pieces)

    async def until_gone(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
        """The deltas; when the client leaves, the source is closed and Gone is raised."""
        gone = asyncio.ensure_future(self._disconnected())
        coming: asyncio.Task[Delta] | None = None
        try:
            while True:
                coming = asyncio.ensure_future(anext(deltas))
                await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    raise Gone
                try:
                    delta = coming.result()
                except StopAsyncIteration:
                    return
                yield delta
        finally:
            gone.cancel()
            if coming is not None and not coming.done():
                # The client has left, or the server gives up on us: a generator that still runs cannot be closed.
                coming.cancel()
                await asyncio.wait({coming})
            await deltas.aclose()

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """The result; when the client leaves first, the work is cancelled and Gone is raised."""
        gone, coming = asyncio.ensure_future(self._disconnected()), asyncio.ensure_future(work)
        try:
            await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                raise Gone
            return coming.result()
        finally:
            gone.cancel()
            coming.cancel()

    async def reply(self, value: Any, status: int = 200) -> None:
        """A JSON answer."""
        await self.raw(status, openai_response.encode(value), [JSON])

    async def fail(self, error: EngineError) -> None:
        """An error answer, unless an answer has begun."""
        if self._started:
            return
        headers = [JSON]
        if isinstance(error, QueueFull | NotReady):
            headers.append((b"retry-after", str(error.retry_after_s).encode()))
        await self.raw(error.status, openai_response.error_body(error), headers)

    async def raw(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """A whole answer."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [*headers, length])
        await self.write(body, last=True)

    async def start_stream(self) -> None:
        """Headers of an event stream."""
        kind = (b"content-type", b"text/event-stream; charset=utf-8")
        await self._start(200, [kind, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")])

    async def write(self, body: bytes, *, last: bool = False) -> None:
        """A piece of the body. Waits while the client's buffers are full."""
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        headers = [*headers, (b"x-request-id", self.id.encode())]
        if self.ignored:
            # Never in silence: whoever sends a field we do not know can see that it did nothing.
            names = ",".join(name[:64] for name in self.ignored[:32])
            headers.append(
                (b"x-farebox-ignored", names.encode("ascii", "replace").replace(b"\n", b" ").replace(b"\r", b" "))
            )
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


Route = Callable[[Exchange], Awaitable[None]]


class Face:
    """A plain ASGI callable. Subclasses add their routes."""

    def __init__(
        self,
        settings: Settings,
        served_name: str,
        core: CoreClient,
        max_position: int,
        capabilities: dict[str, Any],
        routes: Mapping[str, Route],
    ) -> None:
        """max_position: the model's own bound, until the core knows what fits. capabilities: told in the model's card,
        so that a router knows what to send here. routes: of POST requests."""
        self.settings = settings
        self.served_name = served_name
        # Name -> adapter: the model itself first, with none.
        adapters = adapter_folders(settings.adapters)
        self.names = {served_name: ""} | {f"{served_name}:{adapter}": adapter for adapter in adapters}
        self.core = core
        self.max_position = max_position
        self.capabilities = capabilities
        self.metrics = Metrics(served_name, lambda: (core.stats, core.restarts))
        self.started = int(time.time())
        self.draining = False
        self._routes: dict[tuple[str, str], Route] = {
            ("GET", "/health"): self.ready,
            ("GET", "/health/live"): self.live,
            ("GET", "/health/ready"): self.ready,
            ("GET", "/metrics"): self.show_metrics,
            ("GET", "/v1/models"): self.models,
        } | {("POST", path): route for path, route in routes.items()}
        self._paths = {path for _, path in self._routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Every accepted request gets an answer or an error, whatever happens behind it."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, self.settings.max_body_bytes)
        try:
            await self._dispatch(exchange)
        except Gone:
            return
        except EngineError as error:
            await exchange.fail(error)
        except Exception:
            log.exception("request %s failed", exchange.id)
            await exchange.fail(EngineError("the engine failed on this request; its log says why"))

    async def _dispatch(self, exchange: Exchange) -> None:
        method, path = exchange.method, exchange.path
        route = self._routes.get((method, path))
        if route is None and method == "GET" and path.startswith("/v1/models/"):
            route = self.model
        if route is None:
            if path in self._paths:
                raise RouteNotFound(f"{method} is not known at {path}", code="method_not_allowed")
            raise RouteNotFound(f"nothing is served at {path}")
        if self.settings.key is not None and (path.startswith("/v1/") or method == "POST"):
            shown = exchange.headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not hmac.compare_digest(shown, self.settings.key.encode()):
                raise Unauthorized("this engine asks for its key as a bearer token")
        await route(exchange)

    async def live(self, exchange: Exchange) -> None:
        """The process runs."""
        await exchange.reply({"status": "live"})

    async def ready(self, exchange: Exchange) -> None:
        """The model is loaded and requests are taken."""
        if self.core.ready is None or self.draining:
            raise NotReady("draining" if self.draining else "the core is not ready")
        await exchange.reply({"status": "ready"})

    async def show_metrics(self, exchange: Exchange) -> None:
        """Prometheus text."""
        kind = b"text/plain; version=0.0.4; charset=utf-8"
        await exchange.raw(200, self.metrics.text(), [(b"content-type", kind)])

    async def models(self, exchange: Exchange) -> None:
        """The model, and with each of its adapters."""
        await exchange.reply({"object": "list", "data": [self._card(name) for name in self.names]})

    async def model(self, exchange: Exchange) -> None:
        """One model by name."""
        name = exchange.path.removeprefix("/v1/models/")
        self._check_model(name)
        await exchange.reply(self._card(name))

    def _check_model(self, name: str) -> None:
        if name not in self.names:
            raise ModelNotFound(f"no model {name!r} here; this engine serves {', '.join(self.names)!r}", param="model")

    def _max_model_len(self) -> int:
        """The core may have shortened it to what its cache holds; before it is ready the model's own bound stands."""
        return self.core.ready.max_model_len if self.core.ready else self.max_position

    def _card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "farebox",
            "parent": None if name == self.served_name else self.served_name,
            "max_model_len": self._max_model_len(),
            "capabilities": self.capabilities,
        }
