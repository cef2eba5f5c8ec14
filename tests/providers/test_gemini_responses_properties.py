"""What must hold for any input of the Gemini and Responses dialects: slicing, round trips, and no crash on rubbish."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as with_settings
from hypothesis import strategies as st

from providers.dialects import gemini, openai_responses
from providers.dialects.gemini import counting, embeddings
from providers.errors import BadRequest, Interrupted, ProviderError, Unsupported
from providers.neutral import (
    CachePoint,
    ChatRequest,
    ChatResponse,
    FilePart,
    ImagePart,
    Message,
    ReasoningPart,
    RefusalPart,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
    Usage,
    collect,
    replay,
)
from providers.neutral.request import Reasoning
from providers.neutral.response import Candidate

DIALECTS: dict[str, Any] = {"gemini": gemini.DIALECT, "openai_responses": openai_responses.DIALECT}
EITHER = pytest.mark.parametrize("name", list(DIALECTS))

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
words = st.text("abcdefgh_0123456789", min_size=1, max_size=12)
objects = st.dictionaries(words, st.one_of(st.integers(-9, 9), text, st.booleans(), st.none()), max_size=3)
arguments = objects.map(lambda found: json.dumps(found, separators=(",", ":"), ensure_ascii=False))
base64_text = st.sampled_from(["AAAA", "c2lnbmF0dXJl", "+/+/"])
counts = st.integers(0, 10**6)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    thought = draw(counts)
    return Usage(
        input_tokens=draw(counts),
        output_tokens=thought + draw(counts),
        cache_read_tokens=draw(st.integers(1, 9)),
        reasoning_tokens=thought,
    )


def answer_parts(dialect: str) -> st.SearchStrategy[Any]:
    """Parts that the dialect can show a client and read back."""
    thought = st.builds(
        ReasoningPart,
        text=text,
        signature=base64_text,
        dialect=st.sampled_from(["anthropic_messages", "bedrock_converse"]),
    )
    call = st.builds(
        ToolCallPart, id=words, name=words, arguments=arguments, signature=st.one_of(st.none(), base64_text)
    )
    if dialect == "gemini":
        return st.one_of(st.builds(TextPart, text=text, signature=base64_text), thought, call)
    return st.one_of(st.builds(TextPart, text=text), st.builds(RefusalPart, text=text), thought, call.map(unsigned))


def unsigned(call: ToolCallPart) -> ToolCallPart:
    return ToolCallPart(call.id, call.name, call.arguments)


@st.composite
def answers(draw: st.DrawFn, dialect: str) -> ChatResponse:
    content = tuple(draw(st.lists(answer_parts(dialect), min_size=1, max_size=4)))
    called = any(isinstance(part, ToolCallPart) for part in content)
    reason = "tool_calls" if called else draw(st.sampled_from(["stop", "length", "content_filter"]))
    return ChatResponse("resp_1", "model", (Candidate(content, reason),), draw(usages()), 1_700_000_000)


def comparable(response: ChatResponse) -> Any:
    """What a round trip keeps: ids, reasons in other words and the time are the dialect's own affair."""
    candidate = response.candidates[0]
    used = response.usage
    kept = (used.input_tokens, used.output_tokens, used.cache_read_tokens, used.reasoning_tokens or 0)
    return candidate.content, candidate.finish_reason, kept


REQUEST = ChatRequest("m", (Message("user", (TextPart("hi"),)),), stream=True)


@EITHER
@with_settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whole_answers_come_back(name: str, data: st.DataObject) -> None:
    dialect = DIALECTS[name]
    response = data.draw(answers(name))
    assert comparable(dialect.decode_response(dialect.encode_response(response, REQUEST))) == comparable(response)


@EITHER
@with_settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_streams_come_back_however_they_are_sliced(name: str, data: st.DataObject) -> None:
    dialect = DIALECTS[name]
    response = data.draw(answers(name))
    encoder = dialect.event_encoder(REQUEST)
    stream = encoder.encode(replay(response)) + encoder.close()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(stream) - 1)), max_size=12)))
    slices = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole = _events(dialect, [stream])
    assert _events(dialect, slices) == whole
    assert comparable(collect(whole)) == comparable(response)
    taps = []
    for pieces in ([stream], slices):
        tap = dialect.tap(True)
        out = b"".join(tap.feed(piece) for piece in pieces) + tap.close()
        assert out == stream
        taps.append((tap.usage, tap.finish_reason, tap.started, tap.output_bytes))
    assert taps[0] == taps[1]
    assert taps[0][1] == response.candidates[0].finish_reason
    assert taps[0][0].output_tokens == response.usage.output_tokens


