"""Requests that two readers could read differently, or that are built to be costly: refused before anybody acts."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from gateway.errors import InvalidRequest
from gateway.sections import ServerSettings

# A proxy in front may go by the first of two and we by the last.
_SINGLE: Final = frozenset(
    {
        b"api-key",
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"transfer-encoding",
        b"x-api-key",
        b"x-goog-api-key",
    }
)

_LISTS: Final = frozenset({b"anthropic-beta", b"openai-beta", b"x-farebox-tags", b"x-goog-api-client"})


def objection(headers: list[tuple[bytes, bytes]], version: str) -> InvalidRequest | None:
    """Why a request with this head is not read further. headers: names in lower case. The parser has seen to
    conflicting lengths already (llhttp, without leniencies)."""
    names = {name for name, _ in headers}
    if b"host" not in names and version == "1.1":
        return InvalidRequest("HTTP/1.1 wants a Host header", code="malformed_http")
    if b"transfer-encoding" in names and version == "1.0":
        return InvalidRequest("HTTP/1.0 knows no transfer-encoding", code="malformed_http")
    if len(names) == len(headers):
        return None
    seen = set()
    for name, _ in headers:
        if name in _SINGLE and name in seen:
            return InvalidRequest(f"the header {name.decode()} is there twice", code="malformed_http")
        seen.add(name)
    return None


def joined(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """What lists things and was sent in several lines, in the one line that means the same (RFC 9110, 5.3)."""
    said: dict[str, str] = {}
    for name, value in headers:
        if name in _LISTS:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            said[key] = f"{said[key]}, {text}" if key in said else text
    return said


def without_upgrade(data: bytes) -> bytes:
    """A whole head less its offer to go on in HTTP/2, which a server may ignore (RFC 9110, 7.8) but after which llhttp
    reads no body. Java's own client makes it with the first request of each connection."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\n", head + b"\r\n") + b"\r\n" + rest if end else data


_UPGRADE: Final = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*\r\n", re.IGNORECASE)


class _Lists(Struct):
    """The members of any dialect's request that hold many things; the things themselves are not read."""

    messages: list[Raw] = []
    contents: list[Raw] = []
    input: list[Raw] | Raw = Raw(b"")
    requests: list[Raw] = []
    tools: list[Raw] = []


_lists: Final = msgspec.json.Decoder(_Lists)
# One of these stands in every content part of some dialect. In a text its quotes are escaped, so it does not count.
_PARTS: Final = (b'"type"', b'"text"', b'"role"')


def check_shape(body: bytes, limits: ServerSettings) -> None:
    """Millions of tiny messages fit into a body of allowed size and keep a process busy for seconds.

    Raises: InvalidRequest. What is no JSON passes: the dialect says that better."""
    if body.count(b"{") <= limits.max_tools and body.count(b",") <= limits.max_messages:
        return
    for key in _PARTS:
        if body.count(key) > limits.max_parts:
            raise InvalidRequest(f"more than {limits.max_parts} content parts, this server's limit")
    try:
        found = _lists.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    many: tuple[tuple[str, Any, int], ...] = (
        ("messages", found.messages, limits.max_messages),
        ("contents", found.contents, limits.max_messages),
        ("input", found.input, limits.max_messages),
        ("requests", found.requests, limits.max_messages),
        ("tools", found.tools, limits.max_tools),
    )
    for name, value, most in many:
        if isinstance(value, list) and len(value) > most:
            raise InvalidRequest(f"{len(value)} {name}, but this server's limit is {most}", param=name)
