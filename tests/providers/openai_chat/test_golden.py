"""The golden cases of the OpenAI chat dialect, and its streams under every slicing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.dialects.openai_chat import DIALECT
from providers.errors import Interrupted, ProviderError
from providers.neutral import ChatRequest, Event, PartDelta, PartStart, ToolCallPart, collect, replay

GOLDEN = Path(__file__).parents[2] / "golden" / "openai_chat"
REQUESTS = sorted(path.name.removesuffix(".neutral.json") for path in GOLDEN.glob("*.neutral.json"))
STREAMS = sorted(path.stem for path in GOLDEN.glob("*.sse"))


def plain(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def decoded(data: bytes, cuts: list[int] | None = None) -> list[Event]:
    decoder = DIALECT.event_decoder()
    events = [event for piece in sliced(data, cuts or []) for event in decoder.feed(piece)]
    return [*events, *decoder.close()]


def sliced(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        yield data[start:end]


def test_the_cases_are_there() -> None:
    assert len(REQUESTS) >= 5
    assert len(STREAMS) >= 10


@pytest.mark.parametrize("case", REQUESTS)
def test_request_in(case: str) -> None:
    request = DIALECT.decode_request((GOLDEN / f"{case}.json").read_bytes())
    expected = (GOLDEN / f"{case}.neutral.json").read_bytes()
    assert plain(request) == json.loads(expected)
    assert msgspec.json.decode(expected, type=ChatRequest) == request


@pytest.mark.parametrize("case", REQUESTS)
def test_request_out(case: str) -> None:
    request = msgspec.json.decode((GOLDEN / f"{case}.neutral.json").read_bytes(), type=ChatRequest)
    encoded = DIALECT.encode_request(request, model="target", strict=False)
    assert plain(encoded) == json.loads((GOLDEN / f"{case}.openai_chat.json").read_bytes())


@pytest.mark.parametrize("case", STREAMS)
def test_stream_in(case: str) -> None:
    events = decoded((GOLDEN / f"{case}.sse").read_bytes())
    assert plain(events) == json.loads((GOLDEN / f"{case}.events.json").read_bytes())
    collect(events)


@pytest.mark.parametrize("case", STREAMS)
@given(cuts=st.lists(st.integers(0, 1 << 16), max_size=12))
def test_slicing_changes_no_event(case: str, cuts: list[int]) -> None:
    data = (GOLDEN / f"{case}.sse").read_bytes()
    assert decoded(data, cuts) == decoded(data)


@pytest.mark.parametrize("case", STREAMS)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_byte_by_byte_with_every_line_end(case: str, line_end: bytes) -> None:
    data = (GOLDEN / f"{case}.sse").read_bytes().replace(b"\r\n", b"\n")
    assert decoded(data.replace(b"\n", line_end), list(range(len(data) * 2))) == decoded(data)


@pytest.mark.parametrize("case", STREAMS)
@pytest.mark.parametrize("asked", [False, True])
@given(cuts=st.lists(st.integers(0, 1 << 16), max_size=12))
def test_the_tap_lets_all_through_but_the_usage_chunk(case: str, asked: bool, cuts: list[int]) -> None:
    data = (GOLDEN / f"{case}.sse").read_bytes()
    tap = DIALECT.tap(asked)
    seen = b"".join([*(tap.feed(piece) for piece in sliced(data, cuts)), tap.close()])
    held = b"".join(f for f in data.split(b"\n\n") if b'"choices": []' in f and b'"usage": {"' in f)
    expected = data if asked or not held else data.replace(held + b"\n\n", b"")
    assert seen == expected
    decoder = DIALECT.event_decoder()
    events = [*decoder.feed(data), *decoder.close()]
    assert tap.usage == decoder.usage
    assert tap.finish_reason is not None
    assert tap.started
    texts = [event.text for event in events if isinstance(event, PartDelta)]
    starts = [event.part for event in events if isinstance(event, PartStart)]
    names = [part.name for part in starts if isinstance(part, ToolCallPart)]
    assert tap.output_bytes == sum(len(text.encode()) for text in texts + names)


@pytest.mark.parametrize("case", STREAMS)
def test_every_cut_is_an_interruption(case: str) -> None:
    """A stream that ends anywhere before its last finish reason is not whole, for the decoder and for the tap."""
    data = (GOLDEN / f"{case}.sse").read_bytes()
    reasons = [data.rfind(b'"finish_reason": "')]
    end = data.find(b"\n", reasons[-1])
    for cut in range(0, end - 3, 7):
        with pytest.raises(Interrupted):
            decoded(data[:cut])
        tap = DIALECT.tap(True)
        tap.feed(data[:cut])
        with pytest.raises(ProviderError):
            tap.close()


@pytest.mark.parametrize("case", STREAMS)
@pytest.mark.parametrize("usage", [False, True])
def test_encode_after_decode_says_the_same(case: str, usage: bool) -> None:
    """Our own writing of each stream, read back, is the same answer."""
    response = collect(decoded((GOLDEN / f"{case}.sse").read_bytes()))
    request = ChatRequest("m", (), stream=True, include_usage=usage)
    encoder = DIALECT.event_encoder(request)
    again = collect(decoded(encoder.encode(replay(response)) + encoder.close()))
    if not usage:
        again = msgspec.structs.replace(again, usage=response.usage)
    assert normal(again) == normal(response)
    whole = DIALECT.decode_response(DIALECT.encode_response(response, request))
    assert sorted(plain(normal(whole)["parts"]), key=str) == sorted(plain(normal(response)["parts"]), key=str)


def normal(response: Any) -> dict[str, Any]:
    """What must survive: native reasons and the prefix of the id are ours to write."""
    return {
        "id": response.id.removeprefix("chatcmpl-"),
        "model": response.model,
        "created": response.created,
        "usage": response.usage,
        "parts": [candidate.content for candidate in response.candidates],
        "reasons": [candidate.finish_reason for candidate in response.candidates],
        "logprobs": [candidate.logprobs for candidate in response.candidates],
    }


def test_every_single_cut_of_a_crlf_stream_lets_all_of_it_through() -> None:
    data = (GOLDEN / "gemini_tools_without_index.sse").read_bytes()
    for cut in range(len(data) + 1):
        tap = DIALECT.tap(True)
        assert tap.feed(data[:cut]) + tap.feed(data[cut:]) + tap.close() == data, cut
