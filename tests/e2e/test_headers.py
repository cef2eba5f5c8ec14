"""What passes between client and provider beside the body: only what was meant to; and answers that are traps."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from tests.e2e.harness import House, house, model, provider, settings_for
from tests.e2e.test_door import CHAT
from tests.e2e.wire import ask, chat, request

ANSWER = {
    "id": "chatcmpl-1\r\nset-cookie: split=1",
    "object": "chat.completion",
    "created": 1,
    "model": "m\r\nx-split: 1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}
SENT = (
    "connection: keep-alive, x-hop\r\nx-hop: 1\r\nproxy-authorization: Basic c2VjcmV0\r\ncookie: a=secret\r\n"
    "x-forwarded-for: 10.0.0.1\r\nforwarded: for=10.0.0.1\r\nte: trailers\r\nproxy-connection: keep-alive\r\n"
    "x-api-key: other-secret\r\nx-real-ip: 10.0.0.1\r\norigin: https://page.test\r\nreferer: https://page.test/x\r\n"
)
ALLOWED_UP = {"host", "content-length", "content-type", "authorization", "accept", "accept-encoding", "user-agent"}
BACK = (
    b"set-cookie: upstream=1\r\nserver: upstream/1.0\r\nx-hop: 1\r\nproxy-authenticate: Basic\r\n"
    b"via: 1.1 inside.test\r\nx-internal: 10.0.0.7\r\n"
    b"www-authenticate: Bearer\r\naccess-control-allow-origin: *\r\nopenai-organization: org-secret\r\n"
    b"location: http://inside.test/\r\nrefresh: 0; url=http://evil.test/\r\n"
)


_BLANKS = b" " * 65_536


class Upstream:
    """Says the same to everybody, and keeps what it was told."""

    def __init__(self, answer: bytes, blanks: int = 0) -> None:
        """blanks: so many behind the answer."""
        self.heads: list[bytes] = []
        self._answer = answer
        self._blanks = blanks

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                for at in range(0, len(self._answer), 65_536):
                    writer.write(self._answer[at : at + 65_536])
                    await writer.drain()
                for _ in range(0, self._blanks, 65_536):
                    writer.write(_BLANKS)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the gateway has had enough
        finally:
            writer.close()


@asynccontextmanager
async def before(upstream: Upstream, folder: Path, template: Path, redis_url: str) -> AsyncIterator[House]:
    folder.mkdir(exist_ok=True)
    (folder / "farebox.db").write_bytes(template.read_bytes())
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    database = f"sqlite+aiosqlite:///{folder / 'farebox.db'}"
    up = {"up": provider("openai_like", url)}
    async with house(settings_for(folder / "data", database, redis_url, up, (model("echo", "up/m"),))) as built:
        yield built
    server.close()


def said(body: bytes, more: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + more
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


async def test_only_what_was_meant_to_passes_between_client_and_provider(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    upstream = Upstream(said(json.dumps(ANSWER).encode(), BACK))
    async with before(upstream, tmp_path, sqlite_template, redis_url) as gateway:
        answer = await ask(gateway.url, request(CHAT, chat(), key=gateway.key, more=SENT))
        assert answer is not None
        assert answer.status == 200, answer.body
        lines = upstream.heads[0].decode().lower().split("\r\n")[1:-2]
        names = {line.partition(":")[0] for line in lines}
        assert names <= ALLOWED_UP, names - ALLOWED_UP
        assert "authorization: bearer sk-test" in lines  # the provider's own key, never the client's
        told = {line.split(b":")[0].decode() for line in BACK.split(b"\r\n") if line}
        assert not told & answer.headers.keys(), told & answer.headers.keys()
        assert not {"x-split", "split"} & answer.headers.keys()
        assert not any("secret" in value for value in answer.headers.values())


async def test_an_answer_cannot_split_the_head_of_ours(tmp_path: Path, sqlite_template: Path, redis_url: str) -> None:
    """Words of the provider that stand in a header of ours: an error's, where a code goes along."""
    error = {"error": {"message": "no\r\nset-cookie: split=1", "type": "x\r\nx-split: 1", "code": "c\r\nx-split: 1"}}
    body = json.dumps(error).encode()
    refusal = said(body).replace(b"200 OK", b"400 Bad\x0bRequest").replace(
        b"\r\n\r\n", b"\r\nretry-after: 1\r\nx-request-id: a\r\n\r\n", 1)  # fmt: skip
    async with before(Upstream(refusal), tmp_path, sqlite_template, redis_url) as gateway:
        answer = await ask(gateway.url, request(CHAT, chat(), key=gateway.key))
        assert answer is not None
        assert 400 <= answer.status < 600
        assert not {"x-split", "set-cookie"} & answer.headers.keys()
        models = await ask(gateway.url, request("/v1/models/a%0d%0ax-split:%201", None, key=gateway.key, method="GET"))
        assert models is not None
        assert "x-split" not in models.headers


async def test_a_bomb_from_upstream_is_given_up_while_it_is_small(
    tmp_path: Path, sqlite_template: Path, redis_url: str
) -> None:
    """100 kB that unfold to 100 MB, and a body of 400 MB without an end. Bounds by the most that was held at a time,
    far from both what is allowed (8 MiB unfolded; a whole answer of 64 MiB, perhaps twice) and what is sent."""
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(b" " * 2**20) for _ in range(100)) + packer.flush()
    endless = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
    traps = (
        (Upstream(said(bomb, b"content-encoding: gzip\r\n")), 80_000_000),
        (Upstream(endless, 400_000_000), 220_000_000),
    )
    for number, (trap, most) in enumerate(traps):
        async with before(trap, tmp_path / str(number), sqlite_template, redis_url) as gateway:
            for stream in (False, True):
                held = PeakMemory()
                answer = await ask(gateway.url, request(CHAT, chat(stream=stream), key=gateway.key))
                assert answer is not None
                assert answer.status == 502, answer.body[:300]
                assert held.more() < most, held.more()


class PeakMemory:
    """How much more this process has held at a time, since it was made. Source: proc(5), clear_refs, read 2026-11."""

    def __init__(self) -> None:
        self._before = psutil.Process().memory_info().rss
        Path("/proc/self/clear_refs").write_text("5")

    def more(self) -> int:
        status = Path("/proc/self/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 - self._before