def _events(dialect: Any, slices: list[bytes]) -> list[Any]:
    decoder = dialect.event_decoder()
    found = [event for piece in slices for event in decoder.feed(piece)]
    return [*found, *decoder.close()]


def test_a_line_end_cut_in_two_loses_no_byte() -> None:
    frame = b'data: {"candidates":[{"finishReason":"STOP"}]}\r\n\r\n'
    tap = gemini.DIALECT.tap(True)
    assert tap.feed(frame[:-1]) + tap.feed(frame[-1:]) + tap.close() == frame


@EITHER
@with_settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_stream_cut_anywhere_is_never_taken_for_whole(name: str, data: st.DataObject) -> None:
    dialect = DIALECTS[name]
    encoder = dialect.event_encoder(REQUEST)
    stream = encoder.encode(replay(data.draw(answers(name)))) + encoder.close()
    last_frame = len(stream.rstrip().rsplit(b"\n\n" if name == "openai_responses" else b"\r\n\r\n", 1)[0])
    cut = data.draw(st.integers(0, last_frame))
    for watcher in (dialect.event_decoder(), dialect.tap(True)):
        with pytest.raises(ProviderError) as caught:
            list(watcher.feed(stream[:cut]))
            list(watcher.close())
        assert isinstance(caught.value, Interrupted) or "not a" in caught.value.message


# --- requests ---------------------------------------------------------------------------------------------------------


def user_parts(dialect: str) -> st.SearchStrategy[Any]:
    inline = st.builds(ImagePart, media_type=st.just("image/png"), data=base64_text)
    if dialect == "openai_responses":
        inline = st.builds(
            ImagePart,
            media_type=st.just("image/png"),
            data=base64_text,
            detail=st.sampled_from(["auto", "low", "high"]),
        )
    pdf = st.builds(FilePart, media_type=st.just("application/pdf"), data=base64_text)
    if dialect == "openai_responses":
        pdf = st.builds(FilePart, media_type=st.just("application/pdf"), data=base64_text, name=words)
    return st.one_of(st.builds(TextPart, text=text), inline, pdf)


@st.composite
def requests(draw: st.DrawFn, dialect: str) -> ChatRequest:
    """Requests that the dialect says in full: what it reads back is what was meant."""
    messages = [Message("system", (TextPart(draw(text)),))] if draw(st.booleans()) else []
    messages.append(Message("user", tuple(draw(st.lists(user_parts(dialect), min_size=1, max_size=3)))))
    if draw(st.booleans()):
        ids = draw(st.lists(words, min_size=1, max_size=3, unique=True))
        names = [draw(words) for _ in ids]
        signature = st.one_of(st.none(), base64_text) if dialect == "gemini" else st.none()
        calls = tuple(
            ToolCallPart(i, n, draw(arguments), signature=draw(signature)) for i, n in zip(ids, names, strict=True)
        )
        results = tuple(
            ToolResultPart(
                i, (TextPart(draw(words)),), name=n if dialect == "gemini" else None, is_error=dialect == "gemini"
            )
            for i, n in zip(ids, names, strict=True)
        )
        messages += [Message("assistant", (TextPart(draw(text)), *calls)), Message("user", results)]
    schema = {"type": "object", "properties": {"x": {"type": "string"}}}
    tool_names = draw(st.lists(words, max_size=3, unique=True))
    choice = None
    if tool_names:
        choice = draw(
            st.sampled_from([None, ToolChoice("none"), ToolChoice("required"), ToolChoice("named", tool_names[0])])
        )
    strict = None if dialect == "gemini" else False
    json_form = ResponseFormat("json_schema", schema, name=None if dialect == "gemini" else "shape")
    reasoning: list[Reasoning | None] = [None, Reasoning(budget_tokens=100, summary="auto")]
    if dialect == "openai_responses":
        reasoning = [None, Reasoning(effort="low", summary="auto")]
    return ChatRequest(
        "m",
        tuple(messages),
        tools=tuple(Tool(n, draw(st.one_of(st.none(), text)), schema, strict) for n in tool_names),
        tool_choice=choice,
        response_format=draw(st.sampled_from([None, ResponseFormat("json_object"), json_form])),
        reasoning=draw(st.sampled_from(reasoning)),
        max_output_tokens=draw(st.one_of(st.none(), st.integers(1, 10**6))),
        temperature=draw(st.one_of(st.none(), st.sampled_from([0.0, 0.5, 2.0]))),
        top_p=draw(st.one_of(st.none(), st.sampled_from([0.1, 1.0]))),
        stop=("END",) if dialect == "gemini" and draw(st.booleans()) else (),
        seed=7 if dialect == "gemini" and draw(st.booleans()) else None,
        include_usage=True,
    )


