"""Users of the retired azure-ai-inference land softly: its own client, whole and streamed, against our `/models`."""

from __future__ import annotations

import asyncio

import pytest
from azure.ai.inference import ChatCompletionsClient, EmbeddingsClient
from azure.ai.inference.models import ChatCompletionsToolDefinition, FunctionDefinition, SystemMessage, UserMessage
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import HttpResponseError

from tests.e2e.yard import Yard
from tests.emulators.openai import vector

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def client_of(yard: Yard, key: str | None = None) -> ChatCompletionsClient:
    return ChatCompletionsClient(
        f"{yard.gateway.url}/models", AzureKeyCredential(key or yard.gateway.key), retry_total=0
    )


@pytest.mark.parametrize("backend", ["openai", "anthropic", "gemini", "bedrock"])
async def test_chats_whole_and_streamed(yard: Yard, backend: str) -> None:
    messages = [SystemMessage("Be brief."), UserMessage("count from 1 to 5")]
    client, asked = client_of(yard), {"model": f"via-{backend}", "messages": messages, "max_tokens": 50}
    whole = await asyncio.to_thread(client.complete, **asked)
    assert whole.choices[0].message.content == "1, 2, 3, 4, 5"
    assert whole.usage.completion_tokens > 0
    pieces = await asyncio.to_thread(lambda: list(client.complete(stream=True, **asked)))
    assert "".join(u.choices[0].delta.content or "" for u in pieces if u.choices) == "1, 2, 3, 4, 5"


async def test_tools(yard: Yard) -> None:
    tool = ChatCompletionsToolDefinition(
        function=FunctionDefinition(name="get_weather", description="w", parameters=WEATHER)
    )
    answer = await asyncio.to_thread(
        client_of(yard).complete,
        model="via-anthropic",
        messages=[UserMessage("What is the weather in Paris?")],
        tools=[tool],
        tool_choice="required",
        max_tokens=50,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"


async def test_embeddings_and_info(yard: Yard) -> None:
    client = EmbeddingsClient(f"{yard.gateway.url}/models", AzureKeyCredential(yard.gateway.key), retry_total=0)
    answer = await asyncio.to_thread(client.embed, model="embed-google", input=["a", "b"])
    assert [entry.embedding for entry in answer.data] == [vector("a", 8), vector("b", 8)]
    info = await asyncio.to_thread(client_of(yard).get_model_info)
    assert (info.model_name, info.model_type) == ("farebox", "chat-completion")


async def test_extras_are_refused_or_dropped_as_elsewhere(yard: Yard) -> None:
    asked = {"model": "via-anthropic", "messages": [UserMessage("Say hello")], "max_tokens": 20}
    extras = {"seed": 7, "safe_mode": True}  # neither of which Anthropic knows
    client = client_of(yard)
    dropped = await asyncio.to_thread(
        client.complete, **asked, model_extras=extras, headers={"x-farebox-losses": "lenient"}
    )
    assert dropped.choices[0].message.content
    with pytest.raises(HttpResponseError, match="seed") as refused:
        await asyncio.to_thread(client.complete, **asked, model_extras=extras)
    assert refused.value.status_code == 400


async def test_errors_have_their_status(yard: Yard) -> None:
    asked = {"model": "via-openai", "messages": [UserMessage("x")]}
    for key, more, status in (("fbx-wrong", {}, 401), (None, {"model": "nobody"}, 404)):
        with pytest.raises(HttpResponseError) as refused:
            await asyncio.to_thread(client_of(yard, key).complete, **(asked | more))
        assert refused.value.status_code == status
