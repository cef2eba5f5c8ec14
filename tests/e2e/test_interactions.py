"""What the gateway keeps of Google's Interactions API, driven by google-genai; the matrix has its dialect."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from google import genai
from google.genai import types
from google.genai._gaos.lib.compat_errors import BadRequestError, NotFoundError

from tests.e2e.yard import Yard
from tests.matrix.asks import TOOL, TOOL_SCHEMA

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOOLS = [{"type": "function", "name": TOOL, "parameters": TOOL_SCHEMA}]


@pytest_asyncio.fixture(loop_scope="module")
async def sdk(yard: Yard) -> AsyncIterator[Any]:
    client = genai.Client(api_key=yard.gateway.key, http_options=types.HttpOptions(base_url=yard.gateway.url))
    yield client.aio.interactions
    await client.aio.aclose()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_conversation_goes_on_with_another_provider_and_back(yard: Yard, sdk: Any, stream: bool) -> None:
    """A call made by Gemini 3, with its thought signature, is answered at Claude's, and Gemini gets its seal back."""
    gemini = yard.backends["gemini"]
    asked = await made(sdk, stream, model="gemini/gemini-3-pro-preview", input=f"use {TOOL}", tools=TOOLS)
    assert asked.status == "requires_action"
    call = next(step for step in asked.steps if step.type == "function_call")
    result = {"type": "function_result", "call_id": call.id, "result": [{"type": "text", "text": "sunny"}]}
    told = await made(
        sdk,
        stream,
        model="anthropic/claude-sonnet-4-5",
        input=[result],
        tools=TOOLS,
        previous_interaction_id=asked.id,
    )
    assert (told.status, text_of(told)) == ("completed", "The tool said: sunny")
    again = await made(
        sdk,
        stream,
        model="gemini/gemini-3-pro-preview",
        input="count from 1 to 5",
        tools=TOOLS,
        previous_interaction_id=told.id,
    )
    assert text_of(again) == "1, 2, 3, 4, 5"
    (part,) = gemini.last.json()["contents"][1]["parts"]
    assert part["functionCall"]["name"] == TOOL
    assert part["thoughtSignature"] == "c2lnbmF0dXJlIG9mIGdldF93ZWF0aGVy", "the emulator's own seal"


async def made(sdk: Any, stream: bool, **asked: Any) -> Any:
    if not stream:
        return await sdk.create(**asked)
    events = [event async for event in await sdk.create(**asked, stream=True)]
    assert events[0].event_type == "interaction.created"
    assert events[-1].event_type == "interaction.completed"
    return events[-1].interaction


def text_of(answer: Any) -> str:
    return "".join(each.text for step in answer.steps if step.type == "model_output" for each in step.content)


async def test_kept_until_it_is_deleted_and_for_its_project_alone(yard: Yard, sdk: Any) -> None:
    made = await sdk.create(model="via-openai", input=[{"type": "text", "text": "say hello"}])
    found = await sdk.get(id=made.id)
    assert (found.id, found.status, text_of(found)) == (made.id, "completed", text_of(made))
    assert found.input is None
    with pytest.raises(BadRequestError, match="background"):
        await sdk.cancel(id=made.id)
    async with httpx.AsyncClient(base_url=yard.gateway.url, headers={"x-goog-api-key": yard.gateway.key}) as http:
        shown = await http.get(f"/v1beta/interactions/{made.id}?include_input=true")
        assert shown.json()["input"] == [{"type": "user_input", "content": [{"type": "text", "text": "say hello"}]}]
        assert (await http.get(f"/v1beta/interactions/{made.id}?stream=true")).status_code == 400
        assert (await http.get(f"/v1/responses/{made.id}")).status_code == 404
    await sdk.delete(id=made.id)
    for gone in (sdk.get(id=made.id), sdk.delete(id=made.id)):
        with pytest.raises(NotFoundError):
            await gone
    with pytest.raises(NotFoundError, match="interaction"):
        await sdk.create(model="via-openai", input="and?", previous_interaction_id=made.id)
    unkept = await sdk.create(model="via-openai", input="say hello", store=False)
    with pytest.raises(NotFoundError):
        await sdk.get(id=unkept.id)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"input": "hi", "background": True}, "background"),
        ({"input": "hi", "tools": [{"type": "google_search"}]}, "google_search"),
        ({"input": [{"type": "google_search_call", "id": "1", "arguments": {}}]}, r"input\[0\]"),
        ({"input": "hi", "response_format": [{"type": "audio"}, {"type": "text"}]}, "response_format"),
        ({"input": "hi", "generation_config": {"thinking_level": "huge"}}, "thinking_level"),
        ({"input": "hi", "generation_config": {"tool_choice": "perhaps"}}, "tool_choice"),
        ({"input": "hi", "generation_config": {"max_output_tokens": "many"}}, "max_output_tokens"),
        ({"input": "hi", "generation_config": {"speech_config": {"voice": "Kore"}}}, "speech_config"),
        ({"input": "hi", "webhook_config": {"uris": ["https://x"]}}, "webhook_config"),
        ({"input": []}, "input is missing"),
        ({"input": 7}, "input is missing"),
        ({"input": [{"text": "hi"}]}, r"input\[0\] must be"),
        ({"input": [{"type": "image"}]}, "needs data or uri"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": {}}]}, r"input\[0\].id"),
        ({"input": [{"type": "function_result", "call_id": "c"}]}, "result is missing"),
        ({"agent": "deep-research-preview-04-2026", "input": "hi", "model": None}, "agent"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
async def test_what_cannot_be_said_is_refused_by_name(yard: Yard, asked: dict[str, Any], told: str) -> None:
    async with httpx.AsyncClient(base_url=yard.gateway.url, headers={"x-goog-api-key": yard.gateway.key}) as http:
        answer = await http.post("/v1beta/interactions", json={"model": "via-anthropic", **asked})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert isinstance(error["code"], str)
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(error["message"])
