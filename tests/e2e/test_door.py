"""What a hostile or broken client can say on a socket: each thing is refused clearly, and the next client is served.

Black box, over real sockets: it holds for whatever HTTP server stands under the gateway."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from msgspec.structs import replace

from tests.e2e.harness import House, house, model, provider, settings_for
from tests.e2e.wire import Answer, ask, chat, line, request
from tests.emulators.openai import OpenAIEmulator

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEAD_BYTES = 8 * 1024
BODY_BYTES = 256 * 1024
LIMITS: dict[str, Any] = {
    "max_head_bytes": HEAD_BYTES,
    "max_body_bytes": BODY_BYTES,
    "max_messages": 50,
    "max_tools": 20,
    "max_parts": 500,
}
CHAT = "/v1/chat/completions"
PATHS = {
    "openai_chat": CHAT,
    "openai_responses": "/v1/responses",
    "anthropic_messages": "/v1/messages",
    "gemini": "/v1beta/models/echo:generateContent",
    "bedrock_converse": "/model/echo/converse",
}


@asynccontextmanager
async def fortress(folder: Path, template: Path, redis_url: str, **server: Any) -> AsyncIterator[House]:
    folder.mkdir(exist_ok=True)
    database = shutil.copy(template, folder / "farebox.db")
    async with OpenAIEmulator() as upstream:
        settings = settings_for(
            folder / "data",
            f"sqlite+aiosqlite:///{database}",
            redis_url,
            {"up": provider("openai", f"{upstream.url}/v1")},
            (model("echo", "up/echo-1"),),
        )
        settings = replace(settings, server=replace(settings.server, **server))
        async with house(settings) as built:
            built.made.append(upstream.url)
            yield built


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str
) -> AsyncIterator[House]:
    async with fortress(tmp_path_factory.mktemp("door"), sqlite_template, _valkey, **LIMITS) as built:
        yield built


def told(answer: Answer | None, dialect: str = "openai_chat") -> tuple[int, str]:
    """Status and message, read from where this dialect's clients look."""
    assert answer is not None, "closed without a word"
    said = answer.json()
    match dialect:
        case "bedrock_converse":
            return answer.status, said["message"]
        case _:
            return answer.status, said["error"]["message"]


async def serves(gateway: House) -> None:
    answer = await ask(gateway.url, request(CHAT, chat(), key=gateway.key))
    assert answer is not None
    assert answer.status == 200, answer.body


# Sizes


@pytest.mark.parametrize("dialect", list(PATHS))
async def test_too_large_headers_are_a_431_in_the_callers_dialect(gateway: House, dialect: str) -> None:
    answer = await ask(gateway.url, request(PATHS[dialect], b"{}", more=f"x-pad: {'a' * HEAD_BYTES}\r\n"))
    status, message = told(answer, dialect)
    assert status == 431
    assert str(HEAD_BYTES) in message
    await serves(gateway)


async def test_the_head_limit_is_exact_however_the_network_slices_it(gateway: House) -> None:
    def of_size(size: int) -> bytes:
        plain = request(CHAT, None, key=gateway.key, more="content-length: 2\r\nx-pad: \r\n")
        return request(CHAT, None, key=gateway.key, more=f"content-length: 2\r\nx-pad: {'a' * (size - len(plain))}\r\n")

    for size, expected in ((HEAD_BYTES, 400), (HEAD_BYTES + 1, 431)):
        head = of_size(size)
        assert len(head) == size
        for cut in (size, size - 1, size - 2, size - 3, 100):
            async with line(gateway.url) as opened:
                await opened.send(head[:cut])
                await asyncio.sleep(0)
                await opened.send(head[cut:] + b"{}" + b" " * 0)
                answer = await opened.answer()
            assert answer is not None
            assert answer.status == expected, (size, cut)


