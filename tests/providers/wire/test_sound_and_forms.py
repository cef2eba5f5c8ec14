"""How long sounds last, and forms taken apart and put together: known files, and whatever else comes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.wire import multipart, sound
from tests.emulators.media import wav


def flac(rate: int, samples: int) -> bytes:
    packed = (rate << 44) | samples
    return b"fLaC" + bytes(14) + packed.to_bytes(8, "big") + bytes(20)


def ogg(granule: int) -> bytes:
    page = b"OggS\0\0" + struct.pack("<q", granule) + bytes(14)
    return b"OggS\0\0" + bytes(22) + b"OpusHead" + bytes(40) + page


def mp4(scale: int, length: int, version: int = 0) -> bytes:
    times = struct.pack(">QQIQ", 0, 0, scale, length) if version else struct.pack(">IIII", 0, 0, scale, length)
    return b"\0\0\0\x20ftypM4A " + bytes(20) + b"mvhd" + bytes((version, 0, 0, 0)) + times + bytes(80)


MP3 = b"ID3\x04\0\0\0\0\0\x05hello\xff\xfb\x90\x64" + bytes(15_981)  # 128 kbit/s


@pytest.mark.parametrize(
    ("data", "length", "sure"),
    [
        (wav(2.5), 2.5, True),
        (flac(44_100, 441_000), 10.0, True),
        (ogg(96_000), 2.0, True),
        (mp4(1_000, 3_500), 3.5, True),
        (mp4(1_000, 3_500, version=1), 3.5, True),
        (MP3, 1.0, False),
        (bytes(15_000), 10.0, False),
        (b"", 0.0, False),
    ],
)
def test_how_long(data: bytes, length: float, sure: bool) -> None:
    found = sound.seconds(data)
    assert found == (pytest.approx(length, abs=0.01), sure)


def test_the_head_and_the_length_are_enough() -> None:
    whole = wav(20.0)
    assert sound.seconds(whole[:4096], len(whole)) == (pytest.approx(20.0, abs=0.01), True)
    assert sound.seconds(MP3[:100], 160_000)[0] == pytest.approx(10.0, abs=0.01)


HEADS = st.sampled_from([b"RIFF....WAVEfmt ", b"fLaC", b"OggS", b"....ftyp....mvhd", b"ID3", b"\xff\xfb", b""])


@given(HEADS, st.binary(max_size=200))
def test_nothing_makes_it_fail_or_go_below_zero(head: bytes, rest: bytes) -> None:
    assert sound.seconds(head + rest)[0] >= 0


PARTS = st.lists(
    st.tuples(st.sampled_from(["model", "file", "prompt"]), st.binary(max_size=60).filter(lambda b: b"--cut" not in b)),
    min_size=1,
    max_size=6,
)


@given(PARTS)
def test_forms_come_back_as_they_were(parts: list[tuple[str, bytes]]) -> None:
    made = [multipart.Part(name, multipart.field(name, "").head, body) for name, body in parts]
    assert multipart.split(multipart.joined(made, b"cut"), b"cut") == tuple(made)


@given(st.binary(max_size=300))
def test_no_form_is_a_value_error(body: bytes) -> None:
    for data in (body, b"--cut" + body, b"--cut\r\n" + body + b"\r\n--cut--"):
        try:
            multipart.split(data, b"cut")
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; boundary="a b"', b"a b"),
        ("multipart/form-data", None),
        ("multipart/mixed; boundary=abc", None),
    ],
)
def test_boundaries(content_type: str, boundary: bytes | None) -> None:
    assert multipart.boundary_of(content_type) == boundary
