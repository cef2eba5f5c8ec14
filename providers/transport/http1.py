"""HTTP/1.1 on asyncio.Protocol and httptools: the hot path to a provider.

Measured 2026-11 on loopback: 14 to 18 us CPU a call, where httpx took 800 to 1200 in the same run (a general client's
features, none of which this path needs). Not done here: proxies, HTTP/2 (`httpx.py` is there for these), redirects,
cookies.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from functools import lru_cache
from urllib.parse import urlsplit

from msgspec import Struct

from providers.errors import BadRequest, TimedOut, Unreachable
from providers.transport.base import HttpRequest, Timeouts
from providers.transport.http1_connection import Connection, Http1Response, Stale


class Target(Struct, frozen=True):
    """A URL, taken apart once."""

    scheme: str
    host: str
    port: int
    host_header: str
    path: str


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
        self.ca_file = ca_file
        self._ssl = ssl_context
        self._origins: dict[tuple[str, str, int], _Origin] = {}
        self._reaper: asyncio.TimerHandle | None = None
        self._closed = False

    async def send(self, request: HttpRequest, timeouts: Timeouts) -> Http1Response:
        """See `providers.transport.base.Transport.send`."""
        loop = asyncio.get_running_loop()
        target = target_of(request.url)
        payload = serialise(request)
        origin = self._origin(target)
        started = loop.time()
        fresh = False
        while True:
            if self._closed:
                raise Unreachable("the transport is closed")
            connection = None if fresh else origin.idle()
            if connection is None:
                connection = await origin.acquire(loop, timeouts, fresh)
            response = Http1Response(connection, loop, started, timeouts, request.method == "HEAD")
            try:
                connection.begin(response, payload)
                await response.head
            except Stale as stale:
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
            self._ssl = ssl.create_default_context(cafile=self.ca_file)
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
        self._idle: list[Connection] = []  # the last one used first: the others may age and be reaped
        self._open: set[Connection] = set()  # those whose place it is theirs to give up, idle or not
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()

    def idle(self) -> Connection | None:
        """One that waits for work, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def acquire(self, loop: asyncio.AbstractEventLoop, timeouts: Timeouts, fresh: bool) -> Connection:
        """A new one, or one that somebody gives back. Raises: Unreachable, TimedOut("connect")."""
        if self.count >= self._limit and self._idle:
            self._idle.pop(0).abort()
        if self.count >= self._limit:
            handed = await self._wait(loop, timeouts.connect_s)
            if handed is not None:
                if handed.usable and not fresh:
                    return handed
                handed.abort()
                self.count += 1
        else:
            self.count += 1
        return await self._connect(loop, timeouts.connect_s)

    async def _wait(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> Connection | None:
        """A connection that someone gave back, or None: room for a new one, already counted."""
        future: asyncio.Future[Connection | None] = loop.create_future()
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

    async def _connect(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> Connection:
        """A new connection in a place that is counted already, and given up when this fails."""
        target = self._target
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self, loop),
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
        if connection.is_lost:
            self._free_place()
        else:
            self._open.add(connection)
        return connection

    def give(self, connection: Connection) -> None:
        """Back from a request, good for another one."""
        if not self._waiters or not self._hand(connection):
            self._idle.append(connection)
            self._owner.watch_idle(connection.loop)

    def lost(self, connection: Connection) -> None:
        if connection not in self._open:
            return  # One whose opening was cancelled or took too long: `_connect` gives its place up, once.
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._free_place()

    def reap(self, before: float) -> bool:
        """Close what has been idle since before then. Returns: whether some idle ones are left."""
        while self._idle and self._idle[0].idle_since < before:
            self._idle.pop(0).abort()
        return bool(self._idle)

    def close(self) -> None:
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()

    def _free_place(self) -> None:
        """A connection is gone: its place passes to whoever waits longest."""
        if not self._hand(None):
            self.count -= 1

    def _hand(self, connection: Connection | None) -> bool:
        while self._waiters:
            future = self._waiters.popleft()
            if not future.done():
                future.set_result(connection)
                return True
        return False


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


def serialise(request: HttpRequest) -> list[bytes]:
    """Head and body, apart: a large body is not copied to be joined.

    Raises: BadRequest for a header that would end its line."""
    head = _head(request.method, request.url, request.headers)
    if request.body or request.method in ("POST", "PUT", "PATCH"):
        head += b"content-length: %d\r\n\r\n" % len(request.body)
    else:
        head += b"\r\n"
    return [head, request.body] if request.body else [head]


# The same for nearly every call of a client to a deployment; a signature or a trace makes it another one.
@lru_cache(maxsize=1024)
def _head(method: str, url: str, headers: tuple[tuple[str, str], ...]) -> bytes:
    """All but the length of the body. Raises: BadRequest."""
    target = target_of(url)
    lines = [f"{method} {target.path} HTTP/1.1\r\nhost: {target.host_header}"]
    plain = True
    for name, value in headers:
        if "\r" in value or "\n" in value or "\0" in value or "\n" in name or "\r" in name or ":" in name:
            raise BadRequest(f"header {name!r} holds a line break")
        if name == "accept-encoding":
            plain = False
        lines.append(f"{name}: {value}")
    if plain:
        lines.append("accept-encoding: identity")
    try:
        return ("\r\n".join(lines) + "\r\n").encode("latin-1")
    except UnicodeEncodeError as error:
        raise BadRequest("a header with characters outside Latin-1") from error
