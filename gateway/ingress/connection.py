"""One client's connection. What is for the data plane goes straight to the hot path, without ASGI in between (0.1 ms of
CPU a request, 2026-11); everything else on the same connection is uvicorn's own and goes to Litestar.

uvicorn keeps the parser, keep-alive, pipelining and shutdown. What this relies on of its insides is pinned with it.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Any, ClassVar, Final

import structlog
from httptools import HttpParserInvalidURLError, parse_url
from msgspec import Struct
from msgspec.structs import replace
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import GatewayError
from gateway.exchange import Headers, Reply
from gateway.ingress.cors import Cors
from gateway.ingress.endpoints import Route
from gateway.ingress.heartbeat import Heartbeat, beat_of
from gateway.ingress.hotpath import Asked, HotPath, asks_for_stream, failed, streamed
from gateway.ingress.hygiene import joined
from gateway.observe.metrics import METRICS
from providers.dialects import load
from providers.neutral import ChatRequest

log = structlog.get_logger(__name__)

_STATUS_LINE: Final = {status: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,10})(?=\r\n)", re.IGNORECASE)
# SDKs send half a kilobyte to one and a half. It is kept for each connection.
_REMEMBERED_BYTES: Final = 4096
_CHUNKED: Final = "transfer-encoding: chunked\r\n"
_END: Final = b"0\r\n\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientConnection(HttpToolsProtocol):
    """uvicorn's `http` class. The application is a `gateway.app.Gateway`, whose `hot` is set once it has started."""

    __slots__ = ("_idle_since", "_known", "_running")
    cors: ClassVar[Cors | None] = None
    cycle: Any  # an Exchange, or uvicorn's own RequestResponseCycle

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pipeline = _Waiting()  # type: ignore[assignment]
        self._running: Exchange | None = None
        self._known: _Head | None = None
        self._idle_since = 0.0

    # What the parser calls.

    def on_message_begin(self) -> None:
        # uvicorn would build an ASGI scope here; `_fall_through` lets it, for those that need one.
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        hot: HotPath | None = self.config.app.hot  # type: ignore[union-attr]
        method = self.parser.get_method().decode("ascii")
        path, query = self._target()
        route = None if hot is None else hot.route_of(method, path, query)
        if hot is None or route is None:
            return self._fall_through()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers}
        if len(headers) != len(self.headers):
            headers |= joined(self.headers)
        asked = Asked(method, path, query, headers, self._client_ip(headers))
        self.headers = []
        keep_alive, chunks = self.parser.should_keep_alive(), self.parser.get_http_version() != "1.0"
        before, self.cycle = self.cycle, Exchange(self, hot, route, asked, keep_alive, chunks)
        if before is None or before.response_complete:
            self.cycle.begin()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, None))  # type: ignore[arg-type]
        return None

    def on_body(self, body: bytes) -> None:
        if isinstance(self.cycle, Exchange):
            self.cycle.add(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if isinstance(self.cycle, Exchange):
            self.cycle.complete()
        else:
            super().on_message_complete()

    # What the guard calls, when one request is over and the next begins.

    def again(self, data: bytes) -> bool:
        """Takes a whole request whose head is that of the last one, as nearly all of a client's are, but for the length
        of its body: what the parser and its callbacks made of that head still holds. Returns: whether it is one."""
        known, before = self._known, self.cycle
        if known is None or not before.response_complete or not data.startswith(known.start):
            return False
        at = len(known.start)
        end = data.find(b"\r\n", at, at + 12)
        length = data[at:end]
        if end < 0 or not length.isdigit() or not data.startswith(known.rest, end):
            return False
        body = data[end + len(known.rest) :]
        if len(body) != int(length) or len(body) > known.hot.max_body_bytes:
            return False
        asked = known.asked
        if length != known.length:
            asked = replace(asked, headers={**asked.headers, "content-length": length.decode()})
        self.cycle = Exchange(self, known.hot, known.route, asked, True, known.chunks)
        self.cycle.arrived(body)
        return True

    def remember(self, data: bytes) -> None:
        """A request has come in one read, `data`, and the parser waits for the next one."""
        self._known, last = None, self.cycle
        if not isinstance(last, Exchange) or not last.keep_alive or b"\r\n\r\n" not in data:
            return
        head = data[: data.index(b"\r\n\r\n") + 4]
        if len(head) > _REMEMBERED_BYTES or b"\r\nexpect:" in head.lower():
            return
        if (found := _LENGTH.search(head)) is not None and int(found[1]) == len(data) - len(head):
            start, rest = head[: found.start(1)], head[found.end(1) :]
            self._known = _Head(start, found[1], rest, last.hot, last.route, last.asked, last.chunks)

    # What uvicorn calls.

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Exchange):
            cycle.begin()
        else:
            super()._start_asgi_task(cycle, app)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow = _Flow(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(self.cycle, Exchange):
            if not self.cycle.whole:
                METRICS.refused(self.cycle.route.dialect, "client_gone")
            self.cycle = None
        if self._running is not None:
            self._running.client_gone()
        self.pipeline.clear()
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()

    def on_response_complete(self) -> None:
        """As uvicorn's, with one keep-alive timer a connection: it looks at the clock when it fires, so a request
        neither makes nor cancels one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._watch_idle(self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        """The timer stays."""

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self.transport.is_closing():
            return
        left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if self.cycle is not None and not self.cycle.response_complete:
            left_s = float(self.timeout_keep_alive)  # at work
        if left_s > 0:
            self._watch_idle(left_s)
        else:
            self.transport.close()

    def _watch_idle(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    # What exchanges call.

    def started(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        self._running = exchange
        self.tasks.add(task)

    def ended(self, task: asyncio.Task[None]) -> None:
        self._running = None
        self.tasks.discard(task)

    def head_of(self, status: int, headers: Headers, more: str, *, keep_alive: bool) -> bytes:
        """Status line and fields. Values may quote provider text: control characters, which would split the header,
        become spaces."""
        if self.cors is not None and self._running is not None:
            headers = [*headers, *self.cors.headers(self._running.asked.headers)]
        if not "".join([value for _, value in headers]).isprintable():
            headers = [(name, _CONTROL.sub(" ", value)) for name, value in headers]
        fields = "".join([f"{name}: {value}\r\n" for name, value in headers])
        close = "" if keep_alive else "connection: close\r\n"
        line = _STATUS_LINE.get(status) or f"HTTP/1.1 {status} \r\n"  # type: ignore[call-overload]
        head: bytes = f"{line}{fields}{more}{close}".encode("latin-1", "replace")
        for name, value in self.server_state.default_headers:
            head += b"%b: %b\r\n" % (name, value)
        return head + b"\r\n"

    def _fall_through(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()

    def _target(self) -> tuple[str, str]:
        """Raw path and query, never rebuilt from the Host header: what is authorised is what is served."""
        url = self.url
        if url.startswith(b"/"):
            path, _, query = url.partition(b"?")
            return path.decode("ascii", "replace"), query.decode("latin-1")
        try:
            parsed = parse_url(url)
        except HttpParserInvalidURLError:
            return "", ""
        return (parsed.path or b"").decode("ascii", "replace"), (parsed.query or b"").decode("latin-1")

    def _client_ip(self, headers: dict[str, str]) -> str:
        host = self.client[0] if self.client else ""
        app = self.config.loaded_app
        if isinstance(app, ProxyHeadersMiddleware) and host in app.trusted_hosts:
            told = ", ".join(v.decode("latin-1") for n, v in self.headers if n == b"x-forwarded-for")
            if told:
                return app.trusted_hosts.get_trusted_client_address(told)[0] or host
        return host


# An open stream is mostly what its two connections hold. An empty deque is 0.7 KB, and an event has one.


class _Waiting(list[Any]):
    """Pipelined requests, newest first; uvicorn has a deque."""

    __slots__ = ()

    def appendleft(self, waiting: Any) -> None:
        self.insert(0, waiting)


class _Flow(FlowControl):
    """uvicorn's, with an event only while its client does not keep up."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = False
        self.write_paused = False

    async def drain(self) -> None:
        if self.write_paused:
            await self._is_writable_event.wait()

    def pause_writing(self) -> None:
        if not self.write_paused:
            self.write_paused = True
            self._is_writable_event = asyncio.Event()

    def resume_writing(self) -> None:
        if self.write_paused:
            self.write_paused = False
            self._is_writable_event.set()


class _Head(Struct, frozen=True):
    """Of a request that came in one read: its bytes up to the length of its body, that, the bytes behind, and what an
    `Exchange` is made of."""

    start: bytes
    length: bytes
    rest: bytes
    hot: HotPath
    route: Route
    asked: Asked
    chunks: bool


class Exchange:
    """One request of the data plane and its reply. It runs once its body is whole and those before it are answered."""

    __slots__ = (  # Ten thousand open streams are ten thousand of these.
        "_connection",
        "_early",
        "_has_turn",
        "_heart",
        "_parts",
        "_refused",
        "_size",
        "_streams",
        "_task",
        "asked",
        "chunks",
        "disconnected",
        "hot",
        "keep_alive",
        "response_complete",
        "response_started",
        "route",
        "whole",
    )

    def __init__(
        self, connection: ClientConnection, hot: HotPath, route: Route, asked: Asked, keep_alive: bool, chunks: bool
    ) -> None:
        """chunks: whether the client knows chunked coding, which HTTP/1.0 does not."""
        self._connection = connection
        self.hot = hot
        self.asked = asked
        self._parts: list[bytes] = []
        self._size = 0
        self._has_turn = False
        self._task: asyncio.Task[None] | None = None
        self._streams = False
        self._heart: Heartbeat | None = None
        self._early: ChatRequest | None = None
        self._refused: GatewayError | None = hot.objection(asked)
        self.chunks = chunks
        self.route = route
        self.whole = False
        # uvicorn asks for these three, the guard for the one after them.
        self.keep_alive = keep_alive
        self.response_complete = False
        self.disconnected = False
        self.response_started = False

    def begin(self) -> None:
        """Those before it on this connection have been answered."""
        self._has_turn = True
        if self._connection.expect_100_continue and self._refused is None and not self.whole:
            self._connection.transport.write(_CONTINUE)
        self._run_if_ready()

    def add(self, data: bytes) -> None:
        if self._refused is not None:
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > self.hot.max_body_bytes:
            self._refused = self.hot.too_large()
            self._parts.clear()
            self._run_if_ready()

    def complete(self) -> None:
        self.whole = True
        self._run_if_ready()

    def arrived(self, body: bytes) -> None:
        """All at once, and it is its turn."""
        self._parts.append(body)
        self.whole = self._has_turn = True
        self._run_if_ready()

    def client_gone(self) -> None:
        self.disconnected = True
        if self._task is not None and (self._streams or self.hot.cancels_whole):
            self._task.cancel()

    def _run_if_ready(self) -> None:
        if self._has_turn and self._task is None and (self.whole or self._refused is not None):
            self.response_started = True
            self._task = self._connection.loop.create_task(self._run())
            self._connection.started(self, self._task)

    async def _run(self) -> None:
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        self._streams = asks_for_stream(self.route, body)
        METRICS.arrived()
        request_id = self.hot.request_id()
        sent = False
        every_s, beat = self.hot.heartbeat_s, beat_of(self.route)
        if self._streams and every_s is not None and beat is not None and self.chunks:
            loop = self._connection.loop
            self._heart = Heartbeat(loop, every_s, beat, self._beat, lambda: self._begin_early(body, request_id))
        try:
            reply = await self.hot.serve(self.asked, self.route, body, request_id, self._refused)
            if isinstance(reply.body, bytes):
                self._send(reply, reply.body)
            else:
                relayed = self._relay(reply)
                del reply  # There as well: its fields are a kilobyte, and a stream may be open for an hour.
                await relayed
            sent = True
        except Exception:
            log.exception("answer cut")
        finally:
            METRICS.left()
            if self._heart is not None:
                self._heart.stop()
            assert self._task is not None
            self._connection.ended(self._task)
            self._done(sent)

    def _send(self, reply: Reply, body: bytes) -> None:
        if self.disconnected:
            return
        if self._early is not None:  # the status has been told, so the error stands in the stream
            said = body if reply.error is None else failed(self.route, self._early, reply.error)
            self._connection.transport.write(_chunk(said) + _END)
            return
        # A 204 has no body, so it has no length of one either (RFC 9110, 8.6).
        more = "" if reply.status == 204 else f"content-length: {len(body)}\r\n"
        head = self._connection.head_of(reply.status, reply.headers, more, keep_alive=self.keep_alive)
        self._connection.transport.write(head if self.asked.method == "HEAD" else head + body)

    async def _relay(self, reply: Reply) -> None:
        """Each piece leaves in one write; a client that does not read holds the next one back."""
        pieces: Any = reply.body
        transport, flow = self._connection.transport, self._connection.flow
        # The first piece is ready, and taking it before anything can be cancelled arms the stream's own settlement.
        first = await anext(pieces, b"")
        try:
            if not self.chunks:
                self.keep_alive = False  # the end of the connection ends the body
                frame, more, last = _bare, "", b""
            else:
                frame, more, last = _chunk, _CHUNKED, _END
            head = b""
            if self._early is None:
                head = self._connection.head_of(reply.status, reply.headers, more, keep_alive=self.keep_alive)
            transport.write(head + frame(first))
            heart = self._heart
            if heart is not None:
                heart.last = first
            del reply, head, first
            async for piece in pieces:
                if piece:
                    if flow.write_paused:
                        await flow.drain()
                    transport.write(frame(piece))
                    if heart is not None:
                        heart.last = piece
            transport.write(last)
        finally:
            await pieces.aclose()

    def _beat(self, beat: bytes) -> None:
        if not (self.disconnected or self._connection.flow.write_paused):
            self._connection.transport.write(_chunk(beat))

    def _begin_early(self, body: bytes, request_id: str) -> bool:
        """The head of a stream whose first event is still awaited. What goes wrong from here on is told in the stream,
        and the headers that tell of the route and the limits are not."""
        if self.disconnected or (request := streamed(self.route, body)) is None:
            return False
        self._early = request
        fields = [("content-type", load(self.route.dialect).stream_media_type), ("cache-control", "no-cache")]
        fields += [("x-accel-buffering", "no"), ("x-request-id", request_id)]
        head = self._connection.head_of(200, fields, _CHUNKED, keep_alive=self.keep_alive)
        self._connection.transport.write(head)
        return True

    def _done(self, sent: bool) -> None:
        self.response_complete = True
        if not sent:
            self._connection.transport.abort()  # half an answer must not look like a whole one
        elif not self.keep_alive:
            self._connection.transport.close()
        self._connection.on_response_complete()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def _bare(data: bytes) -> bytes:
    return data
