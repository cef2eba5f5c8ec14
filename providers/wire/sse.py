"""Server-sent events: bytes to frames, however the network sliced them. No I/O and no JSON.

Source: WHATWG HTML, "9.2.6 Interpreting an event stream", read 2026-11. Lines end at CR, LF or CRLF, at nothing else:
U+2028 and U+0085 are legal inside a JSON string, so `splitlines` on text would tear a frame in two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct

from providers.errors import WireError

MAX_FRAME_BYTES = 16 * 1024 * 1024  # an inline image fits; a peer that never ends a frame does not fill the memory

# A line end and an empty line. The lookahead keeps a CRLF whole when the expression backtracks.
_BLANK_LINE = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?:\r\n|\r(?!\n)|\n)")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_CRLF2 = b"\r\n\r\n"
_BOM = b"\xef\xbb\xbf"


class Frame(Struct, frozen=True):
    """One event. data: its data lines joined by LF; b"" for an event without data. event: None when unnamed."""

    data: bytes
    event: str | None = None
    id: str | None = None


class FrameSplitter:
    """Cuts a byte stream at its blank lines: raw frames with their terminators, which joined are the stream again."""

    __slots__ = ("_limit", "_pending", "_seen")

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._limit = max_frame_bytes
        self._pending = bytearray()
        self._seen = 0  # how much of `_pending` is known to hold no blank line: a drip feed stays linear

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not whole yet."""
        return len(self._pending)

    def feed(self, data: bytes) -> list[bytes]:
        """Raises: WireError when a frame is longer than the limit."""
        if not self._pending:
            if data.endswith(b"\n\n") and data.find(b"\n\n") == len(data) - 2 and b"\r" not in data:
                if len(data) > self._limit:
                    raise WireError(f"an event of more than {self._limit} bytes")
                return [data]  # The usual case: the peer flushes frame by frame.
            if data.endswith(_CRLF2) and data.find(_CRLF2) == len(data) - 4 and _only_crlf(data, 0):
                if len(data) > self._limit:
                    raise WireError(f"an event of more than {self._limit} bytes")
                return [data]  # The same from a server that ends lines as HTTP does.
            buffer = data
            start = 0
        else:
            start = max(0, self._seen - 3)  # a CRLF CRLF may be cut anywhere
            self._pending += data
            buffer = self._pending  # type: ignore[assignment]
        frames: list[bytes] = []
        done = 0
        for end in _ends(buffer, start):
            if end - done > self._limit:
                raise WireError(f"an event of more than {self._limit} bytes")
            frames.append(bytes(buffer[done:end]))
            done = end
        if buffer is data:
            self._pending += data[done:]
        else:
            del self._pending[:done]
        self._seen = len(self._pending)
        if self._seen > self._limit:
            raise WireError(f"an event of more than {self._limit} bytes")
        return frames

    def close(self) -> bytes:
        """The stream ended: what is left of a frame without its blank line."""
        rest = bytes(self._pending)
        self._pending.clear()
        self._seen = 0
        return rest


class SseDecoder:
    """Bytes to frames. Comments, heartbeats and `retry` fields vanish here."""

    __slots__ = ("_splitter",)

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._splitter = FrameSplitter(max_frame_bytes)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Raises: WireError when a frame is longer than the limit."""
        for raw in self._splitter.feed(data):
            if (frame := parse(raw)) is not None:
                yield frame

    def close(self) -> Iterator[Frame]:
        """The last frame when the peer left out its blank line. The standard discards it; several engines end their
        stream with a bare `data: [DONE]`, and a torn frame shows itself as bad JSON one step later."""
        rest = self._splitter.close()
        if rest and (frame := parse(rest)) is not None:
            yield frame


def parse(raw: bytes) -> Frame | None:
    """One raw frame, read. None for a frame that says nothing: blank lines, comments."""
    if raw.startswith(b"data: "):
        if (end := _single_line(raw, 6)) > 0:
            return Frame(raw[6:end])
    elif raw.startswith(b"event: "):
        start = raw.find(b"\n") + 1
        if raw.startswith(b"data: ", start) and (end := _single_line(raw, start + 6)) > 0:
            name = raw[7 : start - 1].removesuffix(b"\r")
            if b"\r" not in name:
                return Frame(raw[start + 6 : end], name.decode("utf-8", "replace"))
    data: list[bytes] = []
    event: str | None = None
    ident: str | None = None
    for line in _LINE_END.split(raw.removeprefix(_BOM)):
        name, colon, value = line.partition(b":")
        if not name:
            continue  # an empty line, or a comment
        if colon:
            value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            ident = value.decode("utf-8", "replace")
    if not data and event is None:
        return None
    return Frame(b"\n".join(data), event, ident)


def data_of(raw: bytes) -> bytes:
    """The data of one raw frame, b"" where it has none: all that a tap asks of most frames."""
    if raw.startswith(b"event: "):
        start = raw.find(b"\n") + 1
        plain = raw.startswith(b"data: ", start) and raw.find(b"\r", 0, start - 2) < 0
        if plain and (end := _single_line(raw, start + 6)) > 0:
            return raw[start + 6 : end]
    elif raw.startswith(b"data: ") and (end := _single_line(raw, 6)) > 0:
        return raw[6:end]
    frame = parse(raw)
    return frame.data if frame is not None else b""


def encode(data: bytes, event: str | None = None) -> bytes:
    """One frame. data: a single line, as JSON without indentation is."""
    if event is None:
        return b"data: %b\n\n" % data
    return b"event: %b\ndata: %b\n\n" % (event.encode(), data)


def _single_line(raw: bytes, start: int) -> int:
    """Where the line from `start` ends when it is the frame's last and its ends are all LF or all CRLF; else -1."""
    end = raw.find(b"\n", start)
    if end == len(raw) - 2:
        return end if raw.endswith(b"\n") and raw.find(b"\r") < 0 else -1
    if end == len(raw) - 3 and raw.endswith(_CRLF2) and raw.find(b"\r", start) == end - 1:
        return end - 1
    return -1


def _only_crlf(buffer: bytes | bytearray, start: int) -> bool:
    pairs = buffer.count(b"\r\n", start)
    return pairs == buffer.count(b"\n", start) == buffer.count(b"\r", start)


def _ends(buffer: bytes | bytearray, start: int) -> Iterator[int]:
    """Offsets just behind each blank line."""
    if buffer.find(b"\r", start) < 0:
        at = buffer.find(b"\n\n", start)
        while at >= 0:
            yield at + 2
            at = buffer.find(b"\n\n", at + 2)
        return
    if _only_crlf(buffer, start):
        at = buffer.find(_CRLF2, start)
        while at >= 0:
            yield at + 4
            at = buffer.find(_CRLF2, at + 4)
        return
    for match in _BLANK_LINE.finditer(buffer, start):
        yield match.end()
