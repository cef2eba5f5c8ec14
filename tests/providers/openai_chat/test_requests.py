"""Bodies that are wrong, and features that the dialect cannot say."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.dialects.openai_chat import DIALECT
from providers.errors import BadRequest, Unsupported
from providers.neutral import (
    CachePoint,
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from providers.neutral.request import Reasoning

USER = {"role": "user", "content": "x"}


def request(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [USER], **fields}).encode()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"[]", None),
        (b"{", None),
        (b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}]}', None),
        (b'{"model": "m", "x": ' + b"[" * 100_000, None),
        (b'{"model": "m"}', "messages"),
        (request(messages=[]), "messages"),
        (request(model=None), "model"),
        (request(model=""), "model"),
        (request(model=3), "model"),
        (request(messages="x"), "messages"),
        (request(messages=[{"content": "x"}]), "messages[0].role"),
        (request(messages=[{"role": "robot", "content": "x"}]), "messages[0].role"),
        (request(messages=[USER, {"role": "user", "content": 5}]), "messages[1].content"),
        (request(messages=[{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
        (request(messages=[{"role": "user", "content": [{"type": "smell"}]}]), "messages[0].content[0].type"),
        (
            request(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x,y"}}]}]),
            "messages[0].content[0].image_url.url",
        ),
        (
            request(messages=[{"role": "user", "content": [{"type": "file", "file": {}}]}]),
            "messages[0].content[0].file",
        ),
        (request(messages=[{"role": "tool", "content": "x"}]), "messages[0].tool_call_id"),
        (request(messages=[{"role": "assistant", "tool_calls": [{"id": "a"}]}]), "messages[0].tool_calls[0]"),
        (
            request(
                messages=[
                    {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {}}}]}
                ]
            ),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (request(temperature="hot"), "temperature"),
        (request(n=0), "n"),
        (request(n=129), "n"),
        (request(max_tokens=0), "max_tokens"),
        (request(max_completion_tokens=-1), "max_completion_tokens"),
        (request(max_tokens=1.5), "max_tokens"),
        (request(stream="yes"), "stream"),
        (request(stop=[1]), "stop[0]"),
        (request(tools=[{"type": "function"}]), "tools[0].function"),
        (request(tools=[{"type": "function", "function": {"parameters": {}}}]), "tools[0].function.name"),
        (request(tool_choice="sometimes"), "tool_choice"),
        (request(tool_choice={"type": "function"}), "tool_choice"),
        (request(response_format={"type": "json_schema"}), "response_format.json_schema"),
        (request(logit_bias={"1": "x"}), "logit_bias[...]"),
        (request(stream_options=[]), "stream_options"),
    ],
)
def test_bad_requests_name_the_field(body: bytes, param: str | None) -> None:
    with pytest.raises(BadRequest) as raised:
        DIALECT.decode_request(body)
    assert raised.value.param == param
    assert raised.value.message


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest):
        DIALECT.decode_request(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)
FIELDS = ("messages", "tools", "tool_choice", "response_format", "stop", "stream_options", "n", "functions", "metadata")


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_no_json_does_worse_than_bad_request(fields: dict[str, Any]) -> None:
    with suppress(BadRequest):
        DIALECT.decode_request(request(**fields))


def test_unset_fields_may_be_null() -> None:
    nulls = dict.fromkeys(("temperature", "tools", "stop", "n", "stream", "response_format", "tool_choice", "user"))
    assert DIALECT.decode_request(request(**nulls)) == DIALECT.decode_request(request())


def test_model_and_stream_of_the_path_win() -> None:
    found = DIALECT.decode_request(request(stream=False), model="deployment", stream=True)
    assert (found.model, found.stream) == ("deployment", True)


def test_unknown_fields_are_kept_for_their_own_dialect() -> None:
    found = DIALECT.decode_request(
        request(guided_json={"a": 1}, reasoning_effort="default", response_format={"type": "regex"})
    )
    kept = {"guided_json": {"a": 1}, "reasoning_effort": "default", "response_format": {"type": "regex"}}
    assert found.extensions == {"openai_chat": kept}
    assert kept.items() <= DIALECT.encode_request(found, model="m").body.items()


def with_parts(*parts: Part, role: Any = "user", **fields: Any) -> ChatRequest:
    return ChatRequest("m", (Message(role, parts),), **fields)


@pytest.mark.parametrize(
    ("wanted", "feature"),
    [
        (with_parts(FilePart(url="https://x/y.pdf")), "file by URL"),
        (with_parts(ImagePart(url="u"), role="assistant"), "assistant image"),
        (with_parts(TextPart("x"), tools=(Tool("search", dialect="anthropic_messages", raw={}),)), "tool search"),
    ],
)
def test_what_would_change_the_answer_is_refused_in_any_mode(wanted: ChatRequest, feature: str) -> None:
    for strict in (True, False):
        with pytest.raises(Unsupported) as raised:
            DIALECT.encode_request(wanted, model="m", strict=strict)
        assert raised.value.features == (feature,)


def test_foreign_extensions_are_refused_or_listed() -> None:
    wanted = with_parts(TextPart("x"), extensions={"gemini": {"safetySettings": []}})
    with pytest.raises(Unsupported) as raised:
        DIALECT.encode_request(wanted, model="m")
    assert raised.value.features == ("safetySettings",)
    assert DIALECT.encode_request(wanted, model="m", strict=False).dropped == ("safetySettings",)


def test_hints_are_dropped_and_listed_even_when_strict() -> None:
    wanted = with_parts(TextPart("x", cache=CachePoint()), ReasoningPart("t", "sig", dialect="anthropic_messages"))
    encoded = DIALECT.encode_request(wanted, model="m")
    assert encoded.dropped == ("cache_control", "reasoning")
    assert encoded.body["messages"] == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("reasoning", "effort"),
    [
        (Reasoning(effort="xhigh"), "xhigh"),
        (Reasoning(budget_tokens=1024), "low"),
        (Reasoning(budget_tokens=1025), "medium"),
        (Reasoning(budget_tokens=10**9), "max"),
        (Reasoning(enabled=False), "none"),
        (Reasoning(enabled=True), None),
    ],
)
def test_effort_from_every_way_to_say_it(reasoning: Reasoning, effort: str | None) -> None:
    body = DIALECT.encode_request(with_parts(TextPart("x"), reasoning=reasoning), model="m").body
    assert body.get("reasoning_effort") == effort


def test_pictures_of_a_tool_follow_in_the_users_name() -> None:
    result = ToolResultPart("c", (TextPart("a"), ImagePart("image/png", "AA=="), TextPart("b")), is_error=True)
    encoded = DIALECT.encode_request(with_parts(result, TextPart("so?")), model="m")
    assert encoded.body["messages"] == [
        {"role": "tool", "tool_call_id": "c", "content": "a\nb"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                {"type": "text", "text": "so?"},
            ],
        },
    ]
    assert encoded.dropped == ("tool_result.is_error",)


WORDS = st.text(min_size=1, max_size=8)
TEXT = st.builds(TextPart, WORDS)
IMAGE = st.builds(ImagePart, url=WORDS.map(lambda w: "https://x/" + w), detail=st.sampled_from([None, "low", "auto"]))
CALL = st.builds(ToolCallPart, WORDS, WORDS, WORDS, st.sampled_from(["function", "custom"]))
RESULT = st.builds(ToolResultPart, WORDS, TEXT.map(lambda part: (part,)))
THOUGHT = st.builds(ReasoningPart, WORDS, dialect=st.just("openai_chat"))


def message(role: str, *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Message]:
    joined = st.tuples(*parts).map(lambda lists: tuple(part for found in lists for part in found))
    return st.builds(Message, st.just(role), joined, st.none() | WORDS)


def some(strategy: st.SearchStrategy[Any], low: int = 0, high: int = 3) -> st.SearchStrategy[list[Any]]:
    return st.lists(strategy, min_size=low, max_size=high)


TURN = st.tuples(
    message("user", some(TEXT | IMAGE, 1)),
    message("assistant", some(THOUGHT, 0, 1), some(TEXT, 1), some(st.builds(RefusalPart, WORDS), 0, 1), some(CALL)),
    st.builds(Message, st.just("user"), some(RESULT, 1).map(tuple)),
)
REQUEST = st.builds(
    ChatRequest,
    model=WORDS,
    messages=st.lists(TURN, min_size=1, max_size=2).map(lambda turns: tuple(m for turn in turns for m in turn)),
    tools=st.lists(st.builds(Tool, WORDS, st.none() | WORDS, st.just({"type": "object"})), max_size=2).map(tuple),
    tool_choice=st.none() | st.builds(ToolChoice, st.sampled_from(["auto", "none", "required"])),
    parallel_tool_calls=st.none() | st.booleans(),
    reasoning=st.none() | st.builds(Reasoning, effort=st.sampled_from(["none", "low", "max"])),
    max_output_tokens=st.none() | st.integers(1, 9),
    temperature=st.none() | st.floats(0, 2),
    seed=st.none() | st.integers(-(2**31), 2**31),
    stop=st.lists(WORDS, max_size=3).map(tuple),
    candidates=st.integers(1, 4),
    logit_bias=st.none() | st.dictionaries(WORDS, st.floats(-100, 100), max_size=2),
    metadata=st.none() | st.dictionaries(WORDS, WORDS, max_size=2),
    top_k=st.none() | st.integers(1, 9),
)


@given(REQUEST)
def test_decode_after_encode_is_identity(wanted: ChatRequest) -> None:
    encoded = DIALECT.encode_request(wanted, model=wanted.model)
    assert encoded.dropped == ()
    assert DIALECT.decode_request(msgspec.json.encode(encoded.body)) == wanted


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"reasoning": {"effort": "high"}}, Reasoning(effort="high")),
        ({"reasoning": {"max_tokens": 2000, "exclude": True}}, Reasoning(budget_tokens=2000, summary="omitted")),
        ({"reasoning_effort": "low", "reasoning": {"summary": "auto"}}, Reasoning(effort="low", summary="auto")),
        ({"reasoning": {"enabled": False}}, Reasoning(enabled=False)),
        ({"reasoning": {}}, None),
    ],
)
def test_openrouters_reasoning_object(said: dict[str, Any], meant: Reasoning | None) -> None:
    found = DIALECT.decode_request(request(**said))
    assert (found.reasoning, found.extensions) == (meant, {})


@pytest.mark.parametrize("said", [{"effort": "ultra"}, {"max_tokens": 0}, {"of_its_own": 1}, "yes"])
def test_a_hosts_own_reasoning_stays_its_own(said: Any) -> None:
    found = DIALECT.decode_request(request(reasoning=said))
    assert found.reasoning is None
    assert found.extensions == {"openai_chat": {"reasoning": said}}
