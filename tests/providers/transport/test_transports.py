"""One contract, two transports, two event loops, and a server that writes whatever bytes a test wants.

Nothing here waits for a fixed time."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Self

import pytest

from providers.errors import BadRequest, Broken, Interrupted, ProviderError, TimedOut, Unreachable
from providers.transport.base import HttpRequest, HttpResponse, Timeouts, Transport
from providers.transport.http1 import Http1Transport
from providers.transport.http1_connection import MAX_HEAD_BYTES
from providers.transport.httpx import HttpxTransport
from tests.emulators.tls import certificate, server_side

ANY = Timeouts()
# For peers that say nothing from then on, no others: a machine that stands still for a moment looks like one.
NO_HEAD, NO_MORE = Timeouts(first_byte_s=0.05), Timeouts(between_bytes_s=0.05)
OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"

Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """One whole request, head and body. b"" when the client is gone."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        return head + await self.reader.readexactly(length)

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)  # lets the client see this very slice

    def reset(self) -> None:
        self.writer.transport.abort()

    async def until_gone(self) -> None:
        await self.reader.read()


class RawServer:
    """Runs `script` on every connection."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.script = script
        self.tls = tls
        self.host = host
        self.accepted = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self.server = await asyncio.start_server(self._run, self.host, 0, ssl=self.tls)
        self.port = self.server.sockets[0].getsockname()[1]
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.url = f"{'https' if self.tls else 'http'}://{host}:{self.port}/v1/x"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for task in tuple(self.tasks):
            task.cancel()
        await self.until_closed()

    async def until_closed(self) -> None:
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self.script(Peer(reader, writer))
        except (ConnectionError, asyncio.CancelledError):
            pass  # The client left, or the test is over.
        finally:
            self.tasks.discard(task)
            writer.close()


@pytest.fixture(params=["http1", "httpx"])
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[Transport]:
    made: Transport = Http1Transport() if request.param == "http1" else HttpxTransport()
    yield made
    await made.aclose()


@pytest.fixture
async def http1() -> AsyncIterator[Http1Transport]:
    made = Http1Transport()
    yield made
    await made.aclose()


def answering(*pieces: bytes) -> Script:
    """Answers each request of a connection with these bytes."""

    async def script(peer: Peer) -> None:
        while await peer.request():
            await peer.say(*pieces)

    return script


def closing(*pieces: bytes) -> Script:
    """Answers once and closes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(*pieces)

    return script


def post(url: str, body: bytes = b"{}", *headers: tuple[str, str]) -> HttpRequest:
    return HttpRequest("POST", url, (("content-type", "application/json"), *headers), body)


async def body_of(response: HttpResponse) -> bytes:
    try:
        return b"".join([chunk async for chunk in response.chunks()])
    finally:
        await response.aclose()


async def fetch(transport: Transport, url: str, timeouts: Timeouts = ANY) -> bytes:
    return await body_of(await transport.send(post(url), timeouts))


CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
CHUNKS = b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\ntrailer: x\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"content-length: 11\r\n\r\nhello world",
        CHUNKED + CHUNKS,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + CHUNKED + CHUNKS,
    ],
    ids=["length", "chunked", "informational"],
)
async def test_bodies_come_whole_however_they_are_cut(answer: bytes, transport: Transport) -> None:
    for pieces in ((answer,), tuple(bytes((byte,)) for byte in answer), (answer[:70], answer[70:])):
        async with RawServer(answering(*pieces)) as server:
            for _ in range(2):
                response = await transport.send(post(server.url), ANY)
                assert response.status == 200
                assert response.headers["content-type"] == "text/plain"
                assert "link" not in response.headers
                assert await response.read(100) == b"hello world"
                await response.aclose()
            assert server.accepted == 1  # kept alive


async def test_a_body_may_end_with_the_connection(transport: Transport) -> None:
    async with RawServer(closing(OK + b"\r\n", b"hello ", b"world")) as server:
        assert await fetch(transport, server.url) == b"hello world"


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_body(status: int, transport: Transport) -> None:
    async with RawServer(answering(b"HTTP/1.1 %d None\r\n\r\n" % status)) as server:
        for _ in range(2):
            response = await transport.send(post(server.url), ANY)
            assert (response.status, await response.read(10)) == (status, b"")
            await response.aclose()


