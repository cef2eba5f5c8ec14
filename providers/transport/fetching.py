"""Remote images and documents for providers that take bytes alone: fetched from the public internet and nowhere else.

A client chooses the address, and we stand inside somebody's network: so the name is resolved once and the connection
goes to the very address that was judged; every redirect begins anew; nothing of ours is sent along. Off unless an
endpoint's options say `fetch_images: true` or `fetch_documents: true`. Source: OWASP SSRF prevention cheat sheet, IANA
special-purpose address registries, read 2026-11."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, Literal
from urllib.parse import SplitResult, urljoin, urlsplit

import httptools
from msgspec import Struct
from msgspec.structs import replace

from providers.errors import BadRequest
from providers.neutral import ChatRequest, FilePart, ImagePart, Message, Part, ToolResultPart

REDIRECTS_MAX: Final = 3
URL_CHARS_MAX: Final = 4096
IMAGES_MAX: Final = 20
_CHUNK_BYTES: Final = 65_536
_HEAD_BYTES_MAX: Final = 65_536
_PORTS: Final = {"https": 443, "http": 80}
_NAT64: Final = IPv6Network("64:ff9b::/96")
_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
)
_PDF: Final = (b"%PDF-", "application/pdf")
_TEXTS: Final = ("text/plain", "text/markdown", "text/csv", "text/html")
_UNTYPED: Final = ("", "application/octet-stream", "binary/octet-stream")

Kind = Literal["images", "documents"]

Resolve = Callable[[str, int], Awaitable[list[str]]]
Dial = Callable[
    [str, int, ssl.SSLContext | None, str | None], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
]


_PARAM: Final[dict[Kind, str]] = {"images": "image_url", "documents": "file_url"}
_ACCEPT: Final[dict[Kind, str]] = {
    "images": "image/png, image/jpeg, image/gif, image/webp",
    "documents": "application/pdf, text/plain, text/markdown, text/csv, text/html",
}


class _Refusal(Exception):
    """Why something is not fetched, in the client's words."""


class Limits(Struct, frozen=True):
    image_bytes: int = 8 * 1024 * 1024
    document_bytes: int = 16 * 1024 * 1024
    request_bytes: int = 20 * 1024 * 1024
    """Of everything that one request names, together."""
    total_s: float = 10.0
    """For one address, redirects and all."""
    http: bool = False
    """Also without TLS."""


class Fetched(Struct, frozen=True):
    media_type: str
    data: bytes


async def resolve(host: str, port: int) -> list[str]:
    """Every address of a name, by the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=1)  # SOCK_STREAM
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def dial(
    address: str, port: int, context: ssl.SSLContext | None, server_hostname: str | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(address, port, ssl=context, server_hostname=server_hostname)


def kinds_in(options: Mapping[str, Any]) -> frozenset[Kind]:
    """What an endpoint's options say may be fetched for it."""
    kinds: tuple[Kind, ...] = ("images", "documents")
    return frozenset(kind for kind in kinds if options.get(f"fetch_{kind}"))


