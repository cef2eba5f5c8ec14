"""/v1/responses with the real model behind it, through OpenAI's own SDK: whole, streamed, tools, formats, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from local_backend.errors import CoreDied
from local_backend.generate import Delta, Totals
from local_backend.parsers import CallArguments, CallStart, Said, Thought
from local_backend.responses_answer import ResponsesEncoder
from local_backend.responses_request import ResponsesBody, _messages
from local_backend.tokenizer import Tokenizer
from tests.local_backend.support import SMOLLM2

QUESTION = "What is the capital of France?"
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


async def test_whole_response(client: AsyncOpenAI) -> None:
    response = await client.responses.create(
        model=SMOLLM2, input=QUESTION, temperature=0, max_output_tokens=30, metadata={"a": "b"}
    )
    assert (response.status, response.output_text) == ("completed", "The capital of France is Paris.")
    assert response.usage is not None
    assert response.usage.output_tokens == 8
    assert response.metadata == {"a": "b"}
    assert response.incomplete_details is None


async def test_instructions_turns_and_a_bound(client: AsyncOpenAI) -> None:
    turns: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]},
        {"role": "user", "content": QUESTION},
    ]
    response = await client.responses.create(
        model=SMOLLM2, instructions="Be short.", input=turns, temperature=0, max_output_tokens=3
    )
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    chat = await client.chat.completions.create(
        model=SMOLLM2,
        messages=[
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": QUESTION},
        ],
        temperature=0,
        max_tokens=3,
    )
    assert response.output_text == chat.choices[0].message.content
    assert response.usage is not None
    assert chat.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens


async def test_stream_adds_up_to_the_response(client: AsyncOpenAI) -> None:
    text = ""
    kinds: list[str] = []
    async with client.responses.stream(
        model=SMOLLM2, input=QUESTION, temperature=0, max_output_tokens=30, include=["message.output_text.logprobs"]
    ) as stream:
        async for event in stream:
            assert event.sequence_number == len(kinds)
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
        final = await stream.get_final_response()
    assert text == final.output_text == "The capital of France is Paris."
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    (message,) = final.output
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert "".join(token.token for token in part.logprobs) == text


async def test_a_demanded_call_and_its_answer(client: AsyncOpenAI) -> None:
    asked: Any = [{"role": "user", "content": "How is the weather in Rome?"}]
    choice: Any = {"type": "function", "name": "weather"}
    response = await client.responses.create(
        model=SMOLLM2, input=asked, tools=[WEATHER], tool_choice=choice, temperature=0, max_output_tokens=80
    )
    (call,) = response.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)["city"] in ("Paris", "Rome")) == ("weather", True)
    turns: Any = [
        *asked,
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    more = await client.responses.create(model=SMOLLM2, input=turns, temperature=0, max_output_tokens=20)
    assert more.output_text


async def test_a_format_is_kept_and_a_seed_repeats(client: AsyncOpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }
    format_: Any = {"format": {"type": "json_schema", "name": "city", "schema": schema, "strict": True}}

    async def ask() -> str:
        response = await client.responses.create(
            model=SMOLLM2, input=QUESTION, text=format_, max_output_tokens=60, extra_body={"seed": 3}
        )
        return response.output_text

    first = await ask()
    assert set(json.loads(first)) == {"city"}
    assert await ask() == first


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"input": []}, "invalid_request", "input"),
        ({"input": None}, "invalid_request", "input"),
        ({"input": [{"role": "boss", "content": "x"}]}, "invalid_request", "input[0].role"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
            "unsupported",
            "input[0].content[0]",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "unsupported", "input[0]"),
        ({"input": "word " * 9000}, "context_length_exceeded", "input"),
        ({"previous_response_id": "resp_1"}, "unsupported", "previous_response_id"),
        ({"background": True}, "unsupported", "background"),
        ({"conversation": "c"}, "unsupported", "conversation"),
        ({"truncation": "auto"}, "unsupported", "truncation"),
        ({"tools": [{"type": "web_search"}]}, "unsupported", "tools[0].type"),
        ({"include": ["file_search_call.results"]}, "unsupported", "include"),
        ({"n": 2}, "unsupported", "n"),
        ({"max_output_tokens": 0}, "invalid_request", "max_output_tokens"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "strin"}}}},
            "invalid_constraint",
            "text.format",
        ),
    ],
    ids=str,
)
async def test_what_cannot_be_served_is_refused_by_the_name_that_the_client_used(
    http: httpx.AsyncClient, change: dict[str, Any], code: str, param: str
) -> None:
    reply = await http.post("/v1/responses", json={"model": SMOLLM2, "input": "x", "max_output_tokens": 1} | change)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, code, param), error


def test_items_become_turns() -> None:
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": "b"},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "c"}]},
    ]
    user, assistant, tool = _messages(ResponsesBody(model="m", input=items))
    assert user == {"role": "user", "content": "a"}
    assert (assistant["reasoning_content"], assistant["content"]) == ("hm", "b")
    assert [call["id"] for call in assistant["tool_calls"]] == ["1", "2"]
    assert tool == {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "c"}]}


def test_thoughts_text_and_calls_are_items_of_their_own_and_a_broken_stream_says_so(tiny: Path) -> None:
    deltas = [
        Delta(0, "", [], None, [Thought("I "), Thought("think")]),
        Delta(0, "", [], None, [Said("So: "), CallStart(0, "f"), CallArguments(0, "{}")]),
        Delta(0, "", [], "tool_calls", [CallStart(1, "g"), CallArguments(1, "[1]")]),
    ]
    made = ResponsesEncoder("1" * 32, ResponsesBody(model="m", input="x"), 1, Tokenizer(tiny))
    whole = made.whole([deltas], Totals(3, 9, 0))
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert [item["status"] for item in whole["output"]] == ["completed"] * 4
    assert len({item["id"] for item in whole["output"]}) == 4
    assert whole["output"][3]["arguments"] == "[1]"
    assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] == len("I think")  # a byte is a token here

    broken = ResponsesEncoder("2" * 32, ResponsesBody(model="m", input="x"), 1, Tokenizer(tiny))
    said = broken.opening(1) + broken.piece(deltas[0]) + broken.failing(CoreDied("gone"))
    events = [json.loads(line[6:]) for line in said.decode().splitlines() if line.startswith("data: ")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "gone"}
