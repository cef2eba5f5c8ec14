"""Responses at OpenAI itself: the emulator proved by openai-python in strict mode, the adapter by the emulator."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from providers import registry
from providers.base import Call, Credential, Endpoint, Provider
from providers.dialects import load
from providers.dialects.sealed import Sealed, seal
from providers.errors import Interrupted, Overloaded, ProviderError, Rejected, Unsupported, WireError
from providers.transport.http1 import Http1Transport
from tests.emulators.openai import OpenAIEmulator

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    "strict": False,
}


@pytest.fixture
async def emulator() -> AsyncIterator[OpenAIEmulator]:
    async with OpenAIEmulator() as server:
        yield server


@pytest.fixture
async def sdk(emulator: OpenAIEmulator) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        api_key="sk-test", base_url=f"{emulator.url}/v1", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
async def transport() -> AsyncIterator[Http1Transport]:
    transport = Http1Transport()
    yield transport
    await transport.aclose()


def provider_at(emulator: OpenAIEmulator, transport: Http1Transport, kind: str = "openai", **options: Any) -> Provider:
    credential = Credential({"api_key": "sk-test"})
    return registry.create(Endpoint(kind, f"{emulator.url}/v1", credential=credential, options=options), transport)


def call_of(body: dict[str, Any], **fields: Any) -> Call:
    raw = json.dumps({"model": "alias", **body}).encode()
    return Call("chat", "openai_responses", load("openai_responses").decode_request(raw), raw, "req", **fields)


# --- the emulator -----------------------------------------------------------------------------------------------------


async def test_the_sdk_reads_whole_answers_and_streams_alike(sdk: AsyncOpenAI, emulator: OpenAIEmulator) -> None:
    ask: dict[str, Any] = {
        "model": "echo-1",
        "input": "use get_weather\nx-script: reasoning=3 text",
        "tools": [WEATHER],
    }
    whole = await sdk.responses.create(**ask)
    async with sdk.responses.stream(**ask) as stream:
        numbers = [event.sequence_number async for event in stream]
        streamed = await stream.get_final_response()
    assert numbers == list(range(len(numbers)))
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call"]
    assert [item.type for item in streamed.output] == [item.type for item in whole.output]
    assert whole.usage is not None
    assert streamed.usage == whole.usage
    assert emulator.stats.output_tokens == 2 * whole.usage.output_tokens
    assert emulator.stats.input_tokens == 2 * whole.usage.input_tokens


async def test_the_emulator_refuses_what_openai_refuses(sdk: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as low:
        await sdk.responses.create(model="echo-1", input="hi", max_output_tokens=5)
    assert low.value.param == "max_output_tokens"
    with pytest.raises(openai.BadRequestError) as unknown:
        await sdk.responses.create(model="echo-1", input="hi", extra_body={"top_k": 1})
    assert unknown.value.param == "top_k"


# --- the adapter ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_bytes_go_through_but_for_model_and_limit(
    emulator: OpenAIEmulator, transport: Http1Transport, stream: bool
) -> None:
    asked = {"input": "say hi", "stream": stream, "store": False, "tools": [{"type": "web_search"}], "include": []}
    answer = await provider_at(emulator, transport).send(call_of(asked, output_limit=77), "echo-1")
    assert answer.dropped == ()
    if stream:
        tap = answer.dialect.tap(True)
        got = b""
        async for chunk in answer.chunks():
            got += tap.feed(chunk)
        got += tap.close()
        await answer.aclose()
        assert tap.finish_reason == "stop"
        assert tap.usage.output_tokens == emulator.stats.output_tokens
        assert got.count(b"event: response.output_text.delta") == 1
        assert got.endswith(b"\n\n")
    else:
        assert json.loads(await answer.read())["output"][0]["content"][0]["text"] == "hi"
    assert emulator.last.path == "/v1/responses"
    assert emulator.last.json() == asked | {"model": "echo-1", "max_output_tokens": 77}


async def test_foreign_thinking_is_left_out(emulator: OpenAIEmulator, transport: Http1Transport) -> None:
    """OpenAI would refuse the turn for what Claude had thought in the one before."""
    thought = {"type": "reasoning", "summary": [], "encrypted_content": seal(Sealed("anthropic_messages", "sig"))}
    asked = {"input": [{"role": "user", "content": "x"}, thought, {"role": "user", "content": "say hi"}]}
    answer = await provider_at(emulator, transport).send(call_of(asked), "echo-1")
    assert json.loads(await answer.read())["status"] == "completed"
    assert "reasoning" in answer.dropped
    assert [item["type"] for item in emulator.last.json()["input"]] == ["message", "message"]


async def test_an_answer_to_be_fetched_later_is_refused(emulator: OpenAIEmulator, transport: Http1Transport) -> None:
    provider = provider_at(emulator, transport)
    with pytest.raises(Unsupported, match="background"):
        await provider.send(call_of({"input": "x", "background": True}), "echo-1")
    answer = await provider.send(call_of({"input": "x", "background": True}, strict=False), "echo-1")
    await answer.aclose()
    assert answer.dropped == ("background",)
    assert "background" not in emulator.last.json()


async def test_engines_are_asked_for_chats_unless_told_otherwise(
    emulator: OpenAIEmulator, transport: Http1Transport
) -> None:
    for options, path in (({}, "/v1/chat/completions"), ({"responses": True}, "/v1/responses")):
        answer = await provider_at(emulator, transport, "openai_like", **options).send(
            call_of({"input": "say hi"}), "echo-1"
        )
        await answer.aclose()
        assert emulator.last.path == path


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("400", Rejected),
        ("503", Overloaded),
        ("stream-error", ProviderError),
        ("no-end", Interrupted),
        ("bad-frame", WireError),
        ("cut-mid-frame", Interrupted),
    ],
)
async def test_faults(emulator: OpenAIEmulator, transport: Http1Transport, fault: str, kind: type[Exception]) -> None:
    async def read() -> None:
        asked = call_of({"input": "x-script: long=20", "stream": True})
        answer = await provider_at(emulator, transport).send(asked, f"fault-{fault}")
        tap = answer.dialect.tap(True)
        try:
            async for chunk in answer.chunks():
                tap.feed(chunk)
            tap.close()
        finally:
            await answer.aclose()

    with pytest.raises(kind):
        await read()
