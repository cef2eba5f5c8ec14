"""The door of every connection: how many, how large a head, how slow a client; whatever HTTP server stands behind.

`Guard` is laid over a server's asyncio protocol whose parser is httptools (`on_message_begin` and so on). A request
that comes in one read, as nearly all do, costs it no timer and no copy.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import structlog

from gateway.errors import BodyTooLarge, GatewayError, HeadTooLarge, InvalidRequest, TooSlow, Unavailable
from gateway.exchange import Headers
from gateway.ingress.cors import Cors
from gateway.ingress.endpoints import Route, match
from gateway.ingress.errors import as_body, headers_for
from gateway.ingress.hygiene import objection, without_upgrade
from gateway.observe.metrics import METRICS
from gateway.sections import ServerSettings
from providers.dialects import load

log = structlog.get_logger(__name__)

# A refused client may still be sending, and a closed socket would answer that with a reset that overtakes the refusal.
LINGER_S: Final = 2.0
# Chunked coding may triple a body of small chunks; what lies beyond is not read on, not even to be thrown away.
BODY_SLACK: Final = 3
BODY_BYTES_PER_S: Final = 8 * 1024
START_BYTES: Final = 2048
_END_OF_HEAD: Final = b"\r\n\r\n"
_ORIGIN: Final = re.compile(rb"\r\norigin:[ \t]*([^\s]{1,256})[ \t]*\r\n", re.IGNORECASE)
_IDLE, _HEAD, _BODY = range(3)


class Door:
    """What the connections of one process share: the limits, and how many there are from where."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.open = 0
        self._pending_bytes = 0
        self._by_address: dict[str, int] = {}

    def enter(self, address: str) -> str | None:
        """Count one in. Returns: why it is one too many, or None."""
        self.open += 1
        here = self._by_address[address] = self._by_address.get(address, 0) + 1
        if self.open > self.settings.max_connections:
            return "the server has as many connections as it takes"
        most = self.settings.max_connections_per_address
        return "too many connections from this address" if most is not None and here > most else None

    @property
    def pending_bytes(self) -> int:
        """Of bodies that have not arrived whole: before that nobody's key is looked at."""
        return self._pending_bytes

    def pend(self, more: int) -> None:
        self._pending_bytes += more

    def leave(self, address: str) -> None:
        self.open -= 1
        if (left := self._by_address[address] - 1) > 0:
            self._by_address[address] = left
        else:
            del self._by_address[address]


if TYPE_CHECKING:

    class _Below(asyncio.Protocol):
        """What the mixin expects of the protocol under it."""

        cors: ClassVar[Cors | None]
        headers: list[tuple[bytes, bytes]]
        parser: Any

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def on_message_begin(self) -> None: ...
        def on_headers_complete(self) -> None: ...
        def on_body(self, body: bytes) -> None: ...
        def on_message_complete(self) -> None: ...
        def again(self, data: bytes) -> bool: ...
        def remember(self, data: bytes) -> None: ...
else:
    _Below = object