async def test_a_head_without_end_is_cut_at_its_limit(gateway: House) -> None:
    async with line(gateway.url) as opened:
        await opened.send(f"POST {CHAT} HTTP/1.1\r\nhost: a\r\n".encode())
        for n in range(HEAD_BYTES // 50):
            await opened.send(f"x-{n}: {'b' * 60}\r\n".encode())
        status, _ = told(await opened.answer())
        assert status == 431
        assert await opened.closed()


@pytest.mark.parametrize("dialect", list(PATHS))
async def test_a_too_large_body_is_a_413_in_the_callers_dialect(gateway: House, dialect: str) -> None:
    announced = await ask(gateway.url, request(PATHS[dialect], b" " * (BODY_BYTES + 1), key=gateway.key))
    assert told(announced, dialect)[0] == 413
    assert str(BODY_BYTES) in told(announced, dialect)[1]
    async with line(gateway.url) as opened:
        more = "transfer-encoding: chunked\r\n"
        await opened.send(request(PATHS[dialect], None, key=gateway.key, more=more))
        for _ in range(BODY_BYTES // 65536 + 1):
            await opened.send(b"10000\r\n" + b" " * 65536 + b"\r\n")
        assert told(await opened.answer(), dialect)[0] == 413
    await serves(gateway)


async def test_a_body_that_is_refused_is_not_read_for_ever(gateway: House) -> None:
    async with line(gateway.url) as opened:
        await opened.send(request(CHAT, None, key=gateway.key, more="transfer-encoding: chunked\r\n"))
        sent, chunk = 0, b"10000\r\n" + b" " * 65536 + b"\r\n"
        while not opened.writer.is_closing() and sent < 100 * BODY_BYTES:
            try:
                opened.writer.write(chunk)
                await opened.writer.drain()
            except ConnectionError:
                break
            sent += len(chunk)
        assert sent < 100 * BODY_BYTES


async def test_chunk_extensions_and_trailers_count_as_headers(gateway: House) -> None:
    head = request(CHAT, None, key=gateway.key, more="transfer-encoding: chunked\r\n")
    for flood in (b"1;" + b"x" * 500 + b"\r\n", b"x-trailer: " + b"y" * 500 + b"\r\n"):
        async with line(gateway.url) as opened:
            await opened.send(head + (b"2\r\n{}\r\n0\r\n" if flood.startswith(b"x") else b""))
            for _ in range(4 * HEAD_BYTES // len(flood)):
                await opened.send(flood)
                if flood.startswith(b"1"):
                    break
            else:
                answer = await opened.answer()
                assert answer is not None
                assert answer.status in (400, 431)
                continue
            await opened.send(b"x" * 4 * HEAD_BYTES)
            answer = await opened.answer()
            assert answer is None or answer.status in (400, 431)
    await serves(gateway)


@pytest.mark.parametrize("deep", ["[", '{"a":'], ids=["array", "object"])
@pytest.mark.parametrize("place", ["messages", "metadata", "tools", "unknown"])
async def test_json_of_great_depth_is_a_clear_400(gateway: House, deep: str, place: str) -> None:
    depth = 20_000
    inner = deep * depth + ("1" if deep != "[" else "") + {"[": "]"}.get(deep, "}") * depth
    body = json.dumps(chat())[:-1] + f',"{place}":{inner}}}'
    status, message = told(await ask(gateway.url, request(CHAT, body.encode(), key=gateway.key)))
    assert status == 400
    assert message
    await serves(gateway)


async def test_too_many_messages_tools_or_parts_are_refused_by_number(gateway: House) -> None:
    message = {"role": "user", "content": "a"}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}] * 501}]
    for body, wanted in (
        (chat() | {"messages": [message] * 51}, "51 messages"),
        (chat() | {"tools": [tool] * 21}, "21 tools"),
        (chat() | {"messages": parts}, "500 content parts"),
    ):
        status, said = told(await ask(gateway.url, request(CHAT, body, key=gateway.key)))
        assert (status, wanted in said) == (400, True), said
    answer = await ask(gateway.url, request(CHAT, chat() | {"messages": [message] * 50}, key=gateway.key))
    assert answer is not None
    assert answer.status == 200, answer.body


async def test_a_compressed_body_is_refused_unread(gateway: House) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    answer = await ask(gateway.url, request(CHAT, bomb, key=gateway.key, more="content-encoding: gzip\r\n"))
    status, message = told(answer)
    assert status == 400
    assert "content-encoding" in message


# Smuggling


