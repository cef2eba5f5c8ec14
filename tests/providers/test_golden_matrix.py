"""The golden matrix: one neutral request, and one neutral answer, as each dialect says it, whole and streamed.

`tests/golden/matrix/<case>.json` holds one member per dialect: the body and what it lost, or what it refused; for the
answer, what a client of the dialect reads. `FAREBOX_GOLDEN=write pytest tests/providers/test_golden_matrix.py` writes
them anew: the difference in git is the review.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from providers.dialects import load
from providers.errors import Unsupported
from providers.neutral import (
    Candidate,
    ChatRequest,
    ChatResponse,
    ImagePart,
    Message,
    ReasoningPart,
    TextPart,
    Tool,
    ToolCallPart,
    ToolResultPart,
    Usage,
    collect,
    replay,
)
from providers.neutral.request import Reasoning, ResponseFormat
from providers.wire.eventstream import EventStreamDecoder

FOLDER = Path(__file__).parents[1] / "golden" / "matrix"
# Dialect -> the model's name there.
DIALECTS = {
    "openai_chat": "gpt-5",
    "openai_completions": "davinci",
    "openai_responses": "gpt-5",
    "anthropic_messages": "claude-sonnet-4-5",
    "gemini": "gemini-3-pro-preview",
    "bedrock_converse": "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALLS = (ToolCallPart("call_1", "weather", '{"city":"Paris"}'), ToolCallPart("call_2", "weather", '{"city":"Oslo"}'))
REQUESTS: Mapping[str, ChatRequest] = {
    "plain": ChatRequest("alias", (Message("user", (TextPart("Say hello."),)),), stream=True, max_output_tokens=64),
    "tool_round": ChatRequest(
        "alias",
        (
            Message("system", (TextPart("Be brief."),)),
            Message("user", (TextPart("How is it there?"), ImagePart("image/png", "aGVsbG8="))),
            Message("assistant", (TextPart("I look."), *CALLS)),
            Message(
                "user",
                (
                    ToolResultPart("call_1", (TextPart("18 degrees"),)),
                    ToolResultPart("call_2", (TextPart("closed"),), is_error=True),
                ),
            ),
        ),
        tools=(Tool("weather", "tells it", SCHEMA),),
        max_output_tokens=64,
        temperature=0.5,
        stop=("END",),
    ),
    "schema_and_sampling": ChatRequest(
        "alias",
        (Message("user", (TextPart("Which city?"),)),),
        response_format=ResponseFormat("json_schema", SCHEMA, name="answer"),
        max_output_tokens=4096,
        seed=7,
        candidates=2,
        top_p=0.9,
        user="someone",
    ),
    "thinking": ChatRequest(
        "alias",
        (Message("user", (TextPart("Think."),)),),
        reasoning=Reasoning(True, "low", 2048),
        max_output_tokens=4096,
    ),
}
ANSWER = ChatResponse(
    id="resp_1",
    model="alias",
    candidates=(Candidate((ReasoningPart("let me see"), TextPart("Here: 日本"), *CALLS), finish_reason="tool_calls"),),
    usage=Usage(input_tokens=30, output_tokens=20, reasoning_tokens=3, cache_read_tokens=10),
)


def said(case: str, dialect: str) -> Any:
    try:
        encoded = load(dialect).encode_request(REQUESTS[case], model=DIALECTS[dialect], strict=False)
    except Unsupported as error:
        return {"refused": sorted(error.features)}
    return plain({"body": encoded.body, "dropped": sorted(encoded.dropped)})


def answered(dialect: str) -> Any:
    """Whole and streamed, as what a client of the dialect would parse."""
    spoken, asked = load(dialect), ChatRequest("alias", (), stream=True, include_usage=True)
    encoder = spoken.event_encoder(asked)
    data = encoder.encode(replay(ANSWER)) + encoder.close()
    if dialect == "bedrock_converse":
        stream = [[frame.event_type, json.loads(frame.payload)] for frame in EventStreamDecoder().feed(data)]
        for _, payload in stream:
            payload.pop("p", None)  # padding of a random length
    else:
        stream = data.decode().splitlines()
    return {"whole": json.loads(spoken.encode_response(ANSWER, asked)), "stream": stream}


def plain(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def compare(name: str, found: Mapping[str, Any]) -> None:
    path = FOLDER / f"{name}.json"
    if os.environ.get("FAREBOX_GOLDEN") == "write":
        FOLDER.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    assert found == json.loads(path.read_text())


@pytest.mark.parametrize("case", list(REQUESTS))
def test_a_request_in_every_dialect(case: str) -> None:
    compare(case, {dialect: said(case, dialect) for dialect in DIALECTS})


def test_an_answer_in_every_dialect() -> None:
    compare("answer", {dialect: answered(dialect) for dialect in DIALECTS})


@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name != "openai_completions"])
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_the_streamed_answer_reads_back_in_any_slices(dialect: str, step: int) -> None:
    spoken, asked = load(dialect), ChatRequest("alias", (), stream=True, include_usage=True)
    encoder, decoder = spoken.event_encoder(asked), spoken.event_decoder()
    data = encoder.encode(replay(ANSWER)) + encoder.close()
    events = [event for at in range(0, len(data), step) for event in decoder.feed(data[at : at + step])]
    whole = collect([*events, *decoder.close()])
    calls = [part for part in whole.candidates[0].content if isinstance(part, ToolCallPart)]
    texts = [part.text for part in whole.candidates[0].content if isinstance(part, TextPart)]
    assert "".join(texts) == "Here: 日本"
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        (call.name, json.loads(call.arguments)) for call in CALLS
    ]
    assert whole.candidates[0].finish_reason == "tool_calls"
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (30, 20)
