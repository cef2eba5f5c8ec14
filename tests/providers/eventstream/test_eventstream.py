"""AWS frames against botocore's own parser, and against bytes that mean harm."""

import contextlib
import struct
from zlib import crc32

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from providers.errors import WireError
from providers.wire import eventstream
from providers.wire.eventstream import EventStreamDecoder, FrameSplitter, encode, encode_event, encode_exception

NAMES = st.text(min_size=1, max_size=20).filter(lambda t: t.isprintable())
HEADERS = st.dictionaries(NAMES, st.text(max_size=50), max_size=4)
PAYLOADS = st.binary(max_size=300)


def sliced(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@given(st.lists(st.tuples(HEADERS, PAYLOADS), max_size=4), st.lists(st.integers(0, 5000), max_size=8))
def test_any_slicing_gives_the_frames_that_botocore_reads(frames, cuts):
    data = b"".join(encode(headers, payload) for headers, payload in frames)
    theirs = EventStreamBuffer()
    theirs.add_data(data)
    expected = [(message.headers, message.payload) for message in theirs]
    decoder = EventStreamDecoder()
    found = [(frame.headers, frame.payload) for piece in sliced(data, cuts) for frame in decoder.feed(piece)]
    assert found == expected == frames
    assert decoder.pending == 0


def typed_header(name: str, kind: int, value: bytes) -> bytes:
    return bytes((len(name),)) + name.encode() + bytes((kind,)) + value


def framed(headers: bytes, payload: bytes) -> bytes:
    lengths = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    head = lengths + struct.pack(">I", crc32(lengths)) + headers + payload
    return head + struct.pack(">I", crc32(head))


def test_every_header_type_reads_as_botocore_reads_it():
    headers = b"".join(
        (
            typed_header("t", 0, b""),
            typed_header("f", 1, b""),
            typed_header("b", 2, struct.pack(">b", -5)),
            typed_header("s", 3, struct.pack(">h", -300)),
            typed_header("i", 4, struct.pack(">i", 70000)),
            typed_header("l", 5, struct.pack(">q", 1 << 40)),
            typed_header("by", 6, struct.pack(">H", 3) + b"\x00\xff\x01"),
            typed_header("st", 7, struct.pack(">H", 2) + "é".encode()),
            typed_header("ts", 8, struct.pack(">q", 1_700_000_000_000)),
            typed_header("id", 9, bytes(range(16))),
        )
    )
    data = framed(headers, b"payload")
    theirs = EventStreamBuffer()
    theirs.add_data(data)
    (frame,) = EventStreamDecoder().feed(data)
    assert frame.headers == next(theirs).headers


@given(st.binary(max_size=600))
def test_garbage_is_refused_or_waited_for_and_never_kept_beyond_a_frame(data):
    decoder = EventStreamDecoder()
    try:
        list(decoder.feed(data))
    except WireError:
        return
    assert decoder.pending <= len(data)


@given(PAYLOADS, st.integers(0, 10_000), st.integers(1, 255))
def test_one_flipped_byte_is_noticed(payload, place, flip):
    data = bytearray(encode_event("messageStart", payload))
    data[place % len(data)] ^= flip
    with pytest.raises(WireError):
        list(EventStreamDecoder().feed(bytes(data) + b"\0" * 64))


@given(st.binary(max_size=200))
def test_random_headers_with_right_checksums_do_not_crash(headers):
    with contextlib.suppress(WireError):
        list(EventStreamDecoder().feed(framed(headers, b"")))


@pytest.mark.parametrize(
    ("total", "headers"),
    [(eventstream.MAX_PAYLOAD_BYTES + 17, 0), (300_000, 200_000), (15, 0), (16, 4), (0xFFFFFFFF, 0)],
)
def test_a_length_over_the_limits_is_refused_before_its_bytes_come(total, headers):
    lengths = struct.pack(">II", total, headers)
    with pytest.raises(WireError):
        list(FrameSplitter().feed(lengths + struct.pack(">I", crc32(lengths))))


def test_the_splitter_hands_the_stream_through_byte_for_byte():
    data = encode_event("chunk", b'{"a":1}') + encode_exception("throttlingException", b'{"message":"slow"}')
    splitter = FrameSplitter()
    raws = [raw for byte in data for raw in splitter.feed(bytes((byte,)))]
    assert len(raws) == 2
    assert b"".join(raws) == data
    event, exception = map(eventstream.parse, raws)
    assert (event.message_type, event.event_type) == ("event", "chunk")
    assert (exception.message_type, exception.event_type) == ("exception", "throttlingException")


def test_headers_that_cannot_fit_are_refused():
    with pytest.raises(ValueError, match="does not fit"):
        encode({"n" * 256: "v"}, b"")
    with pytest.raises(ValueError, match="does not fit"):
        encode({"n": "v" * 40_000}, b"")
