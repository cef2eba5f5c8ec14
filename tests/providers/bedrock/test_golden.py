"""The golden cases of Bedrock Converse, and its streams under every slicing. Streams are kept as one JSON frame a line;
the emulator's own encoder, which is not ours, makes bytes of them."""

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

from providers.dialects import anthropic_messages
from providers.dialects.bedrock_converse import DIALECT, BedrockConverse, decode_token_count, encode_count_request
from providers.errors import BadRequest, Interrupted, Unsupported
from providers.neutral import ChatRequest, Event, PartDelta, PartStart, ToolCallPart, collect, replay
from tests.emulators.bedrock import event, problem_of

GOLDEN = Path(__file__).parents[2] / "golden" / "bedrock_converse"
REQUESTS = sorted(path.name.removesuffix(".neutral.json") for path in GOLDEN.glob("*.neutral.json"))
STREAMS = sorted(path.name.removesuffix(".frames.jsonl") for path in GOLDEN.glob("*.frames.jsonl"))
TARGETS = {target.name: target for target in (DIALECT, anthropic_messages.DIALECT)}
CLAUDE = "anthropic.claude-sonnet-4-5-20250929-v1:0"


def plain(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def golden(name: str) -> Any:
    return json.loads((GOLDEN / name).read_bytes())


def frames(case: str) -> list[bytes]:
    lines = (GOLDEN / f"{case}.frames.jsonl").read_text().split("\n")
    return [event(line["event"], line["payload"]) for line in map(json.loads, filter(None, lines))]


def decoded(data: bytes, cuts: list[int] | None = None) -> list[Event]:
    decoder = BedrockConverse("id", "model").event_decoder()
    events = [event for piece in sliced(data, cuts or []) for event in decoder.feed(piece)]
    return [*events, *decoder.close()]


def sliced(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        yield data[start:end]


def test_the_cases_are_there() -> None:
    assert len(REQUESTS) >= 4
    assert len(STREAMS) >= 6


@pytest.mark.parametrize("case", REQUESTS)
def test_request_in(case: str) -> None:
    request = DIALECT.decode_request((GOLDEN / f"{case}.json").read_bytes(), model="alias", stream=False)
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


@pytest.mark.parametrize("directory", ["bedrock_converse", "anthropic_messages"])
def test_botocores_validator_takes_every_body_we_write(directory: str) -> None:
    checked = 0
    for path in (GOLDEN.parent / directory).glob("*.bedrock_converse.json"):
        if (body := json.loads(path.read_bytes()).get("body")) is not None:
            problem = problem_of(body, CLAUDE)
            assert problem is None or "must alternate" in problem, path.name
            checked += 1
    assert checked >= 3


def test_counting_asks_the_same_question() -> None:
    request = msgspec.convert(golden("everything.neutral.json"), ChatRequest)
    body = encode_count_request(request, model=CLAUDE, strict=False).body["input"]["converse"]
    whole = golden("everything.bedrock_converse.json")["body"]
    assert body == {name: whole[name] for name in body}
    assert "inferenceConfig" not in body
    assert decode_token_count(b'{"inputTokens": 7}') == 7
    with pytest.raises(BadRequest):
        decode_token_count(b'{"tokens": 7}')


@pytest.mark.parametrize("case", STREAMS)
def test_stream_in(case: str) -> None:
    events = decoded(b"".join(frames(case)))
    assert plain(events) == golden(f"{case}.events.json")
    collect(events)


@pytest.mark.parametrize("case", STREAMS)
@given(cuts=st.lists(st.integers(0, 1 << 16), max_size=12))
def test_slicing_changes_no_event(case: str, cuts: list[int]) -> None:
    data = b"".join(frames(case))
    assert decoded(data, cuts) == decoded(data)


@pytest.mark.parametrize("case", STREAMS)
@given(cuts=st.lists(st.integers(0, 1 << 16), max_size=12))
def test_the_tap_lets_all_through(case: str, cuts: list[int]) -> None:
    data = b"".join(frames(case))
    tap, decoder = DIALECT.tap(False), DIALECT.event_decoder()
    assert b"".join([*(tap.feed(piece) for piece in sliced(data, cuts)), tap.close()]) == data
    events = [*decoder.feed(data), *decoder.close()]
    assert tap.usage == decoder.usage
    assert tap.finish_reason == collect(events).candidates[0].finish_reason
    texts = [event.text for event in events if isinstance(event, PartDelta) and event.text != "{}"]
    starts = [event.part for event in events if isinstance(event, PartStart)]
    names = [part.name for part in starts if isinstance(part, ToolCallPart) and "." not in part.name]
    counted = sum(len(text.encode()) for text in texts + names)
    assert counted <= tap.output_bytes <= counted + 20  # a narrowed name is a little longer


@pytest.mark.parametrize("case", STREAMS)
def test_every_cut_is_an_interruption(case: str) -> None:
    """A stream that ends anywhere before messageStop is not whole, nor is one whose last frame is torn."""
    pieces = frames(case)
    for kept in range(len(pieces) - 2):
        for tail in (b"", pieces[kept][:20]):
            data = b"".join(pieces[:kept]) + tail
            with pytest.raises(Interrupted):
                decoded(data)
            tap = DIALECT.tap(True)
            tap.feed(data)
            with pytest.raises(Interrupted):
                tap.close()
    torn = b"".join(pieces)[:-1]
    with pytest.raises(Interrupted):
        decoded(torn)


@pytest.mark.parametrize("case", STREAMS)
def test_encode_after_decode_says_the_same(case: str) -> None:
    """Our own writing of each stream, read back, is the same answer."""
    response = collect(decoded(b"".join(frames(case))))
    request = ChatRequest("m", (), stream=True)
    encoder = DIALECT.event_encoder(request)
    again = collect(decoded(encoder.encode(replay(response)) + encoder.close()))
    assert again == msgspec.structs.replace(response, candidates=again.candidates)
    ours, theirs = again.candidates[0], response.candidates[0]
    assert (ours.content, ours.finish_reason, ours.stop_sequence) == (
        theirs.content,
        theirs.finish_reason,
        theirs.stop_sequence,
    )
    whole = BedrockConverse("id", "model").decode_response(DIALECT.encode_response(response, request))
    assert whole.usage == response.usage
    assert plain(whole.candidates[0].content) == _normal_arguments(plain(theirs.content))


def _normal_arguments(parts: Any) -> Any:
    """A whole message holds arguments as an object, which forgets how its text was spaced."""
    for part in parts:
        if part["type"] == "tool_call":
            part["arguments"] = msgspec.json.encode(json.loads(part["arguments"])).decode()
    return parts
