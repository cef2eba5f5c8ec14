"""Any SDK in, any provider out: each client's own SDK against each emulated backend, through one gateway.

What is asked of every pair: a whole answer, a stream, a forced tool call, usage as the backend counted it, and money
that equals it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anthropic
import boto3
import openai
import pytest
from google import genai
from google.genai import types

from tests.e2e.harness import House
from tests.e2e.yard import BACKENDS, Yard

COUNT = "count from 1 to 5"
FIVE = "1, 2, 3, 4, 5"
WEATHER = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}


@dataclass
class Seen:
    """What a client's SDK made of an answer."""

    text: str = ""
    tool: str | None = None
    arguments: dict[str, Any] | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


async def openai_chat(gateway: House, alias: str, stream: bool, tool: bool) -> Seen:
    ask: dict[str, Any] = {"model": alias, "messages": [{"role": "user", "content": COUNT}], "max_tokens": 100}
    if tool:
        function = {"name": "get_weather", "description": "tells it", "parameters": WEATHER}
        ask["tools"] = [{"type": "function", "function": function}]
        ask["tool_choice"] = {"type": "function", "function": {"name": "get_weather"}}
    async with openai.AsyncOpenAI(base_url=gateway.v1, api_key=gateway.key, max_retries=0) as sdk:
        if not stream:
            answer = await sdk.chat.completions.create(**ask)
            message = answer.choices[0].message
            calls = message.tool_calls or []
            return Seen(
                message.content or "",
                calls[0].function.name if calls else None,
                json.loads(calls[0].function.arguments) if calls else None,
                answer.usage.prompt_tokens,
                answer.usage.completion_tokens,
            )
        seen, arguments = Seen(), ""
        async for chunk in await sdk.chat.completions.create(
            **ask, stream=True, stream_options={"include_usage": True}
        ):
            if chunk.usage:
                seen.input_tokens, seen.output_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
            for choice in chunk.choices:
                seen.text += choice.delta.content or ""
                for call in choice.delta.tool_calls or []:
                    seen.tool = call.function.name or seen.tool
                    arguments += call.function.arguments or ""
        seen.arguments = json.loads(arguments) if arguments else None
        return seen


async def openai_responses(gateway: House, alias: str, stream: bool, tool: bool) -> Seen:
    ask: dict[str, Any] = {"model": alias, "input": COUNT, "max_output_tokens": 100, "store": False}
    if tool:
        ask["tools"] = [{"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": False}]
        ask["tool_choice"] = {"type": "function", "name": "get_weather"}
    async with openai.AsyncOpenAI(base_url=gateway.v1, api_key=gateway.key, max_retries=0) as sdk:
        if stream:
            async with sdk.responses.stream(**ask) as events:
                answer: Any = await events.get_final_response()
        else:
            answer = await sdk.responses.create(**ask)
    calls = [item for item in answer.output if item.type == "function_call"]
    return Seen(
        answer.output_text,
        calls[0].name if calls else None,
        json.loads(calls[0].arguments) if calls else None,
        answer.usage.input_tokens,
        answer.usage.output_tokens,
    )


async def anthropic_messages(gateway: House, alias: str, stream: bool, tool: bool) -> Seen:
    ask: dict[str, Any] = {"model": alias, "messages": [{"role": "user", "content": COUNT}], "max_tokens": 100}
    if tool:
        ask["tools"] = [{"name": "get_weather", "description": "tells it", "input_schema": WEATHER}]
        ask["tool_choice"] = {"type": "tool", "name": "get_weather"}
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=gateway.key, max_retries=0) as sdk:
        if stream:
            async with sdk.messages.stream(**ask) as events:
                answer = await events.get_final_message()
        else:
            answer = await sdk.messages.create(**ask)
    calls = [block for block in answer.content if block.type == "tool_use"]
    return Seen(
        "".join(block.text for block in answer.content if block.type == "text"),
        calls[0].name if calls else None,
        dict(calls[0].input) if calls else None,  # type: ignore[call-overload]
        answer.usage.input_tokens,
        answer.usage.output_tokens,
    )


