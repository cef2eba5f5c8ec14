"""One HTTP/1.1 connection and the response that is being read from it; which connection serves whom is `http1.py`'s."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Protocol, cast

import httptools

from providers.errors import Broken, Interrupted, Phase, ProviderError, TimedOut
from providers.transport.base import Timeouts
from providers.transport.coding import ContentDecoder, decoder_for

HIGH_WATER_BYTES = 256 * 1024  # unread body beyond this stops the socket
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256


class Pool(Protocol):
    """Whom a connection reports to."""

    def give(self, connection: Connection) -> None: ...

    def lost(self, connection: Connection) -> None: ...


class Stale(Exception):
    """A kept-alive connection that its peer had closed before our request reached it. Nothing was answered."""


class Connection(asyncio.Protocol):
    """One socket; at most one request on it at a time."""

    __slots__ = ("_origin", "_response", "_timer", "_timer_at", "_transport", "idle_since", "loop", "served")

    def __init__(self, origin: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._origin = origin
        self.loop = loop
        self._transport: asyncio.Transport | None = None
        self._response: Http1Response | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.idle_since = 0.0
        self.served = 0

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_lost(self) -> bool:
        """Whether its pool has been told so."""
        return self._transport is None

    def begin(self, response: Http1Response, payload: list[bytes]) -> None:
        """Raises: Stale."""
        transport = self._transport
        if transport is None or transport.is_closing():
            raise Stale
        self._response = response
        transport.writelines(payload)
        self.arm(response.due())

    def arm(self, due: float) -> None:
        """One timer, moved lazily: it may fire early and look again, which is cheaper than a timer per read."""
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self.loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        response = self._response
        if response is None:
            return
        due = response.due()
        if self.loop.time() >= due:
            response.time_out()
        else:
            self.arm(due)

    def pause(self) -> None:
        if self.usable:
            assert self._transport is not None
            self._transport.pause_reading()

    def resume(self) -> None:
        if self.usable:
            assert self._transport is not None
            self._transport.resume_reading()

    def finished(self, keep: bool) -> None:
        """The response has been received whole."""
        self._response = None
        self.served += 1
        if keep and self._transport is not None and not self._transport.is_closing():
            self.idle_since = self.loop.time()
            self._origin.give(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Cut at once. The peer learns that nobody listens any more."""
        if self._transport is not None:
            self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from asyncio's

    def data_received(self, data: bytes) -> None:
        if self._response is None:
            self.abort()  # words nobody asked for: what follows could be taken for the next answer
            return
        self._response.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.connection_lost(exc, reused=self.served > 0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport = None
        self._origin.lost(self)


class Http1Response:
    """See `providers.transport.base.HttpResponse`. Also httptools' receiver: its `on_...` methods."""

    __slots__ = (
        "_between_s",
        "_complete",
        "_connection",
        "_decoder",
        "_error",
        "_fields",
        "_first_by",
        "_head_bytes",
        "_head_only",
        "_header_count",
        "_informational",
        "_keep",
        "_loop",
        "_parser",
        "_parts",
        "_paused",
        "_seen_bytes",
        "_silent_bytes",
        "_size",
        "_total_by",
        "_touched",
        "_trailing",
        "_waiter",
        "head",
        "headers",
        "status",
    )

    def __init__(
        self,
        connection: Connection,
        loop: asyncio.AbstractEventLoop,
        started: float,
        timeouts: Timeouts,
        head_only: bool,
    ) -> None:
        self._connection = connection
        self._loop = loop
        self._first_by = loop.time() + timeouts.first_byte_s
        self._total_by = started + timeouts.total_s
        self._between_s = timeouts.between_bytes_s
        self._head_only = head_only
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._size = 0
        self._paused = False
        self._complete = False
        self._keep = False
        self._informational = False
        self._trailing = False
        self._error: ProviderError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._touched = 0.0
        self._seen_bytes = 0
        self._head_bytes = 0
        self._header_count = 0
        self._silent_bytes = 0
        self._decoder: ContentDecoder | None = None
        self.head: asyncio.Future[None] = loop.create_future()
        self.status = 0
        self._fields: dict[str, str] = {}
        self.headers: Mapping[str, str] = self._fields

    # For whoever sent the request.

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            if self._parts:
                data = self._take()
                if self._decoder is None:
                    yield data
                else:
                    for piece in self._decoder.feed(data):
                        yield piece
            elif self._error is not None:
                raise self._error
            elif self._complete:
                if self._decoder is not None and not self._decoder.whole:
                    raise Interrupted("the compressed body ends early")
                return
            else:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None

    async def read(self, limit_bytes: int) -> bytes:
        if self._complete and self._error is None and self._decoder is None and self._size <= limit_bytes:
            return self._take()  # the usual case: head and body came in one read
        parts: list[bytes] = []
        size = 0
        async for data in self.chunks():
            parts.append(data)
            size += len(data)
            if size > limit_bytes:
                await self.aclose()
                raise Broken(f"a body of more than {limit_bytes} bytes", status=self.status, body=parts[0][:4096])
        return b"".join(parts)

    async def aclose(self) -> None:
        self._parts = []
        self._size = 0
        if not self._complete and self._error is None:
            self._fail(Interrupted("closed before its end", "closed"))

    # For the connection.

    def due(self) -> float:
        """When silence becomes an error. While we are the slow one, only the total counts."""
        if not self.head.done():
            return min(self._first_by, self._total_by)
        if self._paused:
            return self._total_by
        return min(self._touched + self._between_s, self._total_by)

    def time_out(self) -> None:
        phase: Phase = "between_bytes" if self.head.done() else "first_byte"
        if self._loop.time() >= self._total_by:
            phase = "total"
        self._fail(TimedOut(f"the provider was silent for too long ({phase})", phase))

    def data_received(self, data: bytes) -> None:
        self._touched = self._loop.time()
        self._seen_bytes += len(data)
        self._silent_bytes += len(data)
        had_head = self.head.done()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(Broken("the peer wants to switch protocols", status=self.status))
            return
        except httptools.HttpParserError as error:
            if not self._complete:  # behind a whole answer it only costs the connection
                self._fail(self._bad(f"malformed HTTP: {error}"))
                return
            self._trailing = True
        if self._complete:
            if self._paused:
                self._paused = False
                self._connection.resume()
            self._wake()
            # It holds our methods: the one cycle that a request would leave to the garbage collector.
            del self._parser
            self._connection.finished(self._keep and not self._trailing)
        elif self._error is None and self._silent_bytes > MAX_HEAD_BYTES:
            # A head without end, or trailers and chunk extensions that bring no body.
            self._fail(self._bad(f"more than {MAX_HEAD_BYTES} bytes of headers"))
            return
        elif not had_head and self.head.done():
            self._connection.arm(self.due())  # silence inside a body is allowed for less long than before it
        if self._parts and not self._complete:
            if self._size > HIGH_WATER_BYTES and not self._paused:
                self._paused = True
                self._connection.pause()
            self._wake()

    def connection_lost(self, exc: Exception | None, *, reused: bool) -> None:
        if self._complete or self._error is not None:
            return
        if self._seen_bytes == 0 and reused:
            if not self.head.done():
                self.head.set_exception(Stale())
            return
        if not self.head.done():
            self._fail(Broken(f"the connection closed before an answer{f' ({exc})' if exc else ''}"))
        elif exc is None and self._ends_with_connection():
            self._complete = True
            self._wake()
        else:
            self._fail(Interrupted(f"the connection was cut inside the answer{f' ({exc})' if exc else ''}", "cut"))

    def _ends_with_connection(self) -> bool:
        return "content-length" not in self.headers and "transfer-encoding" not in self.headers

    def _take(self) -> bytes:
        parts = self._parts
        self._parts = []
        self._size = 0
        if self._paused:
            self._paused = False
            self._touched = self._loop.time()
            self._connection.resume()
            self._connection.arm(self.due())
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _bad(self, message: str) -> ProviderError:
        if self.head.done():
            return Interrupted(message, "malformed", status=self.status)
        return Broken(message)

    def _fail(self, error: ProviderError) -> None:
        if self._error is None:
            self._error = error
        if not self.head.done():
            self.head.set_exception(error)
            self.head.exception()  # whoever waits has it; if nobody does any more, that is no leak to warn of
        self._wake()
        self._connection.abort()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # For httptools, inside `feed_data`: nothing here may raise.

    def on_message_begin(self) -> None:
        if self._complete:
            self._trailing = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head.done() or self._complete:
            return  # a trailer: nothing we act on comes in one
        self._header_count += 1
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1").strip()
        self._fields[key] = f"{self._fields[key]}, {text}" if key in self._fields else text

    def on_headers_complete(self) -> None:
        if self._complete or self.head.done():
            return
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200 and self.status != 101:
            self._informational = True
            return
        error = self._refusal()
        if error is None and (coding := self._fields.get("content-encoding")) is not None:
            try:
                self._decoder = decoder_for(coding)
            except Broken as broken:
                error = broken
        if error is not None:
            self._fail(error)
            return
        self._keep = self._parser.should_keep_alive() and not self._ends_with_connection()
        self.head.set_result(None)
        if self._head_only:
            self._keep = False  # the parser expects a body that does not come
            self._complete = True

    def on_body(self, data: bytes) -> None:
        self._silent_bytes = 0
        if self._error is None and not self._trailing:
            self._parts.append(data)
            self._size += len(data)

    def on_message_complete(self) -> None:
        if self._informational:
            self._informational = False
            self._fields.clear()
            return
        if self._error is None:
            self._complete = True
            if self.status in (204, 304):
                self._keep = self._parser.should_keep_alive()

    def _refusal(self) -> ProviderError | None:
        """A head whose body two readers could measure differently is an attack or a fault; neither is worth parsing."""
        coding = self.headers.get("transfer-encoding")
        length = self.headers.get("content-length")
        if coding is not None and length is not None:
            return Broken("both content-length and transfer-encoding", status=self.status)
        if coding is not None and coding.lower() != "chunked":
            return Broken(f"transfer-encoding {coding!r}", status=self.status)
        if length is not None and not (length.isascii() and length.isdigit()):
            return Broken(f"content-length {length!r}", status=self.status)
        if self.status == 101 or self.status > 599:
            return Broken(f"HTTP status {self.status}", status=self.status)
        if self._header_count > MAX_HEADERS:
            return Broken(f"more than {MAX_HEADERS} headers", status=self.status)
        return None
