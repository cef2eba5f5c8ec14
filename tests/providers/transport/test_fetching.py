"""Remote images: real servers and a resolver that lies as a rebinding name would; nothing private is ever dialled."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers import registry
from providers.base import Call, Credential, Endpoint
from providers.dialects import anthropic_messages, openai_chat
from providers.errors import BadRequest, Unsupported
from providers.transport.fetching import Fetcher, Kind, Limits, dial, is_public
from providers.transport.http1 import Http1Transport
from tests.emulators.bedrock import BedrockEmulator
from tests.emulators.server import Emulator, Out, Request

PDF = b"%PDF-1.7 of one page"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
PUBLIC = "93.184.215.14"


class Pictures(Emulator):
    """path: what is wrong with it."""

    async def handle(self, request: Request, out: Out) -> None:
        kind = {"content-type": "image/png"}
        match request.path.strip("/").split("/"):
            case ["ok.png"]:
                await out.whole(200, PNG, kind)
            case ["ok.pdf"]:
                await out.whole(200, PDF, {"content-type": "application/pdf"})
            case ["untyped.pdf"]:
                await out.whole(200, PDF, {"content-type": "binary/octet-stream"})
            case ["notes.md"]:
                await out.whole(200, "# Größe\n".encode(), {"content-type": "text/markdown; charset=utf-8"})
            case ["latin.txt"]:
                await out.whole(200, "Größe".encode("latin-1"), {"content-type": "text/plain"})
            case ["lies.pdf"]:
                await out.whole(200, b"<html>secret", {"content-type": "application/pdf"})
            case ["untyped"]:
                await out.whole(200, PNG, {"content-type": "application/octet-stream"})
            case ["chunked"]:
                await out.start(200, "image/png")
                await out.chunk(PNG[:20])
                await out.chunk(PNG[20:])
                await out.end()
            case ["to", *target]:
                await out.whole(302, b"", {"location": request.query.get("at", "/" + "/".join(target))})
            case ["loop"]:
                await out.whole(302, b"", {"location": "/loop"})
            case ["html"]:
                await out.whole(200, b"<html>secret", {"content-type": "text/html"})
            case ["lies"]:
                await out.whole(200, b"<html>secret", kind)
            case ["other"]:
                await out.whole(200, PNG, {"content-type": "image/gif"})
            case ["large"]:
                await out.whole(200, PNG + bytes(5000), kind)
            case ["endless"]:
                await out.start(200, "image/png")
                while True:
                    await out.chunk(bytes(1000))
            case ["gzip"]:
                await out.whole(200, PNG, kind | {"content-encoding": "gzip"})
            case ["cut"]:
                await out.raw(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 500\r\n\r\n" + PNG)
                out.close()
            case ["stall"]:
                await out.until_gone()
            case ["noise"]:
                await out.raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
                out.close()
            case _:
                await out.json(404, {})


class Net:
    """names: host -> the addresses of each look-up in turn, the last one for ever. Every public address leads to the
    server on loopback; `dialled` keeps where we went."""

    def __init__(self, server: Emulator, **names: list[list[str]]) -> None:
        self.port = int(server.url.rpartition(":")[2])
        self.names = {name.replace("_", "."): answers for name, answers in names.items()}
        self.asked: list[str] = []
        self.dialled: list[tuple[str, int]] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self.names.get(host)
        if answers is None:
            raise OSError("no such name")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def dial(self, address: str, port: int, context: ssl.SSLContext | None, name: str | None) -> Any:
        assert is_public(address), f"dialled {address}"
        self.dialled.append((address, port))
        return await dial("127.0.0.1", self.port, None, None)

    def fetcher(self, kinds: frozenset[Kind] = frozenset({"images"}), **limits: Any) -> Fetcher:
        return Fetcher(Limits(**{"http": True, "image_bytes": 4000, **limits}), self.resolve, self.dial, kinds)


@pytest.fixture
async def server() -> AsyncIterator[Pictures]:
    async with Pictures() as pictures:
        yield pictures


@pytest.mark.parametrize("path", ["ok.png", "untyped", "chunked", "to/ok.png", "to/to/to/ok.png"])
async def test_images_are_fetched(server: Pictures, path: str) -> None:
    net = Net(server, pics_example=[[PUBLIC]])
    found = await net.fetcher().fetch(f"http://pics.example/{path}?x=1#part")
    assert (found.media_type, found.data) == ("image/png", PNG)
    sent = server.requests[0]
    assert sent.headers["host"] == "pics.example"
    assert not sent.headers.keys() & {"authorization", "cookie", "referer", "x-api-key"}


async def test_the_address_that_was_judged_is_the_one_dialled(server: Pictures) -> None:
    """A name that is public at the look-up and private a moment later finds nobody who looks a second time."""
    net = Net(server, rebind_example=[[PUBLIC], ["127.0.0.1"]])
    assert (await net.fetcher().fetch("http://rebind.example/ok.png")).data == PNG
    assert (net.asked, net.dialled) == (["rebind.example"], [(PUBLIC, 80)])
    with pytest.raises(BadRequest, match="public internet"):  # the next request looks anew
        await net.fetcher().fetch("http://rebind.example/ok.png")


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://metadata.example/",
        "http://[::ffff:10.0.0.1]/",
        "file:///etc/passwd",
        "gopher://pics.example/",
        "http://pics.example:6379/",
        "http://user:pw@pics.example/ok.png",
        "//127.0.0.1/ok.png",
    ],
)
async def test_a_redirect_is_judged_like_the_first_address(server: Pictures, target: str) -> None:
    metadata = ["169.254.169.254"]
    net = Net(
        server, pics_example=[[PUBLIC]], metadata_example=[[PUBLIC, *metadata]], **{"169_254_169_254": [metadata]}
    )
    net.names |= {"::ffff:10.0.0.1": [["::ffff:10.0.0.1"]], "127.0.0.1": [["127.0.0.1"]]}
    with pytest.raises(BadRequest, match="is not fetched"):
        await net.fetcher().fetch(f"http://pics.example/to?at={target}")
    assert net.dialled == [(PUBLIC, 80)]
    assert len(server.requests) == 1


async def test_no_step_down_from_tls(server: Pictures) -> None:
    net = Net(server, pics_example=[[PUBLIC]])
    with pytest.raises(BadRequest, match="only https"):
        await net.fetcher(http=False).fetch("http://pics.example/ok.png")
    with pytest.raises(BadRequest, match="only https"):  # the "TLS" server of this test speaks none, so it can answer
        await net.fetcher(http=False).fetch("https://pics.example/to?at=http://pics.example/ok.png")
    assert net.dialled == [(PUBLIC, 443)]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("loop", "redirects"),
        ("html", "no PNG"),
        ("lies", "no PNG"),
        ("other", "no PNG"),
        ("large", "larger"),
        ("endless", "larger"),
        ("gzip", "compressed"),
        ("cut", "cannot be reached"),
        ("noise", "cannot be reached"),
        ("missing", "404"),
    ],
)
async def test_what_is_no_good_image(server: Pictures, path: str, says: str) -> None:
    net = Net(server, pics_example=[[PUBLIC]])
    with pytest.raises(BadRequest, match=says) as refused:
        await net.fetcher().fetch(f"http://pics.example/{path}")
    assert "secret" not in refused.value.message
    assert "127.0.0.1" not in refused.value.message


async def test_a_server_that_says_nothing_is_left(server: Pictures) -> None:
    net = Net(server, pics_example=[[PUBLIC]])
    with pytest.raises(BadRequest, match="not there within"):
        await net.fetcher(total_s=0.05).fetch("http://pics.example/stall")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "127.1",
        "0x7f.0.0.1",
        "2130706433",
        "0",
        "[::1]",
        "[::]",
        "10.0.0.1",
        "[fe80::1%25eth0]",
    ],
)
async def test_the_systems_own_resolver_finds_no_way_in(host: str) -> None:
    async def never(*_: object) -> Any:
        raise AssertionError("dialled")

    with pytest.raises(BadRequest, match="is not fetched"):
        await Fetcher(dial=never).fetch(f"https://{host}/x.png")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("64:ff9b::5db8:d70e", True),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("192.0.2.1", False),
        ("198.18.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::1", False),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", False),
        ("fc00::1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("fd00:ec2::254", False),
        ("2001:db8::1", False),
        ("no address", False),
    ],
)
def test_what_the_whole_internet_reaches(address: str, public: bool) -> None:
    assert is_public(address) is public


@given(st.ip_addresses(v=4))
def test_no_wrapping_makes_a_private_address_public(address: Any) -> None:
    if not is_public(str(address)):
        assert not is_public(f"::ffff:{address}")
        assert not is_public(f"64:ff9b::{address}")


def asking(*urls: str) -> Call:
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    body = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, *content]}]}
    raw = json.dumps(body).encode()
    return Call("chat", "openai_chat", openai_chat.DIALECT.decode_request(raw), raw, "req")


async def test_bedrock_gets_the_bytes_where_its_operator_allows_it(server: Pictures) -> None:
    transport = Http1Transport()
    keys = Credential({"access_key_id": "AKIDTEST", "secret_access_key": "secret-test-key"})
    async with BedrockEmulator() as bedrock:
        for allowed in (False, True):
            options = {"fetch_images": allowed}
            endpoint = Endpoint("bedrock", bedrock.url, "us-east-1", keys, options)
            provider: Any = registry.create(endpoint, transport)
            call = asking("http://pics.example/ok.png", "http://pics.example/ok.png")
            if not allowed:
                with pytest.raises(Unsupported, match="image by URL"):
                    await provider.send(call, "amazon.nova-pro-v1:0")
                continue
            provider.fetcher = Net(server, pics_example=[[PUBLIC]]).fetcher()
            answer = await provider.send(call, "amazon.nova-pro-v1:0")
            await answer.read()
            sent = [part["image"]["source"]["bytes"] for part in bedrock.last.json()["messages"][0]["content"][1:]]
            assert sent == [base64.b64encode(PNG).decode()] * 2
            assert len(server.requests) == 1
            with pytest.raises(BadRequest, match="more than"):
                await provider.send(asking(*(f"http://pics.example/{n}" for n in range(21))), "m")
            with pytest.raises(BadRequest, match="larger than a request"):
                provider.fetcher = Net(server, pics_example=[[PUBLIC]]).fetcher(request_bytes=150)
                await provider.send(asking("http://pics.example/ok.png", "http://pics.example/untyped"), "m")
    await transport.aclose()


def naming(url: str) -> Call:
    """As an Anthropic client names a document."""
    source = {"type": "url", "url": url}
    content = [{"type": "text", "text": "what?"}, {"type": "document", "source": source, "title": "report"}]
    raw = json.dumps({"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": content}]}).encode()
    return Call("chat", "anthropic_messages", anthropic_messages.DIALECT.decode_request(raw), raw, "req")


async def test_documents_are_fetched_where_the_operator_allows_them(server: Pictures) -> None:
    """And nothing else is: a picture's address is refused by name there, as it was."""
    transport = Http1Transport()
    keys = Credential({"access_key_id": "AKIDTEST", "secret_access_key": "secret-test-key"})
    async with BedrockEmulator() as bedrock:
        endpoint = Endpoint("bedrock", bedrock.url, "us-east-1", keys, {"fetch_documents": True})
        provider: Any = registry.create(endpoint, transport)
        provider.fetcher = Net(server, pics_example=[[PUBLIC]]).fetcher(kinds=frozenset({"documents"}))
        for path in ("ok.pdf", "untyped.pdf"):
            answer = await provider.send(naming(f"http://pics.example/{path}"), "amazon.nova-pro-v1:0")
            assert b"I read 1 document." in await answer.read()
            (document,) = [b["document"] for b in bedrock.last.json()["messages"][0]["content"] if "document" in b]
            assert document == {
                "format": "pdf",
                "name": "report",
                "source": {"bytes": base64.b64encode(PDF).decode()},
            }
        answer = await provider.send(naming("http://pics.example/notes.md"), "amazon.nova-pro-v1:0")
        await answer.read()
        (document,) = [b["document"] for b in bedrock.last.json()["messages"][0]["content"] if "document" in b]
        assert (document["format"], base64.b64decode(document["source"]["bytes"]).decode()) == ("md", "# Größe\n")
        for path, says in (("lies.pdf", "neither PDF"), ("ok.png", "neither PDF"), ("latin.txt", "UTF-8")):
            with pytest.raises(BadRequest, match=says) as refused:
                await provider.send(naming(f"http://pics.example/{path}"), "amazon.nova-pro-v1:0")
            assert refused.value.param == "file_url"
        with pytest.raises(Unsupported, match="image by URL"):
            await provider.send(asking("http://pics.example/ok.png"), "amazon.nova-pro-v1:0")
        provider.fetcher = None
        with pytest.raises(Unsupported, match="file by URL"):
            await provider.send(naming("http://pics.example/ok.pdf"), "amazon.nova-pro-v1:0")
    await transport.aclose()