class Guard(_Below):
    """Mixin, first among the bases. The class made of it says the three things below, and has `STATE` in its slots."""

    STATE: ClassVar = (
        "_address",
        "_began",
        "_body_bytes",
        "_head_bytes",
        "_loop",
        "_objection",
        "_phase",
        "_refused",
        "_silent_bytes",
        "_stall",
        "_start",
        "_tail",
        "_timer",
        "_transport",
    )
    """Python keeps an instance's attributes in a fifth of a dictionary's room as long as they are 30 at most, and
    uvicorn's alone are 28. Source: SHARED_KEYS_MAX_SIZE in CPython 3.11 to 3.13, read 2026-11."""
    __slots__ = ()
    door: ClassVar[Door]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._transport: asyncio.Transport
        self._loop: asyncio.AbstractEventLoop
        self._address = ""
        self._refused = False
        self._objection: InvalidRequest | None = None
        self._phase = _HEAD
        self._began = 0.0
        self._start = b""
        self._head_bytes = 0
        self._body_bytes = 0
        self._silent_bytes = 0
        self._tail = b""
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    @property
    def receiving_body(self) -> bool:
        return self._phase == _BODY

    @property
    def queued(self) -> bool:
        """Whether an earlier request of this connection is still being answered."""
        raise NotImplementedError

    @property
    def answered(self) -> bool:
        """Whether the request that is arriving has been answered, or begun to be, before it is whole."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Nobody waits for the answer any more: whoever makes one is to be told that the client left."""
        raise NotImplementedError

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from asyncio's
        self._loop = asyncio.get_running_loop()
        peer = transport.get_extra_info("peername")
        self._address = peer[0] if isinstance(peer, tuple) else ""
        super().connection_made(transport)
        if (full := self.door.enter(self._address)) is not None:
            self._refuse(Unavailable(full))
            return
        self._began = self._loop.time()
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self.door.leave(self._address)
        self._tell_room(0)
        for timer in (self._timer, self._stall):
            if timer is not None:
                timer.cancel()
        self._timer = self._stall = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            # It lingers: read, so that our last words arrive, and thrown away.
            self._silent_bytes += len(data)
            if self._silent_bytes > self.door.settings.max_body_bytes:
                self._transport.abort()
            return
        arriving = self._phase
        if arriving == _IDLE and self.again(data):
            return
        if arriving == _BODY:
            self._tell_room(self._body_bytes + len(data))
            self._silent_bytes += len(data)
        elif self._head_too_large(data):
            self._start = self._start or data[:START_BYTES]
            self._refuse(self._large_head())
            return
        if arriving != _BODY and not self._start:
            self._start = data  # for a refusal on the way; only what is not whole is copied below
        read = without_upgrade(data) if arriving != _BODY and b"h2c" in data else data
        super().data_received(read)
        if self._phase == _IDLE or self._refused:
            if arriving == _IDLE and read is data and not self._refused:
                self.remember(data)
            return
        if self._phase != arriving:
            self._tell_room(self._body_bytes + len(data))
        self._start = (self._start or data)[:START_BYTES]
        settings = self.door.settings
        if self._phase == _BODY:
            # Chunk extensions and trailers bring no body: they are headers that came late.
            if self._silent_bytes > settings.max_head_bytes:
                self._refuse(self._large_head())
            elif self._body_bytes > BODY_SLACK * settings.max_body_bytes + settings.max_head_bytes:
                self._refuse(BodyTooLarge(f"the body is larger than {settings.max_body_bytes} bytes"))
            elif self.door.pending_bytes > settings.max_pending_bytes:
                self._refuse(Unavailable("too many large requests are arriving at once; send it again"))
        if self._timer is None and not self._refused:
            self._arm()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None:
            self._watch_writing()

    def resume_writing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        super().resume_writing()

    # httptools' receiver

    def on_message_begin(self) -> None:
        if self._phase == _IDLE:
            self._phase = _HEAD
            self._began = self._loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if (found := objection(self.headers, self.parser.get_http_version())) is not None:
            self._objection = found
            raise found  # out of the parser, which hands it on as its own error: `send_400_response` is called
        super().on_headers_complete()
        self._phase = _BODY
        if self._body_bytes:
            self._tell_room(0)
        self._head_bytes = self._silent_bytes = 0
        self._tail = b""
        self._began = self._loop.time()

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._phase = _IDLE
        if self._body_bytes:
            self._tell_room(0)
        self._start = b""
        super().on_message_complete()

    # uvicorn's name for it; other servers call it as well.

    def send_400_response(self, msg: str) -> None:
        told = "this is not HTTP/1.1 as RFC 9112 has it; check the client, or a proxy in between"
        METRICS.malformed("http")
        self._refuse(self._objection or InvalidRequest(told, code="malformed_http"))

    # Inside

    def _tell_room(self, body_bytes: int) -> None:
        if body_bytes != self._body_bytes:
            self.door.pend(body_bytes - self._body_bytes)
            self._body_bytes = body_bytes

    def _head_too_large(self, data: bytes) -> bool:
        """Whether the head that `data` belongs to is over the limit, exactly, however the network sliced it."""
        before, most = self._head_bytes, self.door.settings.max_head_bytes
        self._head_bytes = before + len(data)
        if self._head_bytes <= most:
            self._tail = data[-3:]
            return False
        known = len(self._tail) if before else 0
        at = ((self._tail if before else b"") + data).find(_END_OF_HEAD)
        return at < 0 or before - known + at + len(_END_OF_HEAD) > most

    def _large_head(self) -> HeadTooLarge:
        most = self.door.settings.max_head_bytes
        return HeadTooLarge(f"the request line and headers are larger than {most} bytes, this server's limit")

    def _arm(self) -> None:
        self._timer = self._loop.call_at(self._due(), self._look)

    def _due(self) -> float:
        settings = self.door.settings
        if self._phase == _HEAD:
            return self._began + settings.head_timeout_s
        return self._began + settings.body_timeout_s + self._body_bytes / BODY_BYTES_PER_S

    def _look(self) -> None:
        self._timer = None
        if self._refused:
            self._transport.abort()
        elif self._phase == _IDLE:
            return
        elif self.queued:
            # A pipelined request waits its turn, and we are the ones who do not read on.
            self._began = self._loop.time()
            self._arm()
        elif self._loop.time() < self._due():
            self._arm()
        else:
            what = "headers" if self._phase == _HEAD else "body"
            self._refuse(TooSlow(f"the request's {what} did not arrive in time; send it at once"))

    def _watch_writing(self) -> None:
        """Cut a client that takes nothing. One that takes little is let be: its upstream is slowed down with it."""
        left = self._transport.get_write_buffer_size()

        def look() -> None:
            now = self._transport.get_write_buffer_size()
            if now < left:
                self._watch_writing()
                return
            self._stall = None
            METRICS.refused(self._dialect(), "client_stalled")
            log.warning("a client took nothing of its answer; cut", waiting_bytes=now)
            self._transport.abort()

        self._stall = self._loop.call_later(self.door.settings.stalled_client_s, look)

    def _refuse(self, error: GatewayError) -> None:
        self._refused = True
        dialect = self._dialect()
        METRICS.refused(dialect, error.code)
        silent = not self._start  # nobody has asked anything: a preconnected client, a port scan
        if self._transport.is_closing() or self.queued or self.answered or (silent and isinstance(error, TooSlow)):
            self._transport.abort()
            return
        self.abandon()
        self._transport.write(_response(error, dialect, self._cors_headers()))
        if self._transport.can_write_eof():
            self._transport.write_eof()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(LINGER_S, self._look)
        else:
            self._transport.close()

    def _cors_headers(self) -> Headers:
        """So that a page reads why it was refused, as far as its head has come. The office has no such pages."""
        if self.cors is None or self._route() is None:
            return []
        found = _ORIGIN.search(self._start)
        return self.cors.headers({} if found is None else {"origin": found[1].decode("latin-1")})

    def _dialect(self) -> str:
        route = self._route()
        return route.error_dialect if route is not None else "openai_chat"

    def _route(self) -> Route | None:
        """Of the request line, as far as it has come."""
        words = self._start.split(b"\r\n", 1)[0].split(b" ", 2)
        if len(words) < 2:
            return None
        path = words[1].split(b"?", 1)[0].decode("latin-1")
        if path.startswith("http"):
            path = "/" + path.partition("://")[2].partition("/")[2]
        return match(words[0].decode("latin-1"), path)


def _response(error: GatewayError, dialect: str, more: Headers) -> bytes:
    told = as_body(error, "")
    body = load(dialect).encode_error(told)
    lines = [f"HTTP/1.1 {told.status} {HTTPStatus(told.status).phrase}", "content-type: application/json"]
    lines += [f"content-length: {len(body)}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in (*headers_for(error), *more)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
