"""One connection carries what goes straight to the hot path and what goes to Litestar, in the order it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from gateway.ingress.connection import ClientConnection
from tests.e2e.harness import House


@asynccontextmanager
async def connection(gateway: House) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(gateway.url).port)
    try:
        yield reader, writer
    finally:
        writer.close()


def chat(gateway: House, say: str, *, version: str = "1.1", stream: bool = False, more: str = "") -> bytes:
    body = json.dumps({"model": "echo", "stream": stream, "messages": [{"role": "user", "content": say}]}).encode()
    head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: gateway\r\nAuthorization: Bearer {gateway.key}\r\n"
    return f"{head}{more}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def get(path: str, key: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n\r\n".encode()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    if fields.get("transfer-encoding") == "chunked":
        pieces = []
        while size := int(await reader.readline(), 16):
            pieces.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readexactly(2)
        body = b"".join(pieces)
    else:
        body = await reader.readexactly(int(fields["content-length"]))
    return int(head[0].split()[1]), fields, body


def said(body: bytes) -> str:
    text: str = json.loads(body)["choices"][0]["message"]["content"]
    return text


async def test_pipelined_requests_of_both_kinds_are_answered_in_order(gateway: House) -> None:
    asked = [
        chat(gateway, "say one"),
        get("/health/liveness"),
        chat(gateway, "say two", stream=True),
        get("/v1/models", gateway.key),
        get("/no/such/page"),
        chat(gateway, "say three"),
    ]
    async with connection(gateway) as (reader, writer):
        writer.write(b"".join(asked))
        answers = [await answer(reader) for _ in asked]
    assert [status for status, _, _ in answers] == [200, 200, 200, 200, 404, 200]
    assert "one" in said(answers[0][2])
    assert json.loads(answers[1][2]) == {"status": "alive"}
    assert answers[2][2].endswith(b"data: [DONE]\n\n")
    assert "echo" in {each["id"] for each in json.loads(answers[3][2])["data"]}
    assert "three" in said(answers[5][2])
    assert [row["outcome"] for row in await gateway.rows()] == ["completed"] * 3


@pytest.mark.parametrize("cut", [1, 40, 200, -20])
async def test_a_request_in_two_reads_is_one_request(gateway: House, cut: int) -> None:
    request = chat(gateway, "say whole")
    async with connection(gateway) as (reader, writer):
        for _ in range(2):
            writer.write(request[:cut])
            await writer.drain()
            # Another connection's answer in between: the first half has been read by then.
            async with connection(gateway) as (other, asking):
                asking.write(get("/health/liveness"))
                await answer(other)
            writer.write(request[cut:])
            status, _, body = await answer(reader)
            assert status == 200
            assert "whole" in said(body)


async def test_a_head_that_came_before_is_not_read_again(gateway: House, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    real = ClientConnection.again

    def again(self: ClientConnection, data: bytes) -> bool:
        taken.append(real(self, data))
        return taken[-1]

    monkeypatch.setattr(ClientConnection, "again", again)
    first, longer = chat(gateway, "say a"), chat(gateway, "say " + "b" * 2000)
    stream = chat(gateway, "say c", stream=True)
    stranger = first.replace(gateway.key.encode(), b"fbx-wrong")
    async with connection(gateway) as (reader, writer):

        async def ask(data: bytes) -> tuple[int, bytes]:
            taken.clear()
            writer.write(data)
            status, _, body = await answer(reader)
            return status, body

        for _ in range(2):  # The first of a connection may have begun in an earlier read.
            assert (await ask(first))[0] == 200
            assert not any(taken)
        status, body = await ask(longer)
        assert (status, said(body), taken) == (200, "b" * 2000, [True])
        status, body = await ask(stream)
        assert (status, body.endswith(b"data: [DONE]\n\n"), taken) == (200, True, [True])
        # Another head, and then this one no more.
        assert ((await ask(stranger))[0], taken) == (401, [False])
        assert ((await ask(stranger))[0], taken) == (401, [True])
        assert ((await ask(first))[0], taken) == (200, [False])
        # The same head over what is more or less than its body.
        status, body = await ask(first + longer)
        assert (status, said(body), taken) == (200, "a", [False])
        assert said((await answer(reader))[2]) == "b" * 2000
        writer.write(longer[:-5])
        await writer.drain()
        async with connection(gateway) as (other, asking):
            asking.write(get("/health/liveness"))
            await answer(other)
        assert said((await ask(longer[-5:]))[1]) == "b" * 2000
        wrong = first.replace(b"Content-Length: ", b"Content-Length: +")
        assert ((await ask(wrong))[0], taken) == (400, [False])
    assert len(await gateway.rows()) == 8


async def test_what_a_connection_keeps_fits_into_a_dictionary_that_instances_share(
    gateway: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[set[str]] = []
    real = ClientConnection.on_response_complete

    def on_response_complete(self: ClientConnection) -> None:
        kept.append(set(vars(self)))
        real(self)

    monkeypatch.setattr(ClientConnection, "on_response_complete", on_response_complete)
    async with connection(gateway) as (reader, writer):
        for request in (chat(gateway, "say a", stream=True), chat(gateway, "say b"), chat(gateway, "say b")):
            writer.write(request)
            await answer(reader)
    assert [len(names) for names in kept if len(names) > 30] == []  # `Guard.STATE` says why 30.
    assert len(kept) == 3


async def test_a_client_that_waits_for_100_continue_is_told_to_go_on(gateway: House) -> None:
    request = chat(gateway, "say go", more="Expect: 100-continue\r\n")
    head, body = request.split(b"\r\n\r\n", 1)
    async with connection(gateway) as (reader, writer):
        writer.write(head + b"\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(body)
        status, _, answered = await answer(reader)
    assert status == 200
    assert "go" in said(answered)


async def test_http_1_0_gets_a_stream_that_ends_with_its_connection(gateway: House) -> None:
    async with connection(gateway) as (reader, writer):
        writer.write(chat(gateway, "say old", version="1.0", stream=True))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


async def test_a_refused_body_leaves_the_connection_to_the_next_request(gateway: House) -> None:
    refused = chat(gateway, "say no", more="Content-Encoding: br\r\n")
    async with connection(gateway) as (reader, writer):
        writer.write(refused + chat(gateway, "say yes"))
        status, _, body = await answer(reader)
        assert (status, json.loads(body)["error"]["code"]) == (400, "unsupported_content_encoding")
        status, _, body = await answer(reader)
    assert status == 200
    assert "yes" in said(body)
