"""What holds for any request, any answer and any bytes, of Messages and Converse alike."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from providers.dialects import anthropic_messages
from providers.dialects.base import Dialect
from providers.dialects.bedrock_converse import BedrockConverse
from providers.errors import BadRequest, ProviderError
from providers.neutral import ChatRequest, ChatResponse, collect, replay
from providers.wire import eventstream, sse
from tests.emulators.anthropic import problem_of as anthropic_problem
from tests.emulators.bedrock import problem_of as bedrock_problem
from tests.providers.anthropic.strategies import requests, responses

MESSAGES = anthropic_messages.DIALECT
CONVERSE: Dialect = BedrockConverse("msg_1", "model")
DIALECTS = {"anthropic_messages": MESSAGES, "bedrock_converse": CONVERSE}
GOLDEN = {
    name: [
        path.read_bytes()
        for path in sorted((Path(__file__).parents[2] / "golden" / name).glob("*.json"))
        if path.name.count(".") == 1
    ]
    for name in DIALECTS
}
NOVA = "amazon.nova-pro-v1:0"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(requests("anthropic_messages"))
def test_a_messages_request_survives(request: ChatRequest) -> None:
    body = MESSAGES.encode_request(request, model="claude-3-opus").body
    assert MESSAGES.decode_request(msgspec.json.encode(body), model="alias") == request
    del body["model"]
    problem = anthropic_problem(json.loads(msgspec.json.encode(body)), in_cloud=True)
    assert problem is None or "tool_use" in problem or "signature" in problem  # random calls have no results


@given(requests("bedrock_converse"))
def test_a_converse_request_survives(request: ChatRequest) -> None:
    # Converse takes no model and no stream, and marks a cache inside a tool's result behind it.
    body = CONVERSE.encode_request(request, model="mistral.x").body
    again = CONVERSE.decode_request(msgspec.json.encode(body), model="alias", stream=request.stream)
    assert again == request
    problem = bedrock_problem(json.loads(msgspec.json.encode(body)), NOVA)
    assert problem is None, problem


@given(requests("anthropic_messages"))
def test_each_request_can_be_said_in_the_other_dialect(request: ChatRequest) -> None:
    body = CONVERSE.encode_request(request, model=NOVA, strict=False).body
    assert bedrock_problem(json.loads(msgspec.json.encode(body)), NOVA) is None
    again = CONVERSE.decode_request(msgspec.json.encode(body), model="alias", stream=request.stream)
    assert [message.role for message in again.messages] == [message.role for message in request.messages]


@pytest.mark.parametrize("name", DIALECTS)
@given(data=st.data())
def test_an_answer_survives_whole_and_streamed(name: str, data: Any) -> None:
    dialect = DIALECTS[name]
    response: ChatResponse = data.draw(responses(name))
    request = ChatRequest("alias", (), stream=True)
    encoder = dialect.event_encoder(request)
    stream = encoder.encode(replay(response)) + encoder.close()
    # Drawn without looking at the stream: Converse pads its frames at random.
    cuts = sorted(cut % (len(stream) + 1) for cut in data.draw(st.lists(st.integers(0, 1 << 16), max_size=6)))
    decoder = dialect.event_decoder()
    events = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events += list(decoder.feed(stream[start:end]))
    for found in (
        collect([*events, *decoder.close()]),
        dialect.decode_response(dialect.encode_response(response, request)),
    ):
        assert found.candidates[0].content == response.candidates[0].content
        assert found.candidates[0].finish_reason == response.candidates[0].finish_reason
        ours = replace(found.usage, cache_write_1h_tokens=found.usage.cache_write_1h_tokens or 0)
        told = replace(response.usage, cache_write_1h_tokens=response.usage.cache_write_1h_tokens or 0)
        if found.usage.cache_write_1h_tokens is None:  # a Messages stream tells the split at its start alone
            ours = replace(ours, cache_write_1h_tokens=told.cache_write_1h_tokens)
        assert ours == told


@pytest.mark.parametrize("name", DIALECTS)
@given(body=JSON)
def test_any_json_is_a_request_or_a_bad_one(name: str, body: Any) -> None:
    with contextlib.suppress(BadRequest):
        DIALECTS[name].decode_request(json.dumps(body).encode(), model="m")


@pytest.mark.parametrize("name", DIALECTS)
@given(data=st.data())
def test_a_request_with_one_wrong_value_is_bad_by_name_or_still_good(name: str, data: Any) -> None:
    dialect = DIALECTS[name]
    body = json.loads(data.draw(st.sampled_from(GOLDEN[name])))
    spot = body
    while True:
        keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(spot[key], dict | list) and spot[key] and data.draw(st.booleans()):
            spot = spot[key]
            continue
        spot[key] = data.draw(JSON)
        break
    with contextlib.suppress(BadRequest):
        decoded = dialect.decode_request(json.dumps(body).encode(), model="m", stream=False)
        with contextlib.suppress(ProviderError):
            dialect.encode_request(decoded, model="claude-opus-4-6", strict=False)


@pytest.mark.parametrize("name", DIALECTS)
@given(data=st.binary(max_size=500))
def test_any_bytes_decode_or_fail_as_our_own_kind(name: str, data: bytes) -> None:
    dialect = DIALECTS[name]
    for read in (
        lambda: list(dialect.event_decoder().feed(data)),
        lambda: dialect.tap(True).feed(data),
        lambda: dialect.decode_response(data),
        lambda: dialect.decode_request(data, model="m"),
    ):
        with contextlib.suppress(ProviderError):
            read()
    assert isinstance(dialect.decode_error(503, {}, data), ProviderError)


@pytest.mark.parametrize("name", DIALECTS)
@given(data=st.data())
def test_a_stream_with_damaged_events_fails_as_our_own_kind(name: str, data: Any) -> None:
    """Whole frames (checksums right) whose JSON is any JSON."""
    dialect, pieces = DIALECTS[name], []
    names = ("message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta")
    converse = ("messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata")
    members = st.sampled_from(
        ["index", "delta", "content_block", "message", "usage", "contentBlockIndex", "start", "stopReason"]
    )
    payloads = st.dictionaries(members, JSON | st.just({"type": "text", "text": ""}), max_size=4)
    for _ in range(data.draw(st.integers(1, 6))):
        payload = data.draw(payloads)
        if name == "anthropic_messages":
            kind = data.draw(st.sampled_from(names))
            pieces.append(sse.encode(json.dumps(payload | {"type": kind}).encode(), kind))
        else:
            kind = data.draw(st.sampled_from(converse))
            pieces.append(eventstream.encode_event(kind, json.dumps(payload).encode()))
    decoder, tap = dialect.event_decoder(), dialect.tap(True)
    with contextlib.suppress(ProviderError):
        list(decoder.feed(b"".join(pieces)))
    with contextlib.suppress(ProviderError):
        tap.feed(b"".join(pieces))


@pytest.mark.parametrize("name", DIALECTS)
def test_a_peer_that_never_ends_a_frame_fills_no_memory(name: str) -> None:
    decoder = DIALECTS[name].event_decoder()
    piece = b"data: " + b"x" * (1 << 20) if name == "anthropic_messages" else b"\0\0\0" * (1 << 18)
    tracemalloc.start()
    try:
        with pytest.raises(ProviderError):
            for _ in range(64):
                list(decoder.feed(piece))
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()
