"""The golden cases of Anthropic Messages, and its streams under every slicing."""

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

from providers.dialects import anthropic_messages, bedrock_converse
from providers.dialects.anthropic_messages import DIALECT
from providers.errors import Interrupted, Unsupported
from providers.neutral import (
    ChatRequest,
    Event,
    Part,
    PartDelta,
    PartStart,
    ToolCallPart,
    ToolResultPart,
    collect,
    replay,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "anthropic_messages"
REQUESTS = sorted(path.name.removesuffix(".neutral.json") for path in GOLDEN.glob("*.neutral.json"))
STREAMS = sorted(path.stem for path in GOLDEN.glob("*.sse"))
TARGETS = {target.name: target for target in (DIALECT, bedrock_converse.DIALECT)}
CLAUDE = "anthropic.claude-sonnet-4-5-20250929-v1:0"


def plain(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def golden(name: str) -> Any:
    return json.loads((GOLDEN / name).read_bytes())


def decoded(data: bytes, cuts: list[int] | None = None) -> list[Event]:
    decoder = DIALECT.event_decoder()
    events = [event for piece in sliced(data, cuts or []) for event in decoder.feed(piece)]
    return [*events, *decoder.close()]


def sliced(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        yield data[start:end]


def test_the_cases_are_there() -> None:
    assert len(REQUESTS) >= 6
    assert len(STREAMS) >= 7


@pytest.mark.parametrize("case", REQUESTS)
def test_request_in(case: str) -> None:
    request = DIALECT.decode_request((GOLDEN / f"{case}.json").read_bytes())
    assert plain(request) == golden(f"{case}.neutral.json")
    assert msgspec.convert(golden(f"{case}.neutral.json"), ChatRequest) == request


@pytest.mark.parametrize("case", REQUESTS)
@pytest.mark.parametrize("target", TARGETS)
def test_request_out(case: str, target: str) -> None:
    request = msgspec.convert(golden(f"{case}.neutral.json"), ChatRequest)
    try:
        found = plain(TARGETS[target].encode_request(request, model=CLAUDE, strict=False))
    except Unsupported as refusal:
        found = {"refused": list(refusal.features)}
    assert found == golden(f"{case}.{target}.json")


@pytest.mark.parametrize("case", REQUESTS)
def test_our_own_words_mean_the_same(case: str) -> None:
    """Decoding what we encode gives the request again, but for what the model's generation changes."""
    request = msgspec.convert(golden(f"{case}.neutral.json"), ChatRequest)
    body = DIALECT.encode_request(request, model="claude-opus-4-6").body
    again = DIALECT.decode_request(msgspec.json.encode(body), model=request.model)
    assert again == request


@pytest.mark.parametrize("case", REQUESTS)
def test_counting_asks_the_same_question(case: str) -> None:
    raw = golden(f"{case}.json")
    del raw["max_tokens"]
    request = anthropic_messages.decode_count_request(json.dumps(raw).encode())
    body = anthropic_messages.encode_count_request(request, model=CLAUDE, strict=False).body
    assert body["messages"] == golden(f"{case}.anthropic_messages.json")["body"]["messages"]
    assert "max_tokens" not in body


@pytest.mark.parametrize("case", STREAMS)
def test_stream_in(case: str) -> None:
    events = decoded((GOLDEN / f"{case}.sse").read_bytes())
    assert plain(events) == golden(f"{case}.events.json")
    collect(events)


@pytest.mark.parametrize("case", STREAMS)
@given(cuts=st.lists(st.integers(0, 1 << 16), max_size=12))
def test_slicing_changes_no_event(case: str, cuts: list[int]) -> None:
    data = (GOLDEN / f"{case}.sse").read_bytes()
    assert decoded(data, cuts) == decoded(data)


@pytest.mark.parametrize("case", STREAMS)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_byte_by_byte_with_every_line_end(case: str, line_end: bytes) -> None:
    data = (GOLDEN / f"{case}.sse").read_bytes()
    assert decoded(data.replace(b"\n", line_end), list(range(len(data) * 2))) == decoded(data)


@pytest.mark.parametrize("case", STREAMS)
@given(cuts=st.lists(st.integers(0, 1 << 16), max_size=12))
def test_the_tap_lets_all_through(case: str, cuts: list[int]) -> None:
    data = (GOLDEN / f"{case}.sse").read_bytes()
    tap, decoder = DIALECT.tap(False), DIALECT.event_decoder()
    assert b"".join([*(tap.feed(piece) for piece in sliced(data, cuts)), tap.close()]) == data
    events = [*decoder.feed(data), *decoder.close()]
    assert tap.usage == decoder.usage
    assert tap.finish_reason == collect(events).candidates[0].finish_reason
    texts = [event.text for event in events if isinstance(event, PartDelta) and event.text != "{}"]
    starts = [event.part for event in events if isinstance(event, PartStart)]
    names = [part.name for part in starts if isinstance(part, ToolCallPart)]
    assert tap.output_bytes == sum(len(text.encode()) for text in texts + names)


@pytest.mark.parametrize("case", STREAMS)
def test_every_cut_is_an_interruption(case: str) -> None:
    """A stream that ends anywhere before its stop reason is not whole, for the decoder and for the tap."""
    data = (GOLDEN / f"{case}.sse").read_bytes()
    end = data.index(b"event: message_delta")
    for cut in range(0, end, 7):
        with pytest.raises(Interrupted):
            decoded(data[: data.rfind(b"\n\n", 0, cut) + 2 if cut else 0])
        tap = DIALECT.tap(True)
        tap.feed(data[: data.rfind(b"\n\n", 0, cut) + 2 if cut else 0])
        with pytest.raises(Interrupted):
            tap.close()


@pytest.mark.parametrize("case", STREAMS)
def test_encode_after_decode_says_the_same(case: str) -> None:
    """Our own writing of each stream, read back, is the same answer, but for what ran at the provider."""
    response = collect(decoded((GOLDEN / f"{case}.sse").read_bytes()))
    request = ChatRequest("m", (), stream=True)
    encoder = DIALECT.event_encoder(request)
    again = collect(decoded(encoder.encode(replay(response)) + encoder.close()))
    whole = DIALECT.decode_response(DIALECT.encode_response(response, request))
    for found in (again, whole):
        assert (found.id, found.model) == (response.id, "m"), "the model goes by the name that was asked for"
        assert msgspec.structs.replace(found.usage, service_tier=None, cache_write_1h_tokens=None) == (
            msgspec.structs.replace(response.usage, service_tier=None, cache_write_1h_tokens=None)
        )
        ours, theirs = found.candidates[0], response.candidates[0]
        assert ours.finish_reason == theirs.finish_reason
        assert ours.stop_sequence == theirs.stop_sequence
        kept = tuple(part for part in theirs.content if not _ran_at_the_provider(part))
        if found is whole:
            assert plain(ours.content) == _normal_arguments(plain(kept))
        else:
            assert ours.content == kept


def _ran_at_the_provider(part: Part) -> bool:
    return isinstance(part, ToolResultPart) or (isinstance(part, ToolCallPart) and part.kind == "server")


def _normal_arguments(parts: Any) -> Any:
    """A whole message holds arguments as an object, which forgets how its text was spaced."""
    for part in parts:
        if part["type"] == "tool_call":
            part["arguments"] = msgspec.json.encode(json.loads(part["arguments"])).decode()
    return parts