async def test_what_is_sent(transport: Transport) -> None:
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.say(OK + b"content-length: 0\r\n\r\n")

    async with RawServer(script) as server:
        await fetch_with(transport, post(server.url + "?a=%2F", b'{"a":1}', ("authorization", "Bearer k")))
        head, _, body = seen[0].partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in lines)
        assert first == b"POST /v1/x?a=%2F HTTP/1.1"
        assert headers[b"host"] == f"127.0.0.1:{server.port}".encode()
        assert headers[b"content-length"] == b"7"
        assert headers[b"authorization"] == b"bearer k"
        assert headers[b"accept-encoding"] == b"identity"
        assert b"transfer-encoding" not in headers
        assert body == b'{"a":1}'


async def fetch_with(transport: Transport, request: HttpRequest) -> bytes:
    return await body_of(await transport.send(request, ANY))


@pytest.mark.parametrize(
    "script",
    [
        closing(),
        closing(b"HTTP/1.1 200 OK\r\nconte"),
        closing(b"not http at all\r\n\r\n"),
        closing(b"\x16\x03\x01\x02\x00"),
        closing(b"HTTP/1.1 xyz OK\r\n\r\n"),
    ],
    ids=["nothing", "half a head", "garbage", "tls", "no status"],
)
async def test_no_valid_answer_is_broken(script: Script, transport: Transport) -> None:
    async with RawServer(script) as server:
        with pytest.raises(Broken):
            await fetch(transport, server.url)


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"content-length: -5\r\n\r\n",
        b"content-length: 5, 5\r\n\r\n",
        b"transfer-encoding: gzip, chunked\r\n\r\n",
        b"transfer-encoding: identity\r\n\r\n",
        b"bad header: 1\r\n\r\n",
        b"x: a\0b\r\n\r\n",
    ],
)
async def test_heads_that_two_readers_could_read_differently(head: bytes, http1: Http1Transport) -> None:
    async with RawServer(closing(OK + head + b"hello")) as server:
        with pytest.raises(Broken):
            await fetch(http1, server.url)


@pytest.mark.parametrize(
    "head",
    [
        b"x: " + b"a" * (2 * MAX_HEAD_BYTES) + b"\r\n\r\n",
        b"".join(b"x-%d: %s\r\n" % (n, b"a" * 900) for n in range(200)) + b"\r\n",
        b"".join(b"x-%d: 1\r\n" % n for n in range(500)) + b"content-length: 0\r\n\r\n",
    ],
    ids=["long line", "many long", "many short"],
)
async def test_huge_heads_are_refused(head: bytes, http1: Http1Transport) -> None:
    async with RawServer(closing(OK, head)) as server:
        with pytest.raises(Broken):
            await fetch(http1, server.url)


async def test_protocol_switch_is_refused(http1: Http1Transport) -> None:
    answer = b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    async with RawServer(closing(answer)) as server:
        with pytest.raises(Broken):
            await fetch(http1, server.url)


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"content-length: 100\r\n\r\nhello",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
        CHUNKED + b"5\r\nhelloXX",
        CHUNKED + b"zz\r\nhello",
    ],
    ids=["length", "chunk", "no last line", "bad chunk end", "bad size"],
)
@pytest.mark.parametrize("reset", [False, True])
async def test_a_cut_body_is_interrupted(answer: bytes, reset: bool, transport: Transport) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(*(bytes((byte,)) for byte in answer))
        if reset:
            peer.reset()

    async with RawServer(script) as server:
        with pytest.raises((Interrupted, Broken)) as raised:
            await fetch(transport, server.url)
        if not reset:  # a reset may overtake the bytes before it
            assert isinstance(raised.value, Interrupted)


async def test_silence_times_out_by_phase(transport: Transport) -> None:
    async def no_head(peer: Peer) -> None:
        await peer.request()
        await peer.until_gone()

    async def no_more(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED + b"5\r\nhello\r\n")
        await peer.until_gone()

    for script, phase, limits in ((no_head, "first_byte", NO_HEAD), (no_more, "between_bytes", NO_MORE)):
        async with RawServer(script) as server:
            with pytest.raises(TimedOut) as raised:
                await fetch(transport, server.url, limits)
            assert raised.value.phase == phase
            await server.until_closed()  # the connection is gone with the request


async def test_a_drip_runs_into_the_total(transport: Transport) -> None:
    async def drip(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED)
        while not peer.reader.at_eof():
            await peer.say(b"1\r\nx\r\n")

    async with RawServer(drip) as server:
        with pytest.raises(TimedOut) as raised:
            await fetch(transport, server.url, Timeouts(between_bytes_s=5, total_s=0.05))
        assert raised.value.phase == "total"