@pytest.mark.parametrize(
    "lines",
    [
        "content-length: 2\r\ncontent-length: 3\r\n",
        "content-length: 2\r\ncontent-length: 2\r\n",
        "content-length: 2\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 2\r\n",
        "transfer-encoding: gzip, chunked\r\ntransfer-encoding: identity\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked, gzip\r\n",
        "transfer-encoding : chunked\r\n",
        "content-length: -1\r\n",
        "content-length: +2\r\n",
        "content-length: 0x2\r\n",
        "content-length: 2, 2\r\n",
        "content-length: 99999999999999999999999\r\n",
        "content-length: 2\r\n x: folded\r\n",
        "content-length: 2\r\nhost: other.test\r\n",
        "content-length: 2\r\nauthorization: Bearer other\r\n",
        "content-length: 2\r\nx\x00y: 1\r\n",
        "content-length: 2\r\nx: a\x00b\r\n",
        "content-length: 2\rx: bare cr\r\n",
    ],
)
async def test_a_request_that_two_readers_could_measure_differently_is_refused_and_cut(
    gateway: House, lines: str
) -> None:
    smuggled = request("/v1/models", None, key=gateway.key, method="GET")
    async with line(gateway.url) as opened:
        await opened.send(request(CHAT, None, key=gateway.key, more=lines) + b"{}" + smuggled)
        answer = await opened.answer()
        assert answer is not None
        assert answer.status in (400, 413), answer
        assert answer.json()["error"]["message"]
        # What follows must never be taken for a request.
        assert await opened.closed()
    await serves(gateway)


@pytest.mark.parametrize("dialect", list(PATHS))
async def test_what_is_malformed_is_told_in_the_callers_dialect(gateway: House, dialect: str) -> None:
    more = "content-length: 2\r\ncontent-length: 3\r\n"
    answer = await ask(gateway.url, request(PATHS[dialect], None, more=more) + b"{}")
    assert told(answer, dialect)[0] == 400
    assert answer is not None
    assert (answer.json().get("type") == "error") is (dialect == "anthropic_messages")


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}",  # no host
        b"POST /v1/chat/completions HTTP/1.1\ncontent-length: 2\n\n{}",
        b"POST /v1/chat/completions HTTP/1.7\r\nhost: a\r\n\r\n",
        b"POST /v1/chat/completions HTTP/2.0\r\nhost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/chat/completions\r\n\r\n",
        b"BREW /v1/chat/completions HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST /v1/chat\x00/completions HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nhost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client\r\n\r\n",
        b"\x00" * 64,
    ],
)
async def test_what_is_no_http_is_refused_and_cut(gateway: House, head: bytes) -> None:
    async with line(gateway.url) as opened:
        await opened.send(head)
        answer = await opened.answer()
        assert answer is not None
        assert 400 <= answer.status < 500
        assert await opened.closed()
    await serves(gateway)


@pytest.mark.parametrize(
    "head",
    [b"CONNECT evil.test:443 HTTP/1.1\r\nhost: a\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
     b"TRACE / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer secret-to-echo\r\n\r\n"],
)  # fmt: skip
async def test_methods_that_are_for_proxies_get_a_no(gateway: House, head: bytes) -> None:
    answer = await ask(gateway.url, head)
    assert answer is not None
    assert 400 <= answer.status < 500
    assert b"secret-to-echo" not in answer.body


# Paths and hosts


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat%2Fcompletions",
        "/v1/chat%2fcompletions",
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/./chat/completions",
        "/v1/x/../chat/completions",
        "/v1/%63hat/completions",
        "/v1/chat/completions/",
        "/v1/chat/completions;a=b",
        "/v1/chat\\completions",
        "/V1/CHAT/COMPLETIONS",
        "/admin/v1/../../v1/chat/completions",
        "/%61dmin/v1/keys",
        "/admin%2Fv1/keys",
        "/admin/v1/%2e%2e/keys",
        "/admin/v1//keys",
        "//admin/v1/keys",
        "/ui/../admin/v1/keys",
        "/ui/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/ui/..%2f..%2f..%2fetc%2fpasswd",
    ],
)
async def test_no_spelling_of_a_path_gets_around_a_check(gateway: House, path: str) -> None:
    """What is authorised is what is served: without a key and without a session no spelling is answered with 2xx, other
    than the dashboard's public page."""
    for method, body in (("POST", chat()), ("GET", None)):
        answer = await ask(gateway.url, request(path, body, method=method))
        assert answer is not None
        if answer.status == 200:
            assert path.startswith("/ui")
            assert b"root:" not in answer.body
        else:
            assert 400 <= answer.status < 500, (method, answer)