class Fetcher:
    """No state of any request. kinds: what is fetched. resolve, dial: the network, for tests to stand in for."""

    def __init__(
        self,
        limits: Limits | None = None,
        resolve: Resolve = resolve,
        dial: Dial = dial,
        kinds: frozenset[Kind] = frozenset({"images"}),
    ) -> None:
        self._limits = limits or Limits()
        self._kinds = kinds
        self._resolve = resolve
        self._dial = dial

    async def inline(self, request: ChatRequest) -> ChatRequest:
        """The request with what it names as bytes. Raises: BadRequest for what may not or cannot be had."""
        wanted = dict(_named(request, self._kinds))
        if not wanted:
            return request
        if len(wanted) > IMAGES_MAX:
            raise BadRequest(f"more than {IMAGES_MAX} images or documents by address in one request", param="image_url")
        found: dict[str, Fetched] = {}
        for url, kind in wanted.items():
            found[url] = await self.fetch(url, kind)
            if sum(len(each.data) for each in found.values()) > self._limits.request_bytes:
                raise BadRequest(f"the {kind} are larger than a request may be together", param=_PARAM[kind])
        return replace(request, messages=tuple(_with(message, found) for message in request.messages))

    async def fetch(self, url: str, kind: Kind = "images") -> Fetched:
        """Raises: BadRequest, which tells what is wrong with the address and nothing of our network."""
        try:
            async with asyncio.timeout(self._limits.total_s):
                return await self._followed(url, kind)
        except _Refusal as refusal:
            why = str(refusal)
        except TimeoutError:
            why = f"not there within {self._limits.total_s:g} s"
        except (OSError, asyncio.IncompleteReadError, httptools.HttpParserError):
            why = "its server cannot be reached or does not speak HTTP"
        what = f"the {kind.removesuffix('s')} at this address"
        raise BadRequest(f"{what} is not fetched: {why}; send its bytes instead", param=_PARAM[kind])

    async def _followed(self, url: str, kind: Kind) -> Fetched:
        for _ in range(REDIRECTS_MAX + 1):
            answer = await self._get(url, kind)
            if answer.location is None:
                return _judged(answer, kind)
            url = urljoin(url, answer.location)
        raise _Refusal(f"more than {REDIRECTS_MAX} redirects")

    async def _get(self, url: str, kind: Kind) -> _Answer:
        parts, port = self._checked(url)
        host = parts.hostname or ""
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise _Refusal("its host is not known") from error
        if not addresses or not all(map(is_public, addresses)):
            # One private address among public ones is what a rebinding name looks like.
            raise _Refusal("its host is not on the public internet")
        context = _tls() if parts.scheme == "https" else None
        reader, writer = await self._dial(addresses[0], port, context, host if context else None)
        try:
            writer.write(_request(parts, host, kind))
            await writer.drain()
            limit = self._limits.image_bytes if kind == "images" else self._limits.document_bytes
            return await _read(reader, limit)
        finally:
            writer.close()

    def _checked(self, url: str) -> tuple[SplitResult, int]:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise _Refusal("it is no address") from error
        schemes = ("https", "http") if self._limits.http else ("https",)
        if parts.scheme not in schemes:
            raise _Refusal(f"only {' and '.join(schemes)} addresses are fetched")
        if len(url) > URL_CHARS_MAX or not url.isascii() or any(c <= " " for c in url):
            raise _Refusal("it is too long, or has characters that no address has")
        if not parts.hostname or parts.username is not None or parts.password is not None:
            raise _Refusal("it must have a host and no credentials")
        usual = _PORTS[parts.scheme]
        if port not in (None, usual):
            raise _Refusal(f"only port {usual} is asked")
        return parts, usual


def _judged(answer: _Answer, kind: Kind) -> Fetched:
    if answer.status != 200:
        raise _Refusal(f"its server answered {answer.status}")
    return _image(answer) if kind == "images" else _document(answer)


def _image(answer: _Answer) -> Fetched:
    seen = next((name for magic, name in _MAGIC if answer.body.startswith(magic)), None)
    if seen is None or answer.media_type not in (seen, *_UNTYPED):
        raise _Refusal("it is no PNG, JPEG, GIF or WebP image, or says it is another thing than it is")
    return Fetched(seen, answer.body)


def _document(answer: _Answer) -> Fetched:
    magic, pdf = _PDF
    if answer.body.startswith(magic) and answer.media_type in (pdf, *_UNTYPED):
        return Fetched(pdf, answer.body)
    if answer.media_type in _TEXTS and not answer.body.startswith(magic):
        try:
            answer.body.decode()
        except UnicodeDecodeError as error:
            raise _Refusal("its text is not UTF-8") from error
        return Fetched(answer.media_type, answer.body)
    raise _Refusal("it is neither PDF nor text, or says it is another thing than it is")


