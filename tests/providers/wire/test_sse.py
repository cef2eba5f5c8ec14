"""Server-sent events under every slicing and every line end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.errors import WireError
from providers.wire.sse import Frame, FrameSplitter, SseDecoder, data_of, encode, parse

STREAM = (
    ": a comment\n\n"
    "data: one\n\n"
    "event: named\nid: 7\ndata: two\ndata:three\n\n"
    'data: {"text":"line\u2028separator \u0085 next"}\n\n'
    "retry: 10\n\n"
    "event: empty\n\n"
    "data\n\n"
    "data:  two spaces\n\n"
    "data: a: b\n\n"
).encode()
FRAMES = [
    Frame(b"one"),
    Frame(b"two\nthree", "named", "7"),
    Frame('{"text":"line\u2028separator \u0085 next"}'.encode()),
    Frame(b"", "empty"),
    Frame(b""),
    Frame(b" two spaces"),
    Frame(b"a: b"),
]


def frames(data: bytes, cuts: list[int]) -> list[Frame]:
    decoder = SseDecoder()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    found = [f for start, end in pairwise(edges) for f in decoder.feed(data[start:end])]
    return [*found, *decoder.close()]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@given(cuts=st.lists(st.integers(0, 1 << 16), max_size=20))
def test_slicing_changes_no_frame(line_end: bytes, cuts: list[int]) -> None:
    assert frames(STREAM.replace(b"\n", line_end), cuts) == FRAMES


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_byte_by_byte(line_end: bytes) -> None:
    data = STREAM.replace(b"\n", line_end)
    assert frames(data, list(range(len(data)))) == FRAMES


@given(st.lists(st.sampled_from([b"data: x", b"\n", b"\r", b"\r\n", b":", b"y", b"event: z"]), max_size=30), st.data())
def test_any_mixture_reads_the_same_in_any_slices(pieces: list[bytes], draw: st.DataObject) -> None:
    data = b"".join(pieces)
    cuts = draw.draw(st.lists(st.integers(0, max(1, len(data))), max_size=10))
    assert frames(data, cuts) == frames(data, list(range(len(data)))) == frames(data, [])


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=8))
def test_raw_frames_joined_are_the_stream(data: bytes, cuts: list[int]) -> None:
    splitter = FrameSplitter()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    out = [raw for a, b in pairwise(edges) for raw in splitter.feed(data[a:b])]
    assert b"".join([*out, splitter.close()]) == data


def plainly_read(raw: bytes) -> Frame | None:
    """The standard's steps, line by line, without a shortcut."""
    data, event, ident = [], None, None
    for line in raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                data.append(value)
            case b"event":
                event = value.decode()
            case b"id":
                ident = value.decode()
    return Frame(b"\n".join(data), event, ident) if data or event is not None else None


@given(
    st.lists(
        st.sampled_from([b"event: ", b"data: ", b"data:", b"x", b"y y", b"\r", b"\n", b"\r\n", b"id: 1"]), max_size=9
    )
)
def test_shortcuts_read_what_the_standard_reads(pieces: list[bytes]) -> None:
    raw = b"".join(pieces)
    plain = plainly_read(raw)
    assert parse(raw) == plain
    assert data_of(raw) == (plain.data if plain is not None else b"")


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("text", [b"data: x\n\n", b"event: e\ndata: x\n\n", b"event: e\nid: 1\ndata: x\n\n"])
def test_usual_frames_read_alike_whatever_ends_their_lines(text: bytes, line_end: bytes) -> None:
    raw = text.replace(b"\n", line_end)
    assert FrameSplitter().feed(raw * 3) == [raw] * 3
    assert parse(raw) == plainly_read(raw)
    assert data_of(raw) == b"x"


def test_a_byte_order_mark_is_not_part_of_the_first_field() -> None:
    assert frames(b"\xef\xbb\xbfdata: x\n\n", []) == [Frame(b"x")]


def test_a_last_frame_without_its_blank_line_counts() -> None:
    assert frames(b"data: [DONE]", []) == [Frame(b"[DONE]")]
    assert frames(b"data: a\n\ndata: [DONE]\n", []) == [Frame(b"a"), Frame(b"[DONE]")]


@pytest.mark.parametrize("step", [1, 50, 10_000])
def test_frames_are_bounded(step: int) -> None:
    splitter = FrameSplitter(max_frame_bytes=1000)
    data = b"data: " + b"x" * 2000 + b"\n\n"
    with pytest.raises(WireError):
        for at in range(0, len(data), step):
            splitter.feed(data[at : at + step])
    assert splitter.pending <= 1000 + step


def test_a_long_frame_fed_slowly_costs_linear_time() -> None:
    """A quadratic splitter would copy 2 TB here."""
    decoder = SseDecoder()
    count = 200_000
    for _ in range(count):
        assert not list(decoder.feed(b"data: xxxx"))
    (frame,) = [*decoder.feed(b"\n\n")]
    assert len(frame.data) == count * 10 - 6


def test_what_we_write_reads_back() -> None:
    assert parse(encode(b'{"a":1}')) == Frame(b'{"a":1}')
    assert parse(encode(b"{}", "ping")) == Frame(b"{}", "ping")