@EITHER
@with_settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_requests_come_back(name: str, data: st.DataObject) -> None:
    dialect = DIALECTS[name]
    request = data.draw(requests(name))
    encoded = dialect.encode_request(request, model="m", strict=True)
    again = dialect.decode_request(json.dumps(encoded.body).encode(), model="m", stream=False)
    state = {"store", "include"}
    ours = {key: value for key, value in again.extensions.get(name, {}).items() if key not in state}
    assert ours == {}
    assert ChatRequest(**{f: getattr(again, f) for f in again.__struct_fields__} | {"extensions": {}}) == request
    assert encoded.dropped == ()


@EITHER
@with_settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_neutral_request_is_encoded_or_refused_by_name(name: str, data: st.DataObject) -> None:
    other = "gemini" if name == "openai_responses" else "openai_responses"
    request = data.draw(st.one_of(requests(name), requests(other), st.just(EVERYTHING)))
    for strict in (True, False):
        try:
            json.dumps(DIALECTS[name].encode_request(request, model="gemini-3-pro", strict=strict).body)
        except Unsupported as error:
            assert error.features


EVERYTHING = ChatRequest(
    "m",
    (
        Message("developer", (TextPart("d", cache=CachePoint("1h")),), name="dev"),
        Message("user", (TextPart("u"), FilePart(file_id="file-1"))),
        Message(
            "assistant",
            (
                ReasoningPart("t", "s", dialect="anthropic_messages"),
                ReasoningPart(redacted="r", dialect="openai_responses", id="rs_1"),
                ToolCallPart("1", "web_search", "{}", "server"),
                ToolCallPart("2", "custom", "free text", "custom"),
                RefusalPart("no"),
            ),
        ),
        Message("user", (ToolResultPart("2", (TextPart("x"), ImagePart(url="https://example.org/a.png"))),)),
        Message("system", (TextPart("late"),)),
    ),
    tools=(Tool("hosted", dialect="anthropic_messages", raw={"type": "bash"}), Tool("f", cache=CachePoint())),
    tool_choice=ToolChoice("auto", allowed=("f",)),
    parallel_tool_calls=False,
    candidates=3,
    logit_bias={"1": 1.0},
    top_k=3,
    min_p=0.1,
    user="u",
    metadata={"a": "b"},
    service_tier="scale",
    extensions={"anthropic_messages": {"context_management": {}}},
)


# --- rubbish ----------------------------------------------------------------------------------------------------------

KEYS = re.findall(
    r"\w+",
    """
    type role content parts text input output item response delta candidates finishReason contents tools
    functionDeclarations functionCall functionResponse args name id usage usageMetadata error code status message
    index summary call_id arguments output_index content_index annotations model generationConfig inlineData mimeType
    data thought thoughtSignature groundingMetadata promptFeedback reasoning text format schema tool_choice toolConfig
    functionCallingConfig mode details request requests
    """,
)
KINDS = re.findall(
    r"\S+",
    """
    response.created response.output_item.added response.output_item.done response.output_text.delta
    response.function_call_arguments.delta response.completed response.failed error response.reasoning_text.delta
    response.brand_new
    """,
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)),
    max_leaves=12,
)
kinds = st.sampled_from(KINDS)


@EITHER
@with_settings(max_examples=150, deadline=None)
@given(value=json_values, kind=kinds, noise=st.binary(max_size=20))
def test_rubbish_is_refused_and_nothing_else_happens(name: str, value: Any, kind: str, noise: bytes) -> None:
    dialect = DIALECTS[name]
    if isinstance(value, dict):
        value = {"type": kind, **value}
    body = json.dumps(value).encode()
    for data in (body, noise, body + noise, b"[" * 2000):
        _only(BadRequest, lambda data=data: dialect.decode_request(data, model="m", stream=False))
        _only(ProviderError, lambda data=data: dialect.decode_response(data))
        assert isinstance(dialect.decode_error(400, {}, data), ProviderError)
        for watcher in (dialect.event_decoder(), dialect.tap(True)):
            for frame in (b"data: " + data + b"\n\n", data):
                _only(ProviderError, lambda w=watcher, f=frame: list(w.feed(f)))
            _only(ProviderError, lambda w=watcher: list(w.close()))
        if name == "gemini":
            _only(BadRequest, lambda data=data: counting.decode_count_request(data, model="m"))
            _only(BadRequest, lambda data=data: embeddings.decode_embed_request(data, model="m", batch=True))
            _only(ProviderError, lambda data=data: counting.decode_count_response(data))
            _only(ProviderError, lambda data=data: embeddings.decode_embed_response(data, model="m"))


def _only(kind: type[Exception], action: Any) -> None:
    with contextlib.suppress(kind):
        action()