async def test_nobody_listens(transport: Transport) -> None:
    async with RawServer(answering()) as server:
        url = server.url
    with pytest.raises(Unreachable):
        await fetch(transport, url)
    with pytest.raises(Unreachable):
        await fetch(transport, "http://no-such-host.invalid/x")


async def test_a_stale_connection_is_replaced_once(transport: Transport) -> None:
    """The race: the peer closes an idle connection just as our next request leaves."""
    served = 0

    async def one_each(peer: Peer) -> None:
        nonlocal served
        await peer.request()
        served += 1
        await peer.say(OK + b"content-length: 2\r\n\r\nok")
        await peer.request()  # reads the second request, then closes without a word

    async with RawServer(one_each) as server:
        assert await fetch(transport, server.url) == b"ok"
        assert await fetch(transport, server.url) == b"ok"
        assert (served, server.accepted) == (2, 2)


async def test_a_fresh_connection_that_closes_is_not_asked_again(http1: Http1Transport) -> None:
    async with RawServer(closing()) as server:
        with pytest.raises(Broken):
            await fetch(http1, server.url)
        assert server.accepted == 1


async def test_redirects_are_not_followed(transport: Transport) -> None:
    async with RawServer(answering(b"HTTP/1.1 307 T\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n")) as server:
        response = await transport.send(post(server.url), ANY)
        assert (response.status, response.headers["location"]) == (307, "/elsewhere")
        await response.aclose()


async def test_a_body_over_the_limit_is_broken(transport: Transport) -> None:
    async with RawServer(answering(OK + b"content-length: 5000\r\n\r\n" + b"x" * 5000)) as server:
        response = await transport.send(post(server.url), ANY)
        with pytest.raises(Broken):
            await response.read(4999)
        response = await transport.send(post(server.url), ANY)
        assert len(await response.read(5000)) == 5000
        await response.aclose()


async def test_closing_early_cuts_the_connection(transport: Transport) -> None:
    async def endless(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED)
        while not peer.reader.at_eof():
            await peer.say(b"5\r\nhello\r\n")

    async with RawServer(endless) as server:
        response = await transport.send(post(server.url), ANY)
        async for chunk in response.chunks():
            assert chunk.startswith(b"hello")
            break
        await response.aclose()
        await response.aclose()
        await server.until_closed()