async def test_a_model_in_the_path_is_decoded_once(gateway: House) -> None:
    narrow = await gateway.new_key(models=("echo",))
    body = {"messages": [{"role": "user", "content": [{"text": "hello"}]}]}
    for name, status in (("echo", 200), ("%65cho", 200), ("%2565cho", 404), ("echo%00", 404), ("echo%2F..%2Fx", 404)):
        answer = await ask(gateway.url, request(f"/model/{name}/converse", body, key=narrow))
        assert answer is not None
        assert answer.status == status, (name, answer.body)


async def test_an_absolute_form_target_is_its_path_and_nothing_else(gateway: House) -> None:
    data = request(f"http://evil.test{CHAT}", chat(), key=gateway.key)
    answer = await ask(gateway.url, data)
    assert answer is not None
    assert answer.status == 200
    without = await ask(gateway.url, request("http://127.0.0.1/admin/v1/keys", None, method="GET"))
    assert without is not None
    assert without.status == 401


@pytest.mark.parametrize(
    "host", ["evil.test", "evil.test/admin", "evil.test?x=", "a b", "evil.test#", "[::1", "e'\"<x>"]
)
async def test_a_hostile_host_is_never_believed_or_reflected(gateway: House, host: str) -> None:
    """LiteLLM's CVE-2026-49468: a path rebuilt from Host decided who may pass."""
    for path, method in (
        (CHAT, "POST"),
        ("/admin/v1/keys", "GET"),
        ("/ui", "GET"),
        ("/docs", "GET"),
        ("/nowhere", "GET"),
    ):
        answer = await ask(gateway.url, request(path, chat() if method == "POST" else None, method=method, host=host))
        assert answer is not None
        assert answer.status in (200, 301, 302, 303, 307, 308, 400, 401, 403, 404), (path, answer)
        assert "evil.test" not in str(answer.headers)
        assert b"evil.test" not in answer.body
        if path.startswith("/admin"):
            assert answer.status in (400, 401)


async def test_a_java_client_that_offers_http2_is_answered_in_http1(gateway: House) -> None:
    """java.net.http sends this with each first request. Source: RFC 9110 section 7.8: an upgrade may be ignored."""
    more = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    answer = await ask(gateway.url, request(CHAT, chat(), key=gateway.key, more=more))
    assert answer is not None
    assert answer.status == 200, answer.body


# Connections


async def test_a_connection_serves_on_after_an_error_with_a_whole_body(gateway: House) -> None:
    async with line(gateway.url) as opened:
        for data, status in (
            (request(CHAT, b"not json", key=gateway.key), 400),
            (request(CHAT, chat(), key="fbx-wrong"), 401),
            (request("/nowhere", None, method="GET"), 404),
            (request(CHAT, chat(model="no-such"), key=gateway.key), 404),
            (request(CHAT, chat(), key=gateway.key), 200),
        ):
            await opened.send(data)
            answer = await opened.answer()
            assert answer is not None
            assert answer.status == status, answer.body


async def test_pipelined_requests_are_answered_in_their_order(gateway: House) -> None:
    async with line(gateway.url) as opened:
        words = [f"w{n}" for n in range(8)]
        await opened.send(b"".join(request(CHAT, chat(f'say "{word}"'), key=gateway.key) for word in words))
        for word in words:
            answer = await opened.answer()
            assert answer is not None
            assert answer.json()["choices"][0]["message"]["content"] == word


async def test_expect_100_continue_is_answered_before_the_body(gateway: House) -> None:
    whole = request(CHAT, chat(), key=gateway.key, more="expect: 100-continue\r\n")
    head, _, body = whole.partition(b"\r\n\r\n")
    async with line(gateway.url) as opened:
        await opened.send(head + b"\r\n\r\n")
        interim = await opened.head()
        assert interim is not None
        assert interim.status == 100
        await opened.send(body)
        answer = await opened.answer()
        assert answer is not None
        assert answer.status == 200


