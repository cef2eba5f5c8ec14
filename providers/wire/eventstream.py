"""AWS event streams: binary frames, both ways. No I/O and no meaning; a payload is bytes.

A frame: u32 total length, u32 header length, u32 CRC-32 of those eight bytes, headers, payload, u32 CRC-32 of all
before it; numbers are big-endian. A header: u8 name length, name, u8 type, value.
Source: "Amazon Transcribe, event stream encoding" (the one public page on it) and botocore 1.44 `eventstream.py`, whose
limits these are (headers 128 KiB, payload 24 MiB), read 2026-11.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from zlib import crc32

from msgspec import Struct

from providers.errors import WireError

MAX_HEADERS_BYTES = 128 * 1024
MAX_PAYLOAD_BYTES = 24 * 1024 * 1024

HeaderValue = str | bytes | int | bool

_PRELUDE = struct.Struct(">III")
_CRC = struct.Struct(">I")
_OVERHEAD = _PRELUDE.size + _CRC.size
_STRING = 7

# Value types of fixed size: type -> format. 8 is a timestamp (milliseconds), 9 a UUID.
_FIXED = {2: struct.Struct(">b"), 3: struct.Struct(">h"), 4: struct.Struct(">i"), 5: struct.Struct(">q")}
_TIMESTAMP, _UUID, _BYTES = 8, 9, 6


class Frame(Struct, frozen=True):
    headers: Mapping[str, HeaderValue]
    payload: bytes

    @property
    def message_type(self) -> str:
        """ "event", "exception" or "error"."""
        return str(self.headers.get(":message-type", "event"))

    @property
    def event_type(self) -> str:
        """The name of the event or of the exception."""
        headers = self.headers
        name = headers.get(":event-type") or headers.get(":exception-type") or headers.get(":error-code") or ""
        return str(name)


class FrameSplitter:
    """Cuts a byte stream into whole raw frames, checksums verified; joined they are the stream again."""

    __slots__ = ("_pending", "_wanted")

    def __init__(self) -> None:
        self._pending = bytearray()
        self._wanted = 0  # length of the frame that is coming in, once its prelude is known

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not whole yet."""
        return len(self._pending)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises: WireError for a bad checksum or an impossible length. The memory held never exceeds one frame, since
        a length is believed only after its own checksum."""
        pending = self._pending
        pending += data
        while True:
            if not self._wanted:
                if len(pending) < _PRELUDE.size:
                    return
                self._wanted = _checked_length(pending)
            if len(pending) < self._wanted:
                return
            raw = bytes(pending[: self._wanted])
            del pending[: self._wanted]
            self._wanted = 0
            if crc32(raw[: -_CRC.size]) != _CRC.unpack_from(raw, len(raw) - _CRC.size)[0]:
                raise WireError("an event-stream frame whose checksum does not match")
            yield raw


class EventStreamDecoder:
    """Bytes to frames, however the network sliced them."""

    __slots__ = ("_splitter",)

    def __init__(self) -> None:
        self._splitter = FrameSplitter()

    @property
    def pending(self) -> int:
        return self._splitter.pending

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Raises: WireError."""
        for raw in self._splitter.feed(data):
            yield parse(raw)


def parse(raw: bytes) -> Frame:
    """One whole frame, whose checksums `FrameSplitter` has verified. Raises: WireError for malformed headers."""
    end = _PRELUDE.size + _PRELUDE.unpack_from(raw)[1]
    headers: dict[str, HeaderValue] = {}
    at = _PRELUDE.size
    try:
        while at < end:
            size = raw[at]
            name = raw[at + 1 : at + 1 + size].decode()
            at += 1 + size
            if name in headers:
                raise WireError("an event-stream frame that repeats a header")
            headers[name], at = _value(raw, at)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise WireError("an event-stream frame with malformed headers") from error
    if at != end:
        raise WireError("an event-stream frame whose headers run over their length")
    return Frame(headers, raw[end : -_CRC.size])


def encode(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One frame with string headers, the only kind these services send.

    Raises: ValueError when a header or the payload is over the format's limits."""
    parts = []
    for name, value in headers.items():
        name_bytes, value_bytes = name.encode(), value.encode()
        if not 0 < len(name_bytes) < 256 or len(value_bytes) > 0x7FFF:
            raise ValueError(f"header {name[:64]!r} does not fit an event-stream frame")
        parts.append(
            b"%c%b%c%b%b" % (len(name_bytes), name_bytes, _STRING, struct.pack(">H", len(value_bytes)), value_bytes)
        )
    block = b"".join(parts)
    if len(block) > MAX_HEADERS_BYTES or len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError("too much for one event-stream frame")
    lengths = struct.pack(">II", _OVERHEAD + len(block) + len(payload), len(block))
    head = lengths + _CRC.pack(crc32(lengths)) + block + payload
    return head + _CRC.pack(crc32(head))


def encode_event(event_type: str, payload: bytes, content_type: str = "application/json") -> bytes:
    headers = {":event-type": event_type, ":content-type": content_type, ":message-type": "event"}
    return encode(headers, payload)


def encode_exception(exception_type: str, payload: bytes) -> bytes:
    """exception_type: the member's name in the service model, e.g. "throttlingException"."""
    headers = {":exception-type": exception_type, ":content-type": "application/json", ":message-type": "exception"}
    return encode(headers, payload)


def _checked_length(prelude: bytearray) -> int:
    total, headers, crc = _PRELUDE.unpack_from(prelude)
    if crc32(prelude[:8]) != crc:
        raise WireError("an event-stream frame whose prelude checksum does not match")
    if headers > MAX_HEADERS_BYTES or total - headers - _OVERHEAD > MAX_PAYLOAD_BYTES:
        raise WireError("an event-stream frame over the format's limits")
    if total < _OVERHEAD + headers:
        raise WireError("an event-stream frame shorter than its own headers")
    return int(total)


def _value(raw: bytes, at: int) -> tuple[HeaderValue, int]:
    """The header value that starts with its type byte at `at`, and where the next header starts."""
    kind = raw[at]
    at += 1
    if kind in (_STRING, _BYTES):
        size = (raw[at] << 8) | raw[at + 1]
        at += 2
        data = raw[at : at + size]
        if len(data) != size:
            raise IndexError
        return (data.decode() if kind == _STRING else data), at + size
    if kind in (0, 1):
        return kind == 0, at  # the type is the value: 0 says true, 1 says false
    if kind == _UUID:
        data = raw[at : at + 16]
        if len(data) != 16:
            raise IndexError
        return data, at + 16
    fixed = _FIXED.get(5 if kind == _TIMESTAMP else kind)
    if fixed is None:
        raise WireError(f"an event-stream header of unknown type {kind}")
    return fixed.unpack_from(raw, at)[0], at + fixed.size
