"""A client that writes what it likes on a socket: for whatever no SDK would send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PATIENCE_S = 60.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


class Line:
    """One connection. Every read ends within the client's patience, or the test fails."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """What the peer has closed already is not our concern here."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            return

    async def head(self) -> Answer | None:
        """Status and headers; None when the peer closed (or reset) instead."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                raw = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        fields = [line.partition(":") for line in lines]
        return Answer(int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in fields})

    async def answer(self) -> Answer | None:
        """A whole answer of known length or in chunks."""
        found = await self.head()
        if found is None:
            return None
        async with asyncio.timeout(PATIENCE_S):
            if found.headers.get("transfer-encoding") == "chunked":
                while (piece := await self.chunk()) != b"":
                    found.body += piece
            else:
                found.body = await self.reader.readexactly(int(found.headers.get("content-length", "0")))
        return found

    async def chunk(self) -> bytes:
        """b"" at the end of the body."""
        async with asyncio.timeout(PATIENCE_S):
            size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def closed(self) -> bool:
        """Whether the peer has nothing more to say and says so. Waits for it."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self.reader.read(1) == b""
        except ConnectionError:
            return True


@asynccontextmanager
async def line(url: str, *, limit: int = 2**20) -> AsyncIterator[Line]:
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=limit)
    try:
        yield Line(reader, writer)
    finally:
        writer.transport.abort()


def request(
    path: str, body: Any = None, *, key: str = "", method: str = "POST", host: str = "gateway.test", more: str = ""
) -> bytes:
    """A good request. more: header lines, each with its CRLF."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n"
    if key:
        head += f"authorization: Bearer {key}\r\n"
    if body is not None:
        head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
    return (head + more + "\r\n").encode("latin-1") + data


def chat(content: str = "say hello", model: str = "echo", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}


async def ask(url: str, data: bytes) -> Answer | None:
    """One request on a connection of its own."""
    async with line(url) as opened:
        await opened.send(data)
        return await opened.answer()