async def test_wrong_keys_by_the_hundred_are_slowed_by_address(gateway: House) -> None:
    async def guess(n: int) -> int:
        # The form of a real key, or the gateway knows without asking anybody that it is none.
        public, _, secret = gateway.key.rpartition("_")
        answer = await ask(gateway.url, request("/v1/models", None, key=f"{public}_{n:04d}{secret[4:]}", method="GET"))
        assert answer is not None
        return answer.status

    statuses = await asyncio.gather(*(guess(n) for n in range(100)))
    assert set(statuses) <= {401, 429}
    await serves(gateway)  # a good key from the same address


# Slow clients and floods


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str) -> AsyncIterator[House]:
    limits = {"head_timeout_s": 0.5, "body_timeout_s": 0.5, "max_connections": 60, "max_pending_bytes": 2_000_000}
    async with fortress(tmp_path_factory.mktemp("strict"), sqlite_template, _valkey, **limits) as built:
        yield built


async def test_a_head_that_drips_is_cut(strict: House) -> None:
    async with line(strict.url) as opened:
        for byte in request(CHAT, None, more="x-long: " + "a" * 4000 + "\r\n"):
            if opened.reader.at_eof() or opened.writer.is_closing():
                break
            await opened.send(bytes((byte,)))
            try:
                async with asyncio.timeout(0.02):
                    assert await opened.reader.read(12) in (b"HTTP/1.1 408", b"")
                    break
            except (TimeoutError, ConnectionError):
                continue
        else:
            raise AssertionError("a drip of 80 s was endured")
    await serves(strict)


async def test_a_body_that_drips_is_told_408_in_its_dialect(strict: House) -> None:
    async with line(strict.url) as opened:
        await opened.send(request("/v1/messages", None, key=strict.key, more="content-length: 1000000\r\n") + b"{")
        answer = await opened.answer()
        assert answer is not None
        assert answer.status == 408
        assert answer.json()["type"] == "error"  # Anthropic's envelope
        assert await opened.closed()


async def test_silence_from_the_start_is_cut_without_a_word(strict: House) -> None:
    async with line(strict.url) as opened:
        assert await opened.closed()


async def test_a_slow_answer_is_no_slow_request(strict: House) -> None:
    """The patience is for what the client sends, not for what the model takes."""
    body = chat("x-script: long=20 pace_ms=60", stream=True)
    answer = await ask(strict.url, request(CHAT, body, key=strict.key))
    assert answer is not None
    assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_connections_beyond_the_limit_are_told_503_and_those_within_are_served(strict: House) -> None:
    async with line(strict.url) as first:
        await first.send(request(CHAT, chat(), key=strict.key))
        assert (await first.answer()).status == 200  # type: ignore[union-attr]
        others = [await asyncio.open_connection(*_place(strict.url)) for _ in range(80)]
        try:
            refused = 0
            for reader, _ in others:
                if (said := await reader.read(200)).startswith(b"HTTP/1.1 503"):
                    assert b"retry-after" in said
                    refused += 1
            assert refused >= 5  # some of those before them have been cut for their silence by now
            await first.send(request(CHAT, chat(), key=strict.key))
            assert (await first.answer()).status == 200  # type: ignore[union-attr]
        finally:
            for _, writer in others:
                writer.transport.abort()
    async with asyncio.timeout(60):
        while (answer := await ask(strict.url, request(CHAT, chat(), key=strict.key))) is None or answer.status != 200:
            await asyncio.sleep(0.01)


async def test_half_sent_bodies_hold_bounded_memory_before_any_key_is_known(strict: House) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    piece = b" " * 100_000
    lines = [await asyncio.open_connection(*_place(strict.url)) for _ in range(40)]
    try:
        for _, writer in lines:
            writer.write(request(CHAT, None, more="content-length: 10000000\r\n") + piece)
        reads = [asyncio.create_task(reader.read(12)) for reader, _ in lines]
        statuses: list[bytes] = []
        async with asyncio.timeout(60):
            while len(statuses) < 15:
                done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
                statuses += [read.result()[-3:] for read in done]
                reads = [read for read in reads if read not in done]
    finally:
        for read in reads:
            read.cancel()
        for _, writer in lines:
            writer.transport.abort()
    assert set(statuses) == {b"503"}, statuses
    assert process.memory_info().rss - before < 30_000_000


def _place(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)
