"""multipart/form-data: bytes to parts and back. No I/O. Source: RFC 7578 and RFC 2046, read 2026-11.

A part's bytes are kept as they came; only what is edited is written anew."""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

PARTS_MAX = 256
_HEAD_BYTES_MAX = 8192
_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"content-disposition:\s*form-data\s*;([^\r\n]*)", re.IGNORECASE)
_PARAMETER = re.compile(rb'(?:^|;)\s*(name|filename)="((?:[^"\\]|\\.)*)"', re.IGNORECASE)


class Part(Struct, frozen=True):
    """head: its header lines, without the empty one. name: of the form field."""

    name: str
    head: bytes
    body: bytes
    filename: str | None = None


def boundary_of(content_type: str) -> bytes | None:
    """None for what is no multipart/form-data."""
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        return None
    found = _BOUNDARY.search(content_type)
    return None if found is None else (found[1] or found[2]).encode("latin-1")


def split(body: bytes, boundary: bytes) -> tuple[Part, ...]:
    """Raises: ValueError for a body that is none: two readers would see different parts in it."""
    mark = b"\r\n--" + boundary
    pieces = (b"\r\n" + body).split(mark)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--") or pieces[0].strip():
        raise ValueError("it does not begin and end with its boundary")
    if len(pieces) > PARTS_MAX + 2:
        raise ValueError(f"it has more than {PARTS_MAX} parts")
    return tuple(_part(piece) for piece in pieces[1:-1])


def _part(piece: bytes) -> Part:
    head, empty, body = piece.partition(b"\r\n\r\n")
    if not empty or not head.startswith(b"\r\n") or len(head) > _HEAD_BYTES_MAX:
        raise ValueError("a part without a head")
    said = _DISPOSITION.search(head)
    names = {key.lower(): value for key, value in _PARAMETER.findall(said[1])} if said is not None else {}
    if b"name" not in names:
        raise ValueError("a part without a name")
    filename = names.get(b"filename")
    return Part(
        names[b"name"].decode("utf-8", "replace"),
        head[2:],
        body,
        None if filename is None else filename.decode("utf-8", "replace"),
    )


def field(name: str, value: str) -> Part:
    """A part of plain text. name: of ours, no quotes in it."""
    return Part(name, f'Content-Disposition: form-data; name="{name}"'.encode(), value.encode())


def joined(parts: Iterable[Part], boundary: bytes) -> bytes:
    lines: list[bytes] = []
    for part in parts:
        lines += [b"--", boundary, b"\r\n", part.head, b"\r\n\r\n", part.body, b"\r\n"]
    return b"".join([*lines, b"--", boundary, b"--\r\n"])