async def test_cancelling_the_wait_for_a_head_cuts_the_connection(transport: Transport) -> None:
    arrived = asyncio.Event()

    async def mute(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await peer.until_gone()

    async with RawServer(mute) as server:
        task = asyncio.create_task(fetch(transport, server.url, ANY))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.until_closed()


async def test_a_slow_reader_slows_the_peer(http1: Http1Transport) -> None:
    """Backpressure: far more than any buffer is offered; the peer must be stopped before it has written it all."""
    written = 0
    blocked = asyncio.Event()
    total = 64 * 1024 * 1024
    block = b"x" * 65536

    async def flood(peer: Peer) -> None:
        nonlocal written
        await peer.request()
        peer.writer.write(OK + b"content-length: %d\r\n\r\n" % total)
        while written < total:
            peer.writer.write(block)
            written += len(block)
            drained = asyncio.ensure_future(peer.writer.drain())
            done, _ = await asyncio.wait({drained}, timeout=1.5)
            if not done:
                blocked.set()
            await drained

    async with RawServer(flood) as server:
        # Waiting longer than between_bytes: the silence is ours and must not be held against the peer.
        response = await http1.send(post(server.url), Timeouts(between_bytes_s=1.0))
        await blocked.wait()
        assert written < total
        size = 0
        async for chunk in response.chunks():
            size += len(chunk)
        assert size == total


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw deflate"])
async def test_content_coding_is_undone(coding: str, transport: Transport) -> None:
    text = b"hello world " * 1000
    packed = {
        "gzip": gzip.compress(text),
        "deflate": zlib.compress(text),
        "raw deflate": zlib.compress(text)[2:-4],
    }[coding]
    name = coding.split()[-1].encode()
    head = OK + b"content-encoding: %s\r\ncontent-length: %d\r\n\r\n" % (name, len(packed))
    async with RawServer(answering(head, packed[:7], packed[7:])) as server:
        assert await fetch(transport, server.url) == text


async def test_coded_bodies_that_lie(http1: Http1Transport) -> None:
    bomb = gzip.compress(b"\0" * (64 * 1024 * 1024))
    for packed, coding in ((bomb, b"gzip"), (b"not gzip", b"gzip"), (bomb[:100], b"gzip"), (b"x", b"br")):
        head = OK + b"content-encoding: %s\r\ncontent-length: %d\r\n\r\n" % (coding, len(packed))
        async with RawServer(answering(head + packed)) as server:
            with pytest.raises((Broken, Interrupted)):
                await fetch(http1, server.url, ANY)


async def test_words_nobody_asked_for_end_the_connection(http1: Http1Transport) -> None:
    """A second answer behind the first would be taken for the answer to the next request, perhaps another client's."""
    good = OK + b"content-length: 2\r\n\r\nok"
    async with RawServer(answering(good + good)) as server:
        for _ in range(3):
            assert await fetch(http1, server.url) == b"ok"
        assert server.accepted == 3

    async with RawServer(answering(good, good)) as server:
        for _ in range(3):
            assert await fetch(http1, server.url) == b"ok"


async def test_connections_are_bounded_and_handed_on() -> None:
    transport = Http1Transport(max_connections=2)
    async with RawServer(answering(OK + b"content-length: 2\r\n\r\nok")) as server:
        assert await asyncio.gather(*(fetch(transport, server.url) for _ in range(20))) == [b"ok"] * 20
        assert server.accepted <= 2
        held = [await transport.send(post(server.url), ANY) for _ in range(2)]
        for response in held:
            await response.read(10)
        await transport.aclose()


async def test_waiting_for_a_connection_is_bounded_too() -> None:
    transport = Http1Transport(max_connections=1)

    async def hold(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED + b"1\r\nx\r\n")
        await peer.until_gone()

    async with RawServer(hold) as server:
        held = await transport.send(post(server.url), ANY)
        with pytest.raises(TimedOut) as raised:
            await transport.send(post(server.url), Timeouts(connect_s=0.02))
        assert raised.value.phase == "connect"
        waiting = asyncio.create_task(transport.send(post(server.url), ANY))
        await asyncio.sleep(0)
        await held.aclose()  # its place passes on
        response = await waiting
        cancelled = asyncio.create_task(transport.send(post(server.url), ANY))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await response.aclose()
        await server.until_closed()
        assert transport.open_connections == 0
    await transport.aclose()


async def test_a_place_is_given_up_once_however_far_its_opening_came() -> None:
    """Cancelled after each turn of the loop. Given up twice, there would be one more than the bound from then on."""
    transport = Http1Transport()
    async with RawServer(Peer.until_gone) as server:
        for turns in range(12):
            sending = asyncio.create_task(transport.send(post(server.url), ANY))
            await turn(turns)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await turn(50)  # What was opened is closed.
            await server.until_closed()
            assert transport.open_connections == 0, turns
    await transport.aclose()


async def turn(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def test_idle_connections_are_reaped() -> None:
    transport = Http1Transport(idle_s=0.02)
    async with RawServer(answering(OK + b"content-length: 2\r\n\r\nok")) as server:
        assert await fetch(transport, server.url) == b"ok"
        await server.until_closed()
        assert transport.open_connections == 0
    await transport.aclose()


@pytest.mark.parametrize(
    "request_",
    [
        HttpRequest("POST", "http://h/a b"),
        HttpRequest("POST", "http://h/é"),
        HttpRequest("POST", "gopher://h/"),
        HttpRequest("POST", "http://h/", (("x", "a\r\ny: b"),)),
    ],
)
async def test_requests_that_cannot_be_written(request_: HttpRequest, http1: Http1Transport) -> None:
    with pytest.raises(BadRequest):
        await http1.send(request_, ANY)


async def test_ipv6(transport: Transport) -> None:
    async with RawServer(answering(OK + b"content-length: 2\r\n\r\nok"), host="::1") as server:
        assert await fetch(transport, server.url) == b"ok"


async def test_tls_is_verified(tmp_path: Path) -> None:
    pem = certificate(tmp_path / "ca.pem")
    async with RawServer(answering(OK + b"content-length: 2\r\n\r\nok"), tls=server_side(pem)) as server:
        trusting = Http1Transport(ca_file=str(pem))
        for _ in range(2):
            assert await fetch(trusting, server.url, ANY) == b"ok"
        assert server.accepted == 1
        with pytest.raises(Unreachable):  # the certificate is for the address, not for the name
            await fetch(trusting, server.url.replace("127.0.0.1", "localhost"), ANY)
        wary = Http1Transport()
        with pytest.raises(Unreachable):
            await fetch(wary, server.url, ANY)
        plain = server.url.replace("https", "http")
        with pytest.raises(ProviderError):
            await fetch(wary, plain, ANY)
        await trusting.aclose()
        await wary.aclose()
