"""openai-python, in strict mode, reads what the Responses dialect writes, over a real socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from providers.neutral import ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from tests.providers.speaking import Speaker, with_script

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    "strict": False,
}
PATCH: Any = {"type": "custom", "name": "apply_patch", "description": "Patch files."}


@pytest.fixture
async def speaker() -> AsyncIterator[Speaker]:
    async with Speaker() as server:
        yield server


@pytest.fixture
async def client(speaker: Speaker) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        api_key="k", base_url=f"{speaker.url}/v1", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


async def test_plain(client: AsyncOpenAI) -> None:
    response = await client.responses.create(model="m", input='say "hello there"', instructions="be brief")
    assert response.output_text == "hello there"
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.instructions == "be brief"


async def test_stream_helper_sees_every_event(client: AsyncOpenAI) -> None:
    kinds = []
    async with client.responses.stream(model="m", input=with_script("hi", "reasoning=3 cite long=5")) as stream:
        numbers = []
        async for event in stream:
            kinds.append(event.type)
            numbers.append(event.sequence_number)
        final = await stream.get_final_response()
    assert numbers == sorted(numbers)
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert kinds.index("response.reasoning_summary_text.delta") < kinds.index("response.output_text.delta")
    assert "response.output_text.annotation.added" in kinds
    assert final.output_text == "word1 word2 word3 word4 word5"
    assert final.output[0].type == "reasoning"


async def test_stream_and_whole_agree(client: AsyncOpenAI) -> None:
    text = with_script("use get_weather", "reasoning=2 text tools=2")
    whole = await client.responses.create(model="m", input=text, tools=[WEATHER])
    async with client.responses.stream(model="m", input=text, tools=[WEATHER]) as stream:
        streamed = await stream.get_final_response()
    skip = {"created_at"}
    dumped = [item.model_dump(exclude={"parsed_arguments"} | skip) for item in streamed.output]
    for item in dumped:
        for content in item.get("content") or ():
            content.pop("parsed", None)
    assert dumped == [item.model_dump() for item in whole.output]


async def test_tool_loop_keeps_seals(client: AsyncOpenAI, speaker: Speaker) -> None:
    conversation: list[Any] = [{"role": "user", "content": with_script("use get_weather", "reasoning=2")}]
    async with client.responses.stream(model="m", input=conversation, tools=[WEATHER]) as stream:
        first = await stream.get_final_response()
    call = next(item for item in first.output if item.type == "function_call")
    assert json.loads(call.arguments) == {"location": "San Francisco"}
    conversation += [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in first.output]
    conversation.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    second = await client.responses.create(model="m", input=conversation, tools=[WEATHER])
    assert second.output_text.startswith("The tool said: sunny")
    _, assistant, result = speaker.decoded[-1].messages
    thought, called = assistant.content
    assert thought == ReasoningPart("think1 think2", "sealed-by-claude", dialect="anthropic_messages")
    assert isinstance(called, ToolCallPart)
    assert called.signature == "c2lnbmF0dXJl"
    assert isinstance(result.content[0], ToolResultPart)
    assert result.content[0].tool_call_id == called.id


async def test_custom_tool_is_a_function_to_the_model_and_text_to_the_client(
    client: AsyncOpenAI, speaker: Speaker
) -> None:
    async with client.responses.stream(model="m", input="use apply_patch", tools=[PATCH]) as stream:
        response = await stream.get_final_response()
    tool = speaker.decoded[-1].tools[0]
    assert tool.dialect is None
    assert tool.parameters is not None
    assert "input" in tool.parameters["properties"]
    call = response.output[-1]
    assert call.type == "custom_tool_call"
    assert call.input == "some input"


async def test_refusal(client: AsyncOpenAI) -> None:
    async with client.responses.stream(model="m", input=with_script("x", "refusal")) as stream:
        response = await stream.get_final_response()
    message = response.output[0]
    assert message.type == "message"
    assert message.content[0].type == "refusal"


async def test_length_is_incomplete(client: AsyncOpenAI) -> None:
    text = with_script("x", "long=50")
    response = await client.responses.create(model="m", input=text, max_output_tokens=16)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[-1].type == "message"
    assert response.output[-1].status == "incomplete"


async def test_structured_output(client: AsyncOpenAI, speaker: Speaker) -> None:
    class Joke(BaseModel):
        setup: str
        punchline: str

    response = await client.responses.parse(model="m", input="a joke", text_format=Joke)
    assert response.output_parsed == Joke(setup="Why?", punchline="Because.")
    form = speaker.decoded[-1].response_format
    assert form is not None
    assert (form.kind, form.name, form.strict) == ("json_schema", "Joke", True)


async def test_image_and_multi_turn(client: AsyncOpenAI, speaker: Speaker) -> None:
    content: Any = [
        {"type": "input_text", "text": "what is this"},
        {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"},
    ]
    response = await client.responses.create(model="m", input=[{"role": "user", "content": content}])
    assert response.output_text == "I see 1 image."
    first = speaker.decoded[-1].messages[0].content[0]
    assert first == TextPart("what is this")


async def test_error_mid_stream_raises(client: AsyncOpenAI) -> None:
    async def read() -> None:
        async with client.responses.stream(model="m", input=with_script("x", "long=20 die")) as stream:
            async for _ in stream:
                pass

    with pytest.raises(openai.APIError, match="the upstream died"):
        await read()


async def test_bad_request_names_the_field(client: AsyncOpenAI) -> None:
    bad: Any = [{"role": "user", "content": [{"type": "input_text"}]}]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="m", input=bad)
    assert caught.value.param == "input[0].content[0].text"
