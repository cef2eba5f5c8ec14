"""HTTP/1.1 on asyncio.Protocol and httptools: the hot path to a provider.

Measured 2026-11 on loopback: 14 to 18 us CPU a call, where httpx took 800 to 1200 in the same run (a general client's
features, none of which this path needs). Not done here: proxies, HTTP/2 (`httpx.py` is there for these), redirects,
cookies.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from functools import lru_cache
from typing import cast
from urllib.parse import urlsplit

import httptools
from msgspec import Struct

from providers.errors import BadRequest, Broken, Interrupted, Phase, ProviderError, TimedOut, Unreachable
from providers.transport.base import HttpRequest, Timeouts
from providers.transport.coding import ContentDecoder, decoder_for

HIGH_WATER_BYTES = 256 * 1024  # unread body beyond this stops the socket
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256


class Target(Struct, frozen=True):
    """A URL, taken apart once."""

    scheme: str
    host: str
    port: int
    host_header: str
    path: str


class _Stale(Exception):
    """A kept-alive connection that its peer had closed before our request reached it. Nothing was answered."""


class Http1Transport:
    """One pool of connections per origin. Belongs to one event loop; `aclose` ends every connection."""

    def __init__(
        self,
        *,
        max_connections: int = 512,
        idle_s: float = 60.0,
        ca_file: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """max_connections: per origin; more requests wait, within their connect timeout. idle_s: a connection unused
        for longer is closed. ca_file: certificates to trust in place of the system's."""
        self._max_connections = max_connections
        self._idle_s = idle_s
        self._ca_file = ca_file
        self._ssl = ssl_context
        self._origins: dict[tuple[str, str, int], _Origin] = {}
        self._reaper: asyncio.TimerHandle | None = None
        self._closed = False

    async def send(self, request: HttpRequest, timeouts: Timeouts) -> Http1Response:
        """See `providers.transport.base.Transport.send`."""
        loop = asyncio.get_running_loop()
        target = target_of(request.url)
        payload = serialise(request, target)
        origin = self._origin(target)
        started = loop.time()
        fresh = False
        while True:
            if self._closed:
                raise Unreachable("the transport is closed")
            connection = await origin.acquire(loop, timeouts, fresh)
            response = Http1Response(connection, loop, started, timeouts, request.method == "HEAD")
            try:
                connection.begin(response, payload)
                await response.head
            except _Stale as stale:
                connection.abort()
                if fresh:
                    raise Unreachable(f"{target.host}:{target.port} closes new connections at once") from stale
                fresh = True  # Once, and on a new connection.
                continue
            except BaseException:
                connection.abort()
                raise
            return response

    async def aclose(self) -> None:
        self._closed = True
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        for origin in self._origins.values():
            origin.close()

    @property
    def open_connections(self) -> int:
        return sum(origin.count for origin in self._origins.values())

    def _origin(self, target: Target) -> _Origin:
        key = (target.scheme, target.host, target.port)
        origin = self._origins.get(key)
        if origin is None:
            context = self._tls() if target.scheme == "https" else None
            origin = self._origins[key] = _Origin(self, target, context, self._max_connections)
        return origin

    def _tls(self) -> ssl.SSLContext:
        if self._ssl is None:
            self._ssl = ssl.create_default_context(cafile=self._ca_file)
            self._ssl.set_alpn_protocols(["http/1.1"])
        return self._ssl

    def watch_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have unused connections closed when their time comes. One timer for all of them, none while none is idle."""
        if self._reaper is None and not self._closed:
            self._reaper = loop.call_later(self._idle_s, self._reap, loop)

    def _reap(self, loop: asyncio.AbstractEventLoop) -> None:
        self._reaper = None
        before = loop.time() - self._idle_s
        left = [origin.reap(before) for origin in self._origins.values()]
        if any(left):
            self._reaper = loop.call_later(self._idle_s / 2, self._reap, loop)


class _Origin:
    """The connections to one scheme, host and port."""

    def __init__(self, owner: Http1Transport, target: Target, context: ssl.SSLContext | None, limit: int) -> None:
        self._owner = owner
        self._target = target
        self._ssl = context
        self._limit = limit
        self.count = 0  # open or opening
        self._idle: list[_Connection] = []  # the last one used first: the others may age and be reaped
        self._busy: set[_Connection] = set()
        self._waiters: deque[asyncio.Future[_Connection | None]] = deque()

    async def acquire(self, loop: asyncio.AbstractEventLoop, timeouts: Timeouts, fresh: bool) -> _Connection:
        """Raises: Unreachable, TimedOut("connect")."""
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.usable:
                self._busy.add(connection)
                return connection
        if self.count >= self._limit and self._idle:
            self._idle.pop(0).abort()
        if self.count >= self._limit:
            handed = await self._wait(loop, timeouts.connect_s)
            if handed is not None:
                if handed.usable and not fresh:
                    self._busy.add(handed)
                    return handed
                handed.abort()
                self.count += 1
        else:
            self.count += 1
        return await self._connect(loop, timeouts.connect_s)

    async def _wait(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> _Connection | None:
        """A connection that someone gave back, or None: room for a new one, already counted."""
        future: asyncio.Future[_Connection | None] = loop.create_future()
        self._waiters.append(future)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except BaseException as error:
            if not future.done() or future.cancelled():
                if future in self._waiters:
                    self._waiters.remove(future)
            elif (handed := future.result()) is not None:  # handed over in the very moment of our leaving
                self.give(handed)
            else:
                self._free_place()
            if isinstance(error, TimeoutError):
                raise TimedOut(f"no free connection to {self._target.host} within {timeout_s} s", "connect") from error
            raise

    async def _connect(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> _Connection:
        """A new connection in a place that is counted already, and given up when this fails."""
        target = self._target
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, loop),
                    target.host,
                    target.port,
                    ssl=self._ssl,
                    server_hostname=target.host if self._ssl is not None else None,
                )
        except TimeoutError as error:
            self._free_place()
            raise TimedOut(f"no connection to {target.host}:{target.port} within {timeout_s} s", "connect") from error
        except (OSError, UnicodeError) as error:  # refused, no route, DNS; ssl.SSLError is an OSError
            self._free_place()
            raise Unreachable(f"no connection to {target.host}:{target.port}: {error}") from error
        except BaseException:
            self._free_place()
            raise
        self._busy.add(connection)
        return connection

    def give(self, connection: _Connection) -> None:
        """Back from a request, good for another one."""
        self._busy.discard(connection)
        if not self._hand(connection):
            self._idle.append(connection)
            self._owner.watch_idle(connection.loop)

    def lost(self, connection: _Connection) -> None:
        self._busy.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._free_place()

    def reap(self, before: float) -> bool:
        """Close what has been idle since before then. Returns: whether some idle ones are left."""
        while self._idle and self._idle[0].idle_since < before:
            self._idle.pop(0).abort()
        return bool(self._idle)

    def close(self) -> None:
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()

    def _free_place(self) -> None:
        """A connection is gone: its place passes to whoever waits longest."""
        if not self._hand(None):
            self.count -= 1

    def _hand(self, connection: _Connection | None) -> bool:
        while self._waiters:
            future = self._waiters.popleft()
            if not future.done():
                future.set_result(connection)
                return True
        return False


class _Connection(asyncio.Protocol):
    """One socket; at most one request on it at a time."""

    __slots__ = ("_origin", "_response", "_timer", "_timer_at", "_transport", "idle_since", "loop", "served")

    def __init__(self, origin: _Origin, loop: asyncio.AbstractEventLoop) -> None:
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

    def begin(self, response: Http1Response, payload: list[bytes]) -> None:
        """Raises: _Stale."""
        if not self.usable:
            raise _Stale
        assert self._transport is not None
        self._response = response
        self._transport.writelines(payload)
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
        if keep and self.usable:
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
        connection: _Connection,
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
                self.head.set_exception(_Stale())
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
        if error is None:
            try:
                self._decoder = decoder_for(self.headers.get("content-encoding"))
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


@lru_cache(maxsize=1024)
def target_of(url: str) -> Target:
    """Raises: BadRequest for a URL that cannot stand in a request line."""
    if not url.isascii() or any(ord(character) <= 0x20 or ord(character) == 0x7F for character in url):
        raise BadRequest("a URL with characters that must be percent-encoded")
    parts = urlsplit(url)
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host:
        raise BadRequest(f"not an http(s) URL: {parts.scheme}://{host}")
    default = 443 if parts.scheme == "https" else 80
    port = parts.port or default
    name = f"[{host}]" if ":" in host else host
    path = parts.path or "/"
    return Target(
        parts.scheme,
        host,
        port,
        name if port == default else f"{name}:{port}",
        f"{path}?{parts.query}" if parts.query else path,
    )


def serialise(request: HttpRequest, target: Target) -> list[bytes]:
    """Head and body, apart: a large body is not copied to be joined.

    Raises: BadRequest for a header that would end its line."""
    lines = [f"{request.method} {target.path} HTTP/1.1\r\nhost: {target.host_header}"]
    plain = True
    for name, value in request.headers:
        if "\r" in value or "\n" in value or "\0" in value or "\n" in name or "\r" in name or ":" in name:
            raise BadRequest(f"header {name!r} holds a line break")
        if name == "accept-encoding":
            plain = False
        lines.append(f"{name}: {value}")
    if plain:
        lines.append("accept-encoding: identity")
    if request.body or request.method in ("POST", "PUT", "PATCH"):
        lines.append(f"content-length: {len(request.body)}")
    try:
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    except UnicodeEncodeError as error:
        raise BadRequest("a header with characters outside Latin-1") from error
    return [head, request.body] if request.body else [head]
