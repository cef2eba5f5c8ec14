"""Slow, stalled and gone: who holds how much, who is cut when, and what is said while nothing happens.

Real sockets on both sides; nothing here waits for a fixed time."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from google import genai
from google.genai import types
from msgspec.structs import replace

from gateway.config import TimeoutSettings
from gateway.ingress.heartbeat import BLANK, COMMENT
from tests.e2e.faultproxy import FaultProxy
from tests.e2e.harness import WITHIN_S, House, house, model, provider, settings_for, until
from tests.e2e.test_door import CHAT, fortress
from tests.e2e.wire import ask, chat, line, request
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.server import Out, Request

BURST_BYTES = 50_000_000
HELD_BYTES = 2_000_000  # By the gateway itself, of one stream.
SMALL = 32 * 1024  # Kernel buffers of our own ends, so that what is counted is the gateway's.


class Burster:
    """An upstream that streams 50 MB as fast as it is taken, and says how much that was."""

    def __init__(self) -> None:
        self.sent = 0
        self.gone = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Burster:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        writer.transport.set_write_buffer_limits(high=0)
        piece = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        delta = {"index": 0, "delta": {"content": "x" * 10_000}, "finish_reason": None}
        frame = b"data: " + json.dumps(piece | {"choices": [delta]}).encode() + b"\n\n"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head)
            while self.sent < BURST_BYTES:
                writer.write(frame)
                await writer.drain()
                self.sent += len(frame)
            writer.write(b"data: [DONE]\n\n")
        except ConnectionError:
            self.gone.set()
        finally:
            writer.close()


@asynccontextmanager
async def bursting(folder: Path, template: Path, redis_url: str, **server: Any) -> AsyncIterator[tuple[House, Burster]]:
    (folder / "farebox.db").write_bytes(template.read_bytes())
    async with Burster() as upstream:
        settings = settings_for(
            folder / "data",
            f"sqlite+aiosqlite:///{folder / 'farebox.db'}",
            redis_url,
            {"up": provider("openai_like", f"{upstream.url}/v1")},
            (model("echo", "up/m"),),
            # The upstream shares this process with the client.
            timeouts=TimeoutSettings(connect_s=60, first_byte_s=120, between_bytes_s=120, total_s=600),
        )
        settings = replace(settings, server=replace(settings.server, **server))
        async with house(settings) as built:
            yield built, upstream


async def standstill(upstream: Burster) -> int:
    """How much the upstream could send before nobody took any more."""
    seen, same = -1, 0
    async with asyncio.timeout(2 * WITHIN_S):
        while same < 20:
            same = same + 1 if upstream.sent == seen else 0
            seen = upstream.sent
            await asyncio.sleep(0.01)
    return seen


def in_kernel(*urls: str) -> int:
    """Bytes that lie in the buffers of these servers' connections: they grow while a client reads fast, to as much as
    the machine allows, and are not the gateway's. Source: Linux, Documentation/networking/proc_net_tcp.rst, read
    2026-11."""
    ports = {int(url.rpartition(":")[2]) for url in urls}
    queued = 0
    for line_ in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line_.split()
        if ports & {int(end.rpartition(":")[2], 16) for end in (local, remote)}:
            queued += sum(int(queue, 16) for queue in queues.split(":"))
    return queued


@asynccontextmanager
async def slow_reader(url: str, data: bytes) -> AsyncIterator[socket.socket]:
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", int(url.rpartition(":")[2])))
        await loop.sock_sendall(sock, data)
        yield sock


async def _some(sock: socket.socket, most: int) -> bytes:
    async with asyncio.timeout(WITHIN_S):
        data = await asyncio.get_running_loop().sock_recv(sock, most)
    assert data, "cut"
    return data


async def test_a_slow_client_holds_bounded_memory_and_slows_its_upstream(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    loop = asyncio.get_running_loop()
    async with bursting(tmp_path, sqlite_template, redis_url) as (gateway, upstream):
        data = request(CHAT, chat(stream=True), key=gateway.key)
        async with slow_reader(gateway.url, data) as sock:
            read = 0
            while read < 16_384:  # 1 KiB at a time
                read += len(await _some(sock, 1024))
            held = await standstill(upstream) - read - in_kernel(gateway.url, upstream.url)
            print(f"held between upstream and a slow client: {held} of {BURST_BYTES} bytes")
            assert held < HELD_BYTES
            while read < 20_000_000:
                read += len(await _some(sock, 262_144))
            assert upstream.sent > 18_000_000, "it goes on as it is taken"  # Frames grow a little on their way.
            held = await standstill(upstream) - read - in_kernel(gateway.url, upstream.url)
            print(f"and after it has read for a while: {held} bytes")
            assert held < HELD_BYTES
            began = loop.time()
        # The client left. Its upstream must not write on.
        async with asyncio.timeout(WITHIN_S):
            await upstream.gone.wait()
        print(f"upstream cut {1000 * (loop.time() - began):.1f} ms after its client left")
        assert upstream.sent < BURST_BYTES
        rows = await gateway.rows(1)
        assert [row["outcome"] for row in rows] == ["client_gone"]


async def test_a_client_that_takes_nothing_is_cut_and_its_upstream_with_it(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    async with bursting(tmp_path, sqlite_template, redis_url, stalled_client_s=0.3) as (gateway, upstream):
        async with slow_reader(gateway.url, request(CHAT, chat(stream=True), key=gateway.key)):
            async with asyncio.timeout(WITHIN_S):
                await upstream.gone.wait()
        rows = await gateway.rows(1)
        assert [row["outcome"] for row in rows] == ["client_gone"]
        assert rows[0]["estimated"]


class Holding(OpenAIEmulator):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.left = asyncio.Event()

    async def handle(self, request: Request, out: Out) -> None:
        self.asked.set()
        while not self.go_on.is_set():
            try:
                await out.pause(0.01)
            except BaseException:
                self.left.set()
                raise
        await super().handle(request, out)


@asynccontextmanager
async def holding(folder: Path, template: Path, redis_url: str, **server: Any) -> AsyncIterator[tuple[House, Holding]]:
    (folder / "farebox.db").write_bytes(template.read_bytes())
    async with Holding() as upstream:
        settings = settings_for(
            folder / "data",
            f"sqlite+aiosqlite:///{folder / 'farebox.db'}",
            redis_url,
            {"up": provider("openai", f"{upstream.url}/v1")},
            (model("echo", "up/echo-1"), model("bad", "up/fault-400"), model("stalls", "up/fault-stall")),
            timeouts=TimeoutSettings(connect_s=2, first_byte_s=20, between_bytes_s=0.3, total_s=60),
        )
        settings = replace(settings, server=replace(settings.server, **server))
        async with house(settings) as built:
            yield built, upstream


async def test_a_whole_answer_is_finished_without_its_client_unless_told_otherwise(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    for choice, outcome in (("finish", "completed"), ("cancel", "client_gone")):
        folder = tmp_path / choice
        folder.mkdir()
        async with holding(folder, sqlite_template, redis_url, gone_client=choice) as (gateway, upstream):
            async with line(gateway.url) as opened:
                await opened.send(request(CHAT, chat(), key=gateway.key))
                await upstream.asked.wait()
            if choice == "cancel":
                async with asyncio.timeout(WITHIN_S):
                    await upstream.left.wait()
            else:
                upstream.go_on.set()
            rows = await gateway.rows(1)
            assert [row["outcome"] for row in rows] == [outcome]
            assert rows[0]["estimated"] == (choice == "cancel")
            assert rows[0]["charge_pusd"] > 0


async def test_a_client_that_leaves_before_the_first_event_cancels_its_upstream(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    async with holding(tmp_path, sqlite_template, redis_url) as (gateway, upstream):
        async with line(gateway.url) as opened:
            await opened.send(request(CHAT, chat(stream=True), key=gateway.key))
            await upstream.asked.wait()
        async with asyncio.timeout(WITHIN_S):
            await upstream.left.wait()
        assert [row["outcome"] for row in await gateway.rows(1)] == ["client_gone"]


async def test_an_upstream_that_falls_silent_is_given_up_and_the_client_told(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    async with holding(tmp_path, sqlite_template, redis_url) as (gateway, upstream):
        upstream.go_on.set()
        answer = await ask(gateway.url, request(CHAT, chat(model="stalls", stream=True), key=gateway.key))
        assert answer is not None
        assert b"upstream_timeout" in answer.body
        assert b"[DONE]" not in answer.body.split(b"upstream_timeout")[0]


SPOKEN = {
    "openai_chat": CHAT,
    "openai_completions": "/v1/completions",
    "openai_responses": "/v1/responses",
    "anthropic_messages": "/v1/messages",
    "gemini": "/v1beta/models/echo:streamGenerateContent?alt=sse",
}


def streaming(dialect: str, alias: str = "echo") -> dict[str, Any]:
    match dialect:
        case "gemini":
            return {"contents": [{"role": "user", "parts": [{"text": "say hello"}]}]}
        case "openai_responses":
            return {"model": alias, "input": "say hello", "stream": True}
        case "openai_completions":
            return {"model": alias, "prompt": "say hello", "stream": True}
    return chat(model=alias, stream=True, max_tokens=50)


@pytest.mark.parametrize("dialect", list(SPOKEN))
async def test_a_stream_that_is_awaited_says_that_somebody_is_there(
    tmp_path: Path, sqlite_template: Path, redis_url: str, dialect: str
) -> None:
    """Comments before the head of the upstream, and a failure after them is told in the stream."""
    async with holding(tmp_path, sqlite_template, redis_url, heartbeat_s=0.05) as (gateway, upstream):
        for alias in ("echo", "bad"):
            upstream.go_on.clear()
            path = SPOKEN[dialect].replace("echo", alias)
            async with line(gateway.url) as opened:
                await opened.send(request(path, streaming(dialect, alias), key=gateway.key))
                head = await opened.head()
                assert head is not None
                assert (head.status, head.headers["content-type"][:17]) == (200, "text/event-stream")
                comments = [await opened.chunk() for _ in range(3)]
                assert set(comments) == {BLANK if dialect == "gemini" else COMMENT}
                upstream.go_on.set()
                body = b""
                while (piece := await opened.chunk()) != b"":
                    body += piece
                if alias == "echo":
                    assert b"hello" in body
                else:
                    assert b"error" in body
                # The connection is good for another one.
                await opened.send(request("/v1/models", None, key=gateway.key, method="GET"))
                answer = await opened.answer()
                assert answer is not None
                assert answer.status == 200
        rows = await gateway.rows(2)
        assert [row["outcome"] for row in rows] == ["completed", "rejected"]


async def test_what_only_looks_like_a_stream_is_answered_whole_however_long_it_takes(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    body = json.dumps(chat() | {"metadata": {"a": "b"}})[:-1] + ', "user": "\\"stream\\": true"}'
    nested = json.dumps(chat() | {"tools": [{"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {}, "default": {"stream": True}}}}]})  # fmt: skip
    async with holding(tmp_path, sqlite_template, redis_url, heartbeat_s=0.02) as (gateway, upstream):
        for text in (body, nested):
            upstream.go_on.clear()
            asking = asyncio.create_task(ask(gateway.url, request(CHAT, text.encode(), key=gateway.key)))
            upstream.asked.clear()
            await upstream.asked.wait()
            for _ in range(10):
                await asyncio.sleep(0.01)
            upstream.go_on.set()
            answer = await asking
            assert answer is not None
            assert answer.headers["content-type"] == "application/json"
            assert answer.json()["choices"]


async def test_no_sdk_chokes_on_heartbeats(tmp_path: Path, sqlite_template: Path, redis_url: str) -> None:
    """Each official client reads through a proxy that counts comments; the upstream waits until three have passed, so
    that they are there for certain. AWS's framing is binary and gets none."""
    async with holding(tmp_path, sqlite_template, redis_url, heartbeat_s=0.04) as (gateway, upstream):
        async with FaultProxy(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as proxy:
            beats = 0

            def count(data: bytes) -> None:
                nonlocal beats
                beats += data.count(COMMENT) + (data == b"2\r\n" + BLANK + b"\r\n")
                if beats >= 3:
                    upstream.go_on.set()

            proxy.watch = count
            said = {}
            for name, talk in (("openai", by_openai), ("responses", by_responses), ("anthropic", by_anthropic),
                               ("google", by_google)):  # fmt: skip
                beats = 0
                upstream.go_on.clear()
                said[name] = await talk(proxy.url, gateway.key)
                assert beats >= 3, name
        assert said == dict.fromkeys(said, "hello"), said


async def by_openai(url: str, key: str) -> str:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as sdk:
        stream = await sdk.chat.completions.create(
            model="echo", stream=True, messages=[{"role": "user", "content": 'say "hello"'}]
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def by_responses(url: str, key: str) -> str:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as sdk:
        stream = await sdk.responses.create(model="echo", stream=True, input='say "hello"')
        return "".join([e.delta async for e in stream if e.type == "response.output_text.delta"])


async def by_anthropic(url: str, key: str) -> str:
    async with anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as sdk:
        asked: Any = {"role": "user", "content": 'say "hello"'}
        async with sdk.messages.stream(model="echo", max_tokens=20, messages=[asked]) as stream:
            return "".join([text async for text in stream.text_stream])


async def by_google(url: str, key: str) -> str:
    sdk = genai.Client(api_key=key, http_options=types.HttpOptions(base_url=url))
    stream = await sdk.aio.models.generate_content_stream(model="echo", contents='say "hello"')
    return "".join([chunk.text or "" async for chunk in stream])


async def test_open_streams_cost_no_waiting_task_when_their_clients_leave(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    """Nothing is left running by streams that ended in any way."""
    async with fortress(tmp_path / "h", sqlite_template, redis_url) as gateway:
        await ask(gateway.url, request(CHAT, chat(), key=gateway.key))
        before = len(asyncio.all_tasks())
        body = chat("x-script: long=500 pace_ms=5", stream=True)
        for _ in range(20):
            async with line(gateway.url) as opened:
                await opened.send(request(CHAT, body, key=gateway.key))
                assert await opened.head() is not None
        await gateway.rows(21)
        await until(lambda: len(asyncio.all_tasks()) <= before + 2)
