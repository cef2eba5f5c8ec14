"""What every emulator stands on: a small HTTP/1.1 server on a real loopback socket that can also misbehave on purpose.

An emulator subclasses `Emulator`, implements `handle`, and is used as `async with TheEmulator() as provider:
provider.url`. Requests are kept in `requests`, what was served in `stats` (also `GET /__stats`), so a test can assert
both what was sent and what should have been paid for.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.emulators.scripted import Fault, PromptCache

REASONS = {200: "OK", 307: "Temporary Redirect", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found"}
MAX_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Request:
    """One request as it came. headers: names in lower case. raw_path: as on the wire, `path` once unquoted."""

    method: str
    path: str
    raw_path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Stats:
    """What the emulator served: the numbers a ledger must agree with."""

    requests: int = 0
    answers: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cut_by_client: int = 0
    by_model: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "by_model": dict(self.by_model)}


class ClientGone(Exception):
    """The client closed its side while an answer was being written."""


class Out:
    """One answer's way to the client. Every method raises ClientGone once the client has left."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.chunked = False
        self.keep_alive = True
        self.started = False

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A complete answer with content-length."""
        self._head(status, {"content-type": "application/json", **(headers or {}), "content-length": str(len(body))})
        await self.raw(body)

    async def json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        await self.whole(status, json.dumps(value, ensure_ascii=False).encode(), headers)

    async def start(self, status: int, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """Begin a chunked answer."""
        self._head(status, {"content-type": content_type, **(headers or {}), "transfer-encoding": "chunked"})
        self.chunked = True

    async def chunk(self, data: bytes) -> None:
        """One chunk of a chunked answer, flushed; so the peer's socket sees this very slice."""
        if data:
            await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        if self.writer.is_closing() or self.reader.at_eof():
            raise ClientGone
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError as error:
            raise ClientGone from error

    async def pause(self, seconds: float) -> None:
        """The model takes its time; a client that leaves meanwhile is noticed at once.

        A byte sent by the client in the middle of an answer counts as leaving: none of ours pipelines."""
        try:
            async with asyncio.timeout(seconds):
                await self.reader.read(1)
        except TimeoutError:
            return
        raise ClientGone

    async def until_gone(self) -> None:
        """Say nothing more until the client leaves."""
        await self.reader.read()
        raise ClientGone

    def close(self) -> None:
        """Close after what was written (a clean FIN)."""
        self.keep_alive = False
        self.writer.close()

    def reset(self) -> None:
        """Close with a TCP RST."""
        self.keep_alive = False
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))


class Emulator:
    """A provider on 127.0.0.1. One instance serves any number of connections until it is left."""

    name = "emulator"

    def __init__(self, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        self.stats = Stats()
        self.cache = PromptCache()
        self._port = port
        self._tls = tls
        self._played: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.open_connections = 0
        self.accepted_connections = 0

    async def handle(self, request: Request, out: Out) -> None:
        raise NotImplementedError

    @property
    def url(self) -> str:
        """Scheme, host and port; no path."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    @property
    def last(self) -> Request:
        return self.requests[-1]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self._port, ssl=self._tls, limit=MAX_BODY_BYTES
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def until_closed(self) -> None:
        """Until every connection of now has ended: the client left, or we closed."""
        await asyncio.gather(*self._connections, return_exceptions=True)

    def playing(self, fault: Fault | None) -> str | None:
        """The fault's name while it has times left. Call once per request."""
        if fault is None:
            return None
        self._played[fault.name] += 1
        return fault.name if fault.times is None or self._played[fault.name] <= fault.times else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.open_connections += 1
        self.accepted_connections += 1
        try:
            while (request := await _read_request(reader)) is not None:
                out = Out(reader, writer)
                out.keep_alive = request.headers.get("connection", "").lower() != "close"
                await self._one(request, out)
                if not out.keep_alive or writer.is_closing():
                    break
        except (ConnectionError, asyncio.IncompleteReadError, ClientGone):
            pass  # The peer left; there is nobody to tell.
        except asyncio.CancelledError:
            pass  # `stop` ends every connection so; the task has nothing left to do.
        finally:
            self.open_connections -= 1
            self._connections.discard(task)
            writer.close()

    async def _one(self, request: Request, out: Out) -> None:
        if request.path == "/__stats":
            await out.json(200, self.stats.as_dict())
            return
        self.requests.append(request)
        self.stats.requests += 1
        try:
            await self.handle(request, out)
        except ClientGone:
            self.stats.cut_by_client += 1
            raise


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        key = name.strip().lower()
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    if headers.get("expect", "").lower() == "100-continue":
        raise ConnectionError("no client of ours sends expect")
    if "chunked" in headers.get("transfer-encoding", ""):
        body = await _read_chunked(reader)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    split = urlsplit(target)
    query = dict(parse_qsl(split.query, keep_blank_values=True))
    return Request(method, unquote(split.path), split.path, query, headers, body)


async def _read_chunked(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        data = await reader.readexactly(size + 2)
        if size == 0:
            return b"".join(parts)
        parts.append(data[:-2])


async def play_transport_fault(name: str, out: Out, media_type: str, frames: Iterable[bytes]) -> bool:
    """Faults that need no knowledge of the dialect, played over the frames (or the one body) of a good answer.

    Returns: False when the fault is none of these; nothing has been written then.
    """
    whole = list(frames)
    half = whole[: max(1, len(whole) // 2)] if len(whole) > 1 else [whole[0][: len(whole[0]) // 2]]
    match name:
        case "slow-first-byte":
            await out.until_gone()
        case "cut-before-head":
            out.close()
        case "garbage":
            await out.raw(b"\x16\x03\x01 this is not HTTP at all\r\n\r\n")
            out.close()
        case "stall" | "cut-mid-frame" | "reset":
            await out.start(200, media_type)
            for frame in half:
                await out.chunk(frame)
            if name == "stall":
                await out.until_gone()
            if len(whole) > 1:
                torn = whole[len(half)]
                await out.chunk(torn[: len(torn) // 2])
            if name == "reset":
                out.reset()
            else:
                out.close()
        case "wrong-content-type":
            await out.start(200, "text/html")
            for frame in whole:
                await out.chunk(frame)
            await out.end()
        case "byte-by-byte":
            await out.start(200, media_type)
            for byte in b"".join(whole):
                await out.chunk(bytes((byte,)))
            await out.end()
        case "split-utf8":
            await out.start(200, media_type)
            for piece in _cut_inside_characters(b"".join(whole)):
                await out.chunk(piece)
            await out.end()
        case "keep-alive-close":
            await out.start(200, media_type)
            for frame in whole:
                await out.chunk(frame)
            await out.end()
            out.close()
        case "redirect":
            await out.whole(307, b"", {"location": "http://127.0.0.2:9/elsewhere"})
        case "502-html":
            await out.whole(502, b"<html><body>Bad gateway</body></html>", {"content-type": "text/html"})
        case _:
            return False
    return True


def _cut_inside_characters(data: bytes) -> list[bytes]:
    """Slices that begin with a continuation byte wherever there is one; without any, slices of 7 bytes."""
    cuts = [at for at, byte in enumerate(data) if byte & 0xC0 == 0x80] or list(range(7, len(data), 7))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