def is_public(address: str) -> bool:
    """Whether an IP address is one that the whole internet reaches, seen through every wrapping of IPv4 in IPv6."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, IPv6Address):
        inner = _wrapped(ip)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _wrapped(ip: IPv6Address) -> IPv4Address | None:
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip.teredo is not None:
        return ip.teredo[1]
    return IPv4Address(int(ip) & 0xFFFF_FFFF) if ip in _NAT64 else None


class _Answer:
    """Filled by the parser as the bytes come."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.size = 0
        self.whole = False

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def location(self) -> str | None:
        return self.headers.get("location") if self.status in (301, 302, 303, 307, 308) else None

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self.size += len(data)
        self.pieces.append(data)

    def on_message_complete(self) -> None:
        self.whole = True

    def check(self) -> None:
        """Raises: BadRequest as soon as more is announced or has come than is taken."""
        announced = self.headers.get("content-length", "")
        if self.size > self._limit_bytes or (announced.isdigit() and int(announced) > self._limit_bytes):
            raise _Refusal(f"it is larger than {self._limit_bytes} bytes")
        if self.headers.get("content-encoding", "identity") not in ("", "identity"):
            raise _Refusal("it comes compressed, though that was not asked for")


async def _read(reader: asyncio.StreamReader, limit_bytes: int) -> _Answer:
    answer = _Answer(limit_bytes)
    parser = httptools.HttpResponseParser(answer)
    came = 0
    while not answer.whole:
        data = await reader.read(_CHUNK_BYTES)
        if not data:
            if answer.status and "content-length" not in answer.headers and "transfer-encoding" not in answer.headers:
                break  # its end is the end of the connection
            raise asyncio.IncompleteReadError(b"", None)
        came += len(data)
        parser.feed_data(data)
        answer.status = parser.get_status_code()
        answer.check()
        if answer.location is not None:
            break  # whatever else it says is of no interest
        if came > limit_bytes + _HEAD_BYTES_MAX:
            raise _Refusal(f"it is larger than {limit_bytes} bytes")
    return answer


def _request(parts: SplitResult, host: str, kind: Kind) -> bytes:
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    shown = f"[{host}]" if ":" in host else host
    lines = (
        f"GET {path} HTTP/1.1",
        f"host: {shown}",
        "user-agent: farebox",
        f"accept: {_ACCEPT[kind]}",
        "accept-encoding: identity",
        "connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode("ascii")


def _named(request: ChatRequest, kinds: frozenset[Kind]) -> Iterator[tuple[str, Kind]]:
    """By an address of the web; what lies in a provider's own store (`s3://`, `gs://`) is that provider's to read."""
    for message in request.messages:
        for part in message.content:
            for each in part.content if isinstance(part, ToolResultPart) else (part,):
                if isinstance(each, ImagePart | FilePart) and each.url is not None and _is_of_the_web(each.url):
                    kind = _kind_of(each)
                    if kind in kinds:
                        yield each.url, kind


def _kind_of(part: ImagePart | FilePart) -> Kind:
    is_picture = isinstance(part, ImagePart) or (part.media_type or "").startswith("image/")
    return "images" if is_picture else "documents"


def _is_of_the_web(url: str) -> bool:
    return url.partition(":")[0].lower() in ("http", "https")


def _with(message: Message, fetched: dict[str, Fetched]) -> Message:
    def inlined(part: Part) -> Part:
        if isinstance(part, ToolResultPart):
            return replace(part, content=tuple(inlined(each) for each in part.content))
        if isinstance(part, ImagePart | FilePart) and part.url is not None:
            if (found := fetched.get(part.url)) is None:
                return part
            if isinstance(part, FilePart) and found.media_type in _TEXTS:
                return replace(part, url=None, media_type=found.media_type, text=found.data.decode())
            data = base64.b64encode(found.data).decode()
            return replace(part, url=None, media_type=found.media_type, data=data)
        return part

    return replace(message, content=tuple(inlined(part) for part in message.content))


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
