"""The Responses dialect where no SDK looks: errors, other servers' streams, state fields, names to be narrowed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from providers.dialects import load, openai_responses
from providers.dialects.base import ErrorBody
from providers.dialects.hints import without_hints
from providers.errors import (
    AuthFailed,
    BadRequest,
    Broken,
    ContentFiltered,
    ContextTooLong,
    Overloaded,
    ProviderError,
    Rejected,
    Throttled,
    Unsupported,
    WireError,
)
from providers.neutral import (
    Candidate,
    ChatRequest,
    ChatResponse,
    Finish,
    Message,
    PartDelta,
    PartEnd,
    PartStart,
    ReasoningPart,
    ResponseStart,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
    Usage,
    collect,
)

D = openai_responses.DIALECT


def decoded(**fields: Any) -> ChatRequest:
    return D.decode_request(json.dumps({"model": "m", "input": "hi", **fields}).encode())


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {"code": "context_length_exceeded"}, ContextTooLong),
        (400, {"code": "invalid_prompt"}, ContentFiltered),
        (400, {"code": None, "type": "invalid_request_error", "param": "input[0]"}, Rejected),
        (401, {"code": "invalid_api_key"}, AuthFailed),
        (403, {"code": "unsupported_country_region_territory"}, AuthFailed),
        (404, {"code": "model_not_found"}, Rejected),
        (429, {"code": "rate_limit_exceeded"}, Throttled),
        (429, {"code": "insufficient_quota"}, AuthFailed),
        (500, {"code": "server_error"}, Broken),
        (503, {"code": "server_is_overloaded"}, Overloaded),
    ],
)
def test_errors_have_their_kind(status: int, error: dict[str, Any], kind: type[ProviderError]) -> None:
    body = json.dumps({"error": {"message": "m", **error}}).encode()
    found = D.decode_error(status, {"retry-after-ms": "1500"}, body)
    assert type(found) is kind
    assert (found.status, found.message, found.param) == (status, "m", error.get("param"))
    assert found.retry_after_s == 1.5
    failed = json.dumps({"id": "r", "status": "failed", "output": [], "error": {"message": "m", **error}}).encode()
    if error["code"] in ("rate_limit_exceeded", "insufficient_quota", "invalid_prompt", "server_error"):
        with pytest.raises(kind):
            D.decode_response(failed)


def test_unreadable_error_is_judged_by_its_status() -> None:
    assert type(D.decode_error(502, {}, b"<html>")) is Broken
    assert D.decode_error(404, {}, b'{"error": "gone"}').message == "gone"


def test_error_body() -> None:
    body = json.loads(D.encode_error(ErrorBody(429, "rate_limited", "rate_limit_exceeded", "slow", None, "r")))
    assert body == {
        "error": {"message": "slow", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
    }


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ({"type": "error", "code": "rate_limit_exceeded", "message": "x", "param": None}, Throttled),
        ({"type": "error", "error": {"type": "server_error", "message": "x"}}, Broken),
        (
            {"type": "response.failed", "response": {"id": "r", "error": {"code": "server_error", "message": "x"}}},
            Broken,
        ),
        ({"type": "response.failed", "response": {"id": "r", "error": {"code": "image_too_large"}}}, Rejected),
    ],
)
def test_errors_in_the_stream(event: dict[str, Any], kind: type[ProviderError]) -> None:
    frame = b"data: " + json.dumps(event).encode() + b"\n\n"
    for watcher in (D.event_decoder(), D.tap(True)):
        with pytest.raises(kind):
            list(watcher.feed(frame))


def test_good_frames_leave_before_the_error_that_came_with_them() -> None:
    good = b'data: {"type":"response.output_text.delta","delta":"hi"}\n\n'
    tap = D.tap(True)
    assert tap.feed(good + b'data: {"type":"error","message":"x"}\n\n') == good
    assert (tap.started, tap.output_bytes) == (True, 2)
    with pytest.raises(Broken):
        tap.feed(b"")


# --- other servers ----------------------------------------------------------------------------------------------------


def test_a_server_that_sends_items_only_whole() -> None:
    """Some engines skip deltas, event names and `output_item.added`, and end with [DONE]."""
    item = {"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": "{}"}
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]}
    thought = {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "raw"}]}
    events = [
        {"type": "response.created", "response": {"id": "r", "model": "m"}},
        {"type": "response.output_item.done", "output_index": 0, "item": thought},
        {
            "type": "response.completed",
            "response": {"id": "r", "status": "completed", "output": [thought, message, item]},
        },
    ]
    stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    decoder = D.event_decoder()
    response = collect([*decoder.feed(stream), *decoder.close()])
    assert response.candidates[0].content == (
        ReasoningPart("raw", id="rs", dialect="openai_responses"),
        TextPart("hello"),
        ToolCallPart("c", "f", "{}"),
    )
    assert response.candidates[0].finish_reason == "tool_calls"


def test_a_call_nobody_could_answer_is_a_broken_answer() -> None:
    with pytest.raises(WireError):
        D.decode_response(json.dumps({"id": "r", "output": [{"type": "function_call", "name": "f"}]}).encode())


def test_interleaved_texts_lose_nothing() -> None:
    """A text that goes on behind a tool call keeps its item open until it ends."""
    events = [
        ResponseStart("r", "m"),
        PartStart(0, TextPart("")),
        PartDelta(0, "one "),
        PartStart(1, ToolCallPart("c", "f", "")),
        PartDelta(0, "two"),
        PartDelta(1, "{}"),
        PartEnd(1),
        PartEnd(0),
        Finish("tool_calls", Usage(1, 2)),
    ]
    encoder = D.event_encoder(decoded(stream=True))
    stream = encoder.encode(events)
    kinds = [json.loads(f.split(b"data: ")[1])["type"] for f in stream.strip().split(b"\n\n")]
    assert kinds.count("response.output_item.done") == 2
    decoder = D.event_decoder()
    assert collect([*decoder.feed(stream), *decoder.close()]).candidates[0].content == (
        TextPart("one two"),
        ToolCallPart("c", "f", "{}"),
    )


# --- requests ---------------------------------------------------------------------------------------------------------


def test_hints_are_left_out_by_name_and_what_matters_is_kept() -> None:
    hints: dict[str, Any] = {
        "store": False,
        "prompt_cache_key": "k",
        "client_metadata": {"app": "x"},
        "include": ["reasoning.encrypted_content"],
        "truncation": "auto",
        "background": False,
    }
    request = decoded(**hints, text={"verbosity": "low"})
    assert without_hints(request, "openai_responses") == (request, ())
    rest, told = without_hints(request, "anthropic_messages")
    assert rest.extensions == {}
    assert told == tuple(sorted([*hints, "text.verbosity"]))
    # LangChain says so of every request, and nothing is lost of it.
    assert without_hints(decoded(client_metadata={}), "anthropic_messages")[1] == ()
    rest, told = without_hints(decoded(previous_response_id="resp_1", background=True), "openai_chat")
    assert set(rest.extensions["openai_responses"]) == {"previous_response_id", "background"}
    assert told == ()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"input": None}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0]"),
        ({"max_output_tokens": "many"}, "max_output_tokens"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"input": [{}]}, "input[0]"),
        ({"input": [{"type": [None], "role": "user", "content": "x"}]}, "input[0].type"),
    ],
)
def test_bad_requests_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decoded(**fields)
    assert caught.value.param == param


def test_names_and_ids_that_openai_would_refuse_find_their_way_back() -> None:
    name, ident = "files.read", "toolu:" + "x" * 100
    request = ChatRequest(
        "m",
        (
            Message("user", (TextPart("x"),)),
            Message("assistant", (ToolCallPart(ident, name, "{}"),)),
            Message("user", (ToolResultPart(ident, (TextPart("y"),)),)),
        ),
        tools=(Tool(name),),
        tool_choice=ToolChoice("named", name),
    )
    body = D.encode_request(request, model="gpt-5").body
    sent = body["tools"][0]["name"]
    assert body["tool_choice"]["name"] == body["input"][1]["name"] == sent
    assert body["input"][1]["call_id"] == body["input"][2]["call_id"]
    assert len(body["input"][1]["call_id"]) <= 64
    call = {"type": "function_call", "call_id": "c", "name": sent, "arguments": "{}"}
    answer = D.decode_response(json.dumps({"id": "r", "status": "completed", "output": [call]}).encode())
    assert answer.candidates[0].content == (ToolCallPart("c", name, "{}"),)


def test_foreign_thinking_is_left_out_and_told_even_when_strict() -> None:
    thought = ReasoningPart("t", "sig", dialect="anthropic_messages")
    request = ChatRequest("m", (Message("user", (TextPart("x"),)), Message("assistant", (thought, TextPart("y")))))
    encoded = D.encode_request(request, model="gpt-5", strict=True)
    assert [item["type"] for item in encoded.body["input"]] == ["message", "message"]
    assert encoded.dropped == ("reasoning",)


def test_reasoning_models_are_asked_for_their_seals() -> None:
    request = msgspec.structs.replace(decoded(reasoning={"effort": "high"}), extensions={})
    body = D.encode_request(request, model="gpt-5").body
    assert body["include"] == ["reasoning.encrypted_content"]
    assert body["store"] is False


def test_what_cannot_be_said_is_refused_by_name() -> None:
    request = ChatRequest("m", (Message("user", (TextPart("x"),)),), stop=("END",), candidates=2, seed=1)
    with pytest.raises(Unsupported) as strict:
        D.encode_request(request, model="gpt-5")
    assert set(strict.value.features) == {"stop", "candidates", "seed"}
    with pytest.raises(Unsupported) as lenient:
        D.encode_request(request, model="gpt-5", strict=False)
    assert set(lenient.value.features) == {"stop", "candidates"}


def test_tools_of_a_namespace_are_functions_elsewhere_and_come_home() -> None:
    inner = [
        {"type": "function", "name": "wait_agent", "parameters": {"type": "object"}, "strict": False},
        {"type": "custom", "name": "note"},
    ]
    space = {"type": "namespace", "name": "agents", "description": "Sub-agents.", "tools": inner}
    called = {"type": "function_call", "call_id": "c", "namespace": "agents", "name": "wait_agent", "arguments": "{}"}
    request = decoded(tools=[space], input=[called, {"type": "function_call_output", "call_id": "c", "output": "ok"}])
    assert [tool.name for tool in request.tools] == ["agents__wait_agent", "agents__note"]
    assert request.messages[0].content == (ToolCallPart("c", "agents__wait_agent", "{}"),)
    rest, told = without_hints(request, "openai_chat")
    chat = load("openai_chat").encode_request(rest, model="m").body
    assert told == ("tools.namespace",)
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["agents__wait_agent", "agents__note"]
    again = D.encode_request(request, model="gpt-5").body
    assert again["tools"] == [space]
    assert again["input"][0] == called
    calls = (
        ToolCallPart("a", "agents__wait_agent", "{}"),
        ToolCallPart("b", "agents__note", '{"input": "hi"}'),
        ToolCallPart("c", "agents__stranger", "{}"),
    )
    answer = ChatResponse("r", "m", (Candidate(calls, "tool_calls"),), Usage())
    output = json.loads(D.encode_response(answer, request))["output"]
    assert [(item["type"], item.get("namespace"), item["name"]) for item in output] == [
        ("function_call", "agents", "wait_agent"),
        ("custom_tool_call", "agents", "note"),
        ("function_call", None, "agents__stranger"),
    ]
    assert D.decode_response(json.dumps({"id": "r", "status": "completed", "output": output[:1]}).encode()).candidates[
        0
    ].content == (calls[0],)
