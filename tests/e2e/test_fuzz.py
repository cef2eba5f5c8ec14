"""Bytes that only look like HTTP, and crowds: never a hang, never a 5xx of ours, and the next request is served.

`FAREBOX_TEST_SLOW=1` makes the crowds as large as their names say in docs: 1,000 connections, 2,000 open streams."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config import load
from tests.e2e.harness import House
from tests.e2e.test_crash import prepare, written
from tests.e2e.test_door import CHAT, fortress
from tests.e2e.test_upgrade import serving
from tests.e2e.wire import PATIENCE_S, ask, chat, line, request
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.server import Out, Request
from tests.services import free_ports

pytestmark = pytest.mark.asyncio(loop_scope="module")
SLOW = os.environ.get("FAREBOX_TEST_SLOW") == "1"
EXAMPLES = 2000 if SLOW else 120


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: Any, sqlite_template: Path, _valkey: str) -> AsyncIterator[House]:
    limits = {"head_timeout_s": 2.0, "body_timeout_s": 2.0, "max_head_bytes": 8192}
    async with fortress(tmp_path_factory.mktemp("fuzz"), sqlite_template, _valkey, **limits) as built:
        yield built


GOOD = [
    request(CHAT, chat(), key="fbx-nobody"),
    request(CHAT, None, key="fbx-nobody", more="transfer-encoding: chunked\r\n") + b"2\r\n{}\r\n0\r\n\r\n",
    request("/model/echo/converse", {"messages": []}, more="authorization: AWS4-HMAC-SHA256 Credential=a/b/c/d/e\r\n"),
    request("/v1beta/models/echo:generateContent?key=x", {"contents": []}),
    request("/admin/v1/keys", None, method="GET", more="cookie: farebox=x\r\n"),
    request("http://other.test/v1/messages", {"model": "echo"}, more="expect: 100-continue\r\n"),
]
PIECES = [
    b"\r\n", b"\n", b"\r", b"\0", b"\xff", b":", b" ", b"\r\n\r\n", b"HTTP/1.1", b"%00", b"%", b"chunked", b"\r\n ",
    b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
    b"ffffffffff\r\n",
    b"host: x\r\n", b"connection: upgrade\r\nupgrade: h2c\r\n", b"-1", b"99999999999999999999", b"\x16\x03\x01",
    b"?" * 50,
    b"x: " + b"y" * 9000 + b"\r\n",
]  # fmt: skip
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "replace", "repeat"]),
        st.floats(0, 1),
        st.integers(0, 40),
        st.one_of(st.sampled_from(PIECES), st.binary(max_size=12)),
    ),
    min_size=1,
    max_size=6,
)


def edited(data: bytes, edits: list[tuple[str, float, int, bytes]]) -> bytes:
    for kind, place, length, piece in edits:
        at = int(place * len(data))
        match kind:
            case "insert":
                data = data[:at] + piece + data[at:]
            case "delete":
                data = data[:at] + data[at + length :]
            case "replace":
                data = data[:at] + piece + data[at + len(piece) :]
            case "repeat":
                data = data[:at] + data[at : at + length] * 2 + data[at + length :]
    return data


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=not SLOW)
@given(st.sampled_from(GOOD), EDITS, st.floats(0, 1))
async def test_no_bytes_hang_the_server_or_break_it(
    gateway: House, good: bytes, edits: list[tuple[str, float, int, bytes]], cut: float
) -> None:
    data = edited(good, edits)
    at = int(cut * len(data))
    async with line(gateway.url) as opened:
        await opened.send(data[:at])
        await opened.send(data[at:])
        try:
            opened.writer.write_eof()
        except OSError:
            return  # refused and gone already
        try:
            async with asyncio.timeout(PATIENCE_S):
                said = await opened.reader.read()
        except ConnectionError:
            return
    assert not said or said.startswith(b"HTTP/1.1 "), said[:100]
    assert b"HTTP/1.1 5" not in said, (data, said)


async def test_after_all_that_it_serves(gateway: House) -> None:
    answer = await ask(gateway.url, request(CHAT, chat(), key=gateway.key))
    assert answer is not None
    assert answer.status == 200


def _allow(files: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < files:
        pytest.skip(f"needs {files} open files, allowed are {most}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Crowded(OpenAIEmulator):
    """Whoever asks for a paced answer gets its end when all the others have got their beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def handle(self, request: Request, out: Out) -> None:
        pause, pauses = out.pause, 0

        async def held(seconds: float) -> None:
            nonlocal pauses
            pauses += 1
            await pause(seconds)
            while pauses > 2 and not self.go_on.is_set():  # The first words are its beginning.
                await pause(0.05)

        out.pause = held  # type: ignore[method-assign]
        await super().handle(request, out)


@pytest.mark.timeout(300)
async def test_a_crowd_of_connections_and_of_open_streams_is_served_by_one_worker(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    connections, streams = (1_000, 2_000) if SLOW else (200, 150)
    _allow(4 * streams + 500)
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "farebox.db").write_bytes(sqlite_template.read_bytes())
    async with Crowded() as upstream:
        config = written(tmp_path, upstream.url, f"sqlite+aiosqlite:///{tmp_path / 'farebox.db'}", redis_url, port)
        key = await prepare(load(config, {}))
        async with serving(config, url) as worker:
            process = psutil.Process(worker.pid)
            some = asyncio.Semaphore(200)

            async def brief() -> int:
                async with some:
                    answer = await ask(url, request(CHAT, chat(), key=key))
                return 0 if answer is None else answer.status

            assert set(await asyncio.gather(*(brief() for _ in range(connections)))) == {200}
            before = process.memory_info().rss
            began, all_open = 0, asyncio.Event()

            async def long() -> bytes:
                nonlocal began
                body = chat("x-script: long=30 pace_ms=1", stream=True)
                async with some:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(request(CHAT, body, key=key))
                    await reader.readuntil(b"data: ")
                began += 1
                if began == streams:
                    all_open.set()
                last = b""
                while data := await reader.read(65536):
                    last = (last + data)[-200:]
                    if data.endswith(b"0\r\n\r\n"):
                        break
                writer.close()
                return last

            talks = [asyncio.create_task(long()) for _ in range(streams)]
            await asyncio.wait([asyncio.create_task(all_open.wait()), *talks], return_when=asyncio.FIRST_COMPLETED)
            assert all_open.is_set(), [talk.exception() or talk.result() for talk in talks if talk.done()]
            held = process.memory_info().rss - before
            print(f"{streams} open streams: {held / streams / 1024:.1f} KB each", file=sys.stderr)
            upstream.go_on.set()
            ends = await asyncio.gather(*talks)
            assert all(b"[DONE]" in end for end in ends)
