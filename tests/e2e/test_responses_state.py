"""The memory that clients of the Responses API leave to us: any provider goes on where another one stopped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import openai
import pytest
import pytest_asyncio

from billing import accounts
from billing.db import create_engine, writing
from gateway.stored import Store, Stored
from tests.e2e.yard import Yard

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def sdk(yard: Yard) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=yard.gateway.v1, api_key=yard.gateway.key, max_retries=0) as client:
        yield client


async def ask(sdk: openai.AsyncOpenAI, alias: str, text: str, *, stream: bool = False, **more: Any) -> Any:
    if not stream:
        return await sdk.responses.create(model=alias, input=text, **more)
    async with sdk.responses.stream(model=alias, input=text, **more) as events:
        return await events.get_final_response()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("first", "then"),
    [("groq", "anthropic"), ("anthropic", "gemini"), ("gemini", "bedrock"), ("bedrock", "openai"), ("openai", "groq")],
)
async def test_another_provider_remembers(sdk: openai.AsyncOpenAI, first: str, then: str, stream: bool) -> None:
    told = await ask(sdk, f"via-{first}", "My name is Alice.", stream=stream)
    again = await ask(sdk, f"via-{then}", "Say hello", stream=stream, previous_response_id=told.id)
    asked = await ask(sdk, f"via-{then}", "What is my name?", stream=stream, previous_response_id=again.id)
    assert asked.output_text == "Your name is Alice."
    branched = await ask(sdk, f"via-{first}", "What is my name?", stream=stream, previous_response_id=told.id)
    assert branched.output_text == "Your name is Alice."


@pytest.mark.parametrize("backend", ["groq", "openai"])
async def test_a_stored_answer_is_read_and_deleted(sdk: openai.AsyncOpenAI, backend: str) -> None:
    made = await ask(sdk, f"via-{backend}", "count from 1 to 5")
    assert (await sdk.responses.retrieve(made.id)).output_text == made.output_text
    await sdk.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError, match="stored for this project"):
        await ask(sdk, f"via-{backend}", "and then?", previous_response_id=made.id)


async def test_what_is_not_to_be_stored_is_not(sdk: openai.AsyncOpenAI) -> None:
    made = await ask(sdk, "via-groq", "My name is Bob.", store=False)
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.retrieve(made.id)


async def test_a_tool_loop_sends_only_the_result(sdk: openai.AsyncOpenAI) -> None:
    parameters = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}
    tools: Any = [{"type": "function", "name": "get_weather", "parameters": parameters, "strict": False}]
    choice: Any = {"type": "function", "name": "get_weather"}
    called = await sdk.responses.create(model="via-anthropic", input="Weather?", tools=tools, tool_choice=choice)
    call = next(item for item in called.output if item.type == "function_call")
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}]
    answer = await sdk.responses.create(model="via-gemini", input=result, tools=tools, previous_response_id=called.id)
    assert "18 degrees" in answer.output_text


async def test_another_project_finds_nothing(yard: Yard, sdk: openai.AsyncOpenAI) -> None:
    made = await ask(sdk, "via-groq", "My name is Carol.")
    house = yard.gateway
    async with writing(house.engine) as db:
        other = await accounts.create_project(db, "proj_other", house.project.organisation_id, "other", at_ns=1)
    stranger = await replace(house, project=other).new_key()
    async with openai.AsyncOpenAI(base_url=house.v1, api_key=stranger, max_retries=0) as theirs:
        with pytest.raises(openai.NotFoundError):
            await theirs.responses.retrieve(made.id)
        with pytest.raises(openai.NotFoundError):
            await ask(theirs, "via-groq", "What is my name?", previous_response_id=made.id)
        with pytest.raises(openai.NotFoundError):
            await theirs.responses.delete(made.id)
    assert (await sdk.responses.retrieve(made.id)).id == made.id


async def test_what_is_past_its_time_is_gone(fresh_database_url: str) -> None:
    engine = create_engine(fresh_database_url)
    async with writing(engine) as db:
        await accounts.create_organisation(db, "org", "org", at_ns=1)
        await accounts.create_project(db, "p", "org", "p", at_ns=1)
    store, second = Store(engine, retention_s=10), 10**9
    await store.keep("p", Stored("resp_1", b"[]", b"{}"), 0)
    assert await store.find("p", "resp_1", 10 * second - 1) == Stored("resp_1", b"[]", b"{}")
    assert await store.find("p", "resp_1", 10 * second) is None
    assert await store.find("q", "resp_1", 0) is None
    await store.keep("p", Stored("resp_2", b"[]", b"{}"), 10 * second)
    assert not await store.forget("p", "resp_1")  # the later one has swept it away
    assert await store.forget("p", "resp_2")
    await engine.dispose()


async def test_what_was_asked_is_listed(yard: Yard, sdk: openai.AsyncOpenAI) -> None:
    first = await sdk.responses.create(model="via-openai", input="My name is Alice.")
    asked = [{"role": "user", "content": [{"type": "input_text", "text": "What is it?"}]}]
    second = await sdk.responses.create(model="via-openai", previous_response_id=first.id, input=asked)  # type: ignore[arg-type]
    items = [item async for item in sdk.responses.input_items.list(second.id, order="asc", limit=2)]
    newest = await sdk.responses.input_items.list(second.id, limit=1)
    with pytest.raises(openai.BadRequestError, match="background"):
        await sdk.responses.cancel(second.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.input_items.list("resp_unheard_of")
    with pytest.raises(openai.BadRequestError, match="limit"):
        await sdk.responses.input_items.list(second.id, limit=1000)
    said = [getattr(item, "content", None) for item in items]
    assert [part.text for content in said for part in content or []][::2] == ["My name is Alice.", "What is it?"]
    assert newest.data[0].content[0].text == "What is it?"  # type: ignore[union-attr]
    assert newest.has_more


async def test_an_item_named_by_its_id_is_sent_whole(yard: Yard, sdk: openai.AsyncOpenAI) -> None:
    first = await sdk.responses.create(model="via-openai", input="My name is Alice.")
    named = [{"type": "item_reference", "id": item.id} for item in first.output]
    await sdk.responses.create(model="via-openai", input=[*named, {"role": "user", "content": "Go on."}])  # type: ignore[list-item]
    sent = yard.backends["openai"].last.json()["input"]
    assert [item["type"] for item in sent if "type" in item] == [item.type for item in first.output]
    assert first.output_text in str(sent)
    with pytest.raises(openai.NotFoundError, match="msg_unheard_of"):
        await sdk.responses.create(model="via-openai", input=[{"type": "item_reference", "id": "msg_unheard_of"}])


@pytest.mark.parametrize(
    ("more", "says"),
    [({"conversation": "conv_1"}, "previous_response_id"), ({"prompt": {"id": "pmpt_1"}}, "text itself")],
)
@pytest.mark.parametrize("store", [True, False])
async def test_what_lies_elsewhere_cannot_be_held_for(
    yard: Yard, sdk: openai.AsyncOpenAI, more: dict[str, Any], says: str, store: bool
) -> None:
    sent = len(yard.backends["openai"].requests)
    with pytest.raises(openai.BadRequestError, match=says):
        await sdk.responses.create(model="via-openai", input="x", store=store, **more)
    assert len(yard.backends["openai"].requests) == sent
