"""The hosts that differ by little: where they live, what they say they do, and Mistral, who refuses what it does not
know."""

from __future__ import annotations

import json
from typing import Any

import pytest

from providers import hosts, registry
from providers.base import Call, Credential, Endpoint
from providers.dialects import openai_chat
from providers.errors import Rejected, Unsupported
from providers.openai_like import OpenAILike
from providers.transport.http1 import Http1Transport
from tests.emulators.openai import OpenAIEmulator
from tests.emulators.server import Emulator, Out, Request

HOSTS = sorted(
    cls.name
    for cls in vars(hosts).values()
    if isinstance(cls, type) and issubclass(cls, OpenAILike) and cls is not OpenAILike
)
_MISTRAL = {
    "model", "messages", "stream", "max_tokens", "temperature", "top_p", "stop", "random_seed", "response_format",
    "tools", "tool_choice", "presence_penalty", "frequency_penalty", "n", "prediction", "parallel_tool_calls",
    "prompt_mode", "safe_prompt", "reasoning_effort",
}  # fmt: skip


class MistralEmulator(Emulator):
    async def handle(self, request: Request, out: Out) -> None:
        for name in request.json():
            if name not in _MISTRAL:
                detail = [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}]
                return await out.json(422, {"object": "error", "message": {"detail": detail}})
        head = {"id": "m-1", "object": "chat.completion.chunk", "created": 1, "model": "mistral-small"}
        usage = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
        await out.start(200, "text/event-stream")
        for delta, finish in (({"role": "assistant", "content": "bon"}, None), ({"content": "jour"}, "stop")):
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            last = {"usage": usage} if finish else {}
            await out.chunk(f"data: {json.dumps({**head, 'choices': [choice], **last})}\n\n".encode())
        await out.chunk(b"data: [DONE]\n\n")
        await out.end()
        return None


def call_of(*, forward: bool = True, strict: bool = True, **fields: Any) -> Call:
    raw = json.dumps({"model": "alias", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()
    request = openai_chat.DIALECT.decode_request(raw)
    return Call("chat", "openai_chat" if forward else "another", request, raw, "req", strict=strict)


def test_each_lives_at_an_address_of_its_own() -> None:
    found = {name: registry.class_of(name).default_base_url for name in HOSTS}
    assert len(set(found.values())) == len(HOSTS) == 9
    assert all(url.startswith("https://") and not url.endswith("/") for url in found.values())


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("forward", [True, False])
async def test_each_chats(name: str, forward: bool) -> None:
    transport = Http1Transport()
    async with OpenAIEmulator("vllm") as emulator:
        endpoint = Endpoint(name, f"{emulator.url}/v1", credential=Credential({"api_key": "sk-test"}))
        provider: Any = registry.create(endpoint, transport)
        answer = await provider.send(call_of(forward=forward, max_tokens=20), "echo-1")
        found = answer.dialect.decode_response(await answer.read())
        assert found.usage.output_tokens
        sent = emulator.last.json()
        assert sent["model"] == "echo-1"
        assert sent[provider.output_limit] == 20
        assert provider.capabilities.operations >= {"chat"}
    await transport.aclose()


@pytest.mark.parametrize("forward", [True, False])
async def test_mistral_is_sent_only_what_it_knows(forward: bool) -> None:
    transport = Http1Transport()
    async with MistralEmulator() as emulator:
        endpoint = Endpoint("mistral", f"{emulator.url}/v1", credential=Credential({"api_key": "sk-test"}))
        provider: Any = registry.create(endpoint, transport)
        fields = {"max_completion_tokens": 9, "seed": 3, "stream": True, "stream_options": {"include_usage": True}}
        answer = await provider.send(call_of(forward=forward, **fields), "mistral-small")
        decoder = answer.dialect.event_decoder()
        async for piece in answer.chunks():
            list(decoder.feed(piece))
        list(decoder.close())
        assert (decoder.usage.input_tokens, decoder.usage.output_tokens) == (4, 2)
        assert {"random_seed": 3, "max_tokens": 9}.items() <= emulator.last.json().items()
        with pytest.raises(Unsupported, match="logit_bias"):
            await provider.send(call_of(forward=forward, logit_bias={"1": 2}), "mistral-small")
        with pytest.raises(Rejected, match="safe_mode"):
            await provider.send(call_of(safe_mode=True), "mistral-small")
    await transport.aclose()


@pytest.mark.parametrize("forward", [True, False])
async def test_deepseek_is_asked_for_json_and_for_no_schema(forward: bool) -> None:
    transport = Http1Transport()
    async with OpenAIEmulator("vllm") as emulator:
        endpoint = Endpoint("deepseek", f"{emulator.url}/v1", credential=Credential({"api_key": "sk-test"}))
        provider: Any = registry.create(endpoint, transport)
        schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
        with pytest.raises(Unsupported, match="response_format: json_schema"):
            await provider.send(call_of(forward=forward, response_format=schema), "deepseek-chat")
        answer = await provider.send(call_of(forward=forward, response_format=schema, strict=False), "deepseek-chat")
        await answer.aclose()
        assert answer.dropped == ("response_format: json_schema",)
        assert "response_format" not in emulator.last.json()
        kept = {"type": "json_object"}
        await (await provider.send(call_of(forward=forward, response_format=kept), "deepseek-chat")).aclose()
        assert emulator.last.json()["response_format"] == kept
    await transport.aclose()