async def gemini(gateway: House, alias: str, stream: bool, tool: bool) -> Seen:
    config: dict[str, Any] = {"max_output_tokens": 100}
    if tool:
        declaration = types.FunctionDeclaration(name="get_weather", parameters_json_schema=WEATHER)
        config["tools"] = [types.Tool(function_declarations=[declaration])]
        mode = types.FunctionCallingConfig(
            mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["get_weather"]
        )
        config["tool_config"] = types.ToolConfig(function_calling_config=mode)
    sdk = genai.Client(api_key=gateway.key, http_options=types.HttpOptions(base_url=gateway.url))
    settings = types.GenerateContentConfig(**config)
    seen = Seen()
    if stream:
        chunks = [
            c async for c in await sdk.aio.models.generate_content_stream(model=alias, contents=COUNT, config=settings)
        ]
    else:
        chunks = [await sdk.aio.models.generate_content(model=alias, contents=COUNT, config=settings)]
    for chunk in chunks:
        for candidate in chunk.candidates or []:
            for part in (candidate.content.parts if candidate.content else None) or []:
                seen.text += part.text or ""
                if part.function_call:
                    seen.tool, seen.arguments = part.function_call.name, dict(part.function_call.args or {})
        if chunk.usage_metadata:
            seen.input_tokens = chunk.usage_metadata.prompt_token_count
            seen.output_tokens = chunk.usage_metadata.candidates_token_count
    return seen


async def bedrock_converse(gateway: House, alias: str, stream: bool, tool: bool) -> Seen:
    ask: dict[str, Any] = {
        "modelId": alias,
        "messages": [{"role": "user", "content": [{"text": COUNT}]}],
        "inferenceConfig": {"maxTokens": 100},
    }
    if tool:
        spec = {"name": "get_weather", "description": "tells it", "inputSchema": {"json": WEATHER}}
        ask["toolConfig"] = {"tools": [{"toolSpec": spec}], "toolChoice": {"tool": {"name": "get_weather"}}}

    def run() -> Seen:
        # boto3 signs with SigV4; our key is both halves of the credential.
        sdk = boto3.client(
            "bedrock-runtime",
            endpoint_url=gateway.url,
            region_name="us-east-1",
            aws_access_key_id=gateway.key,
            aws_secret_access_key=gateway.key,
        )
        seen, arguments = Seen(), ""
        if not stream:
            answer = sdk.converse(**ask)
            for block in answer["output"]["message"]["content"]:
                seen.text += block.get("text", "")
                if "toolUse" in block:
                    seen.tool, seen.arguments = block["toolUse"]["name"], block["toolUse"]["input"]
            usage = answer["usage"]
        else:
            for event in sdk.converse_stream(**ask)["stream"]:
                if start := event.get("contentBlockStart", {}).get("start", {}).get("toolUse"):
                    seen.tool = start["name"]
                delta = event.get("contentBlockDelta", {}).get("delta", {})
                seen.text += delta.get("text", "")
                arguments += delta.get("toolUse", {}).get("input", "")
                usage = event.get("metadata", {}).get("usage", {})
            seen.arguments = json.loads(arguments) if arguments else None
        seen.input_tokens, seen.output_tokens = usage["inputTokens"], usage["outputTokens"]
        return seen

    return await asyncio.to_thread(run)


CLIENTS: dict[str, Callable[[House, str, bool, bool], Awaitable[Seen]]] = {
    "openai_chat": openai_chat,
    "openai_responses": openai_responses,
    "anthropic_messages": anthropic_messages,
    "gemini": gemini,
    "bedrock_converse": bedrock_converse,
}
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("tool", [False, True], ids=["text", "tool"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "local"])
@pytest.mark.parametrize("client", list(CLIENTS))
async def test_every_client_gets_its_answer_from_every_backend(
    yard: Yard, client: str, backend: str, stream: bool, tool: bool
) -> None:
    stats = yard.backends[backend].stats
    before, charged = (stats.input_tokens, stats.output_tokens), await yard.gateway.charged_pusd()
    seen = await CLIENTS[client](yard.gateway, f"via-{backend}", stream, tool)
    used = (stats.input_tokens - before[0], stats.output_tokens - before[1])
    if tool:
        assert seen.tool == "get_weather"
        assert seen.arguments == {"location": "San Francisco"}
    else:
        assert seen.text == FIVE
    assert (seen.input_tokens, seen.output_tokens) == used
    due = used[0] * 1_500_000 + used[1] * 7_250_000
    assert await yard.gateway.charged_pusd() - charged == due
