"""The adapters of the OpenAI family against their emulators, over real sockets: what is sent, and what comes back."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from providers import registry
from providers.base import Call, Credential, Endpoint, Provider
from providers.dialects import openai_chat, openai_completions
from providers.errors import (
    AuthFailed,
    Broken,
    ContentFiltered,
    ContextTooLong,
    Interrupted,
    Overloaded,
    ProviderError,
    Rejected,
    Throttled,
    TimedOut,
    Unreachable,
    Unsupported,
)
from providers.neutral import ReasoningPart, TextPart, ToolCallPart
from providers.transport.base import Timeouts
from providers.transport.http1 import Http1Transport
from tests.emulators.openai import Flavour, OpenAIEmulator
from tests.providers.taken import drained, whole

FLAVOURS: dict[str, Flavour] = {
    "openai": "openai",
    "groq": "groq",
    "cerebras": "cerebras",
    "openai_like": "vllm",
    "local": "vllm",
}


@pytest.fixture
async def transport() -> AsyncIterator[Http1Transport]:
    transport = Http1Transport()
    yield transport
    await transport.aclose()


def provider_at(emulator: OpenAIEmulator, name: str, transport: Http1Transport, key: str = "sk-test") -> Provider:
    prefix = "/openai/v1" if name == "groq" else "/v1"
    endpoint = Endpoint(name, base_url=emulator.url + prefix, credential=Credential({"api_key": key}))
    return registry.create(endpoint, transport)


def call_of(body: dict[str, Any], *, strict: bool = True, forward: bool = True) -> Call:
    """forward: the client spoke this dialect; False makes the adapter encode the neutral request."""
    raw = json.dumps(body).encode()
    request = openai_chat.DIALECT.decode_request(raw)
    return Call("chat", "openai_chat" if forward else "another", request, raw, "req", strict=strict)


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "alias", "messages": [{"role": "user", "content": text}], **fields}


@pytest.mark.parametrize("name", FLAVOURS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("forward", [False, True])
async def test_answers_and_usage(name: str, stream: bool, forward: bool, transport: Http1Transport) -> None:
    async with OpenAIEmulator(FLAVOURS[name]) as emulator:
        provider = provider_at(emulator, name, transport)
        call = call_of(ask("hello there\nx-script: reasoning=3 cached=2", stream=stream), forward=forward)
        response = await whole(await provider.send(call, "echo-1"), stream=stream)
        reasoning, text = response.candidates[0].content
        assert isinstance(reasoning, ReasoningPart)
        assert reasoning.text == "think1 think2 think3"
        assert isinstance(text, TextPart)
        assert text.text.startswith("You said: hello there")
        assert response.usage.input_tokens == emulator.stats.input_tokens
        assert response.usage.output_tokens == emulator.stats.output_tokens
        assert response.usage.reasoning_tokens == 3
        assert response.usage.cache_read_tokens == 2
        sent = emulator.last.json()
        assert sent["model"] == "echo-1"
        assert emulator.last.headers["authorization"] == "Bearer sk-test"
        if stream:
            assert sent["stream_options"]["include_usage"] is True


@pytest.mark.parametrize("name", FLAVOURS)
@pytest.mark.parametrize("stream", [False, True])
async def test_parallel_tool_calls_interleave(name: str, stream: bool, transport: Http1Transport) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    }
    async with OpenAIEmulator(FLAVOURS[name]) as emulator:
        provider = provider_at(emulator, name, transport)
        call = call_of(ask("weather, in parallel", stream=stream, tools=[tool]))
        response = await whole(await provider.send(call, "echo-1"), stream=stream)
        calls = response.candidates[0].content
        assert [json.loads(part.arguments)["city"] for part in calls if isinstance(part, ToolCallPart)] == [
            "San Francisco",
            "Paris",
        ]
        assert len({part.id for part in calls if isinstance(part, ToolCallPart)}) == 2
        assert response.candidates[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("fault", "kind", "retryable"),
    [
        ("400", Rejected, False),
        ("401", AuthFailed, False),
        ("402", AuthFailed, False),
        ("403", AuthFailed, False),
        ("404", Rejected, False),
        ("408", Broken, True),
        ("413", Rejected, False),
        ("422", Rejected, False),
        ("429", Throttled, True),
        ("429-quota", AuthFailed, False),
        ("498", Overloaded, True),
        ("500", Broken, True),
        ("502-html", Broken, True),
        ("503", Overloaded, True),
        ("529", Overloaded, True),
        ("context", ContextTooLong, False),
        ("content-filter", ContentFiltered, False),
        ("tool-use-failed", Broken, True),
        ("cut-before-head", Broken, True),
        ("garbage", Broken, True),
        ("redirect", Broken, True),
        ("wrong-content-type", Broken, True),
        ("200-error-body", Broken, True),
        ("slow-first-byte", TimedOut, True),
    ],
)
@pytest.mark.parametrize("name", ["openai", "cerebras", "groq"])
async def test_faults_before_the_answer(
    fault: str, kind: type[ProviderError], retryable: bool, name: str, transport: Http1Transport
) -> None:
    async with OpenAIEmulator(FLAVOURS[name]) as emulator:
        provider = provider_at(emulator, name, transport)
        if fault == "slow-first-byte":
            provider.timeouts = Timeouts(first_byte_s=0.2)  # type: ignore[attr-defined]
        with pytest.raises(ProviderError) as raised:
            await whole(await provider.send(call_of(ask("x", stream=True)), f"fault-{fault}"), stream=True)
        assert type(raised.value) is kind
        assert raised.value.retryable is retryable
        assert emulator.stats.requests == 1  # a transport never asks a fresh connection twice
        if kind is TimedOut:
            await emulator.until_closed()  # we hung up on it


@pytest.mark.parametrize(
    ("fault", "seconds"), [("429-retry-after", 7.0), ("429-retry-after-ms", 1.5), ("429-retry-after-date", 7.0)]
)
async def test_how_long_to_wait(fault: str, seconds: float, transport: Http1Transport) -> None:
    async with OpenAIEmulator() as emulator:
        with pytest.raises(Throttled) as raised:
            await provider_at(emulator, "openai", transport).send(call_of(ask("x")), f"fault-{fault}")
        assert raised.value.retry_after_s == seconds
        assert raised.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("stall", TimedOut),
        ("cut-mid-frame", Interrupted),
        ("reset", Interrupted),
        ("no-end", Interrupted),
        ("bad-frame", ProviderError),
        ("stream-error", ProviderError),
    ],
)
@pytest.mark.parametrize("name", ["openai", "cerebras", "groq"])
async def test_faults_inside_a_stream(
    fault: str, kind: type[ProviderError], name: str, transport: Http1Transport
) -> None:
    """Both ways of reading see the fault: the tap, for the same dialect, and the decoder, for another one."""
    async with OpenAIEmulator(FLAVOURS[name]) as emulator:
        provider = provider_at(emulator, name, transport)
        if fault == "stall":
            provider.timeouts = Timeouts(between_bytes_s=0.3)  # type: ignore[attr-defined]
        call = call_of(ask("x-script: long=20", stream=True))
        with pytest.raises(kind):
            await whole(await provider.send(call, f"fault-{fault}"), stream=True)
        answer = await provider.send(call, f"fault-{fault}")
        tap = answer.dialect.tap(False)
        seen = bytearray()
        with pytest.raises(kind):
            await drained(answer, lambda chunk: seen.extend(tap.feed(chunk)), lambda: seen.extend(tap.close()))
        assert tap.started
        assert b"word1" in seen
        assert b'"error"' not in seen
        assert tap.output_bytes > 0


@pytest.mark.parametrize("fault", ["byte-by-byte", "split-utf8", "huge-chunk", "keep-alive-close"])
async def test_odd_but_whole_answers(fault: str, transport: Http1Transport) -> None:
    async with OpenAIEmulator() as emulator:
        provider = provider_at(emulator, "openai", transport)
        call = call_of(ask("x-script: unicode", stream=True))
        for _ in range(2):
            response = await whole(await provider.send(call, f"fault-{fault}"), stream=True)
            (text,) = response.candidates[0].content
            assert isinstance(text, TextPart)
            assert "👩‍👩‍👧 line\u2028separator" in text.text


async def test_truncated_whole_answer_may_be_tried_again(transport: Http1Transport) -> None:
    async with OpenAIEmulator() as emulator:
        provider = provider_at(emulator, "openai", transport)
        answer = await provider.send(call_of(ask("x")), "fault-cut-mid-frame")
        with pytest.raises(Broken) as raised:
            await answer.read()
        assert raised.value.retryable
        answer = await provider.send(call_of(ask("x")), "fault-truncated-json")
        with pytest.raises(ProviderError):
            answer.dialect.decode_response(await answer.read())


_SAID = {"role": "assistant", "content": "four"}
_CALLED = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    "members",
    [
        {"choices": [{"message": _SAID, "finish_reason": "stop"}], "usage": {"completion_tokens": -1}},
        {"choices": [{"message": _CALLED, "finish_reason": "stop"}], "service_tier": "flex"},
        {"choices": [{"index": 1, "message": _SAID, "finish_reason": "length"}, {"index": 0, "message": _CALLED}]},
        {"choices": [], "x_groq": {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}},
        {"choices": [{"message": _SAID}, {"index": 1}]},
        {"choices": None, "usage": {"prompt_tokens": 1}},
        {"error": {"message": "no", "type": "server_error"}},
    ],
)
def test_the_end_of_an_answer_is_the_same_read_by_itself(members: dict[str, Any]) -> None:
    body = json.dumps({"id": "x", "model": "m", **members}).encode()
    try:
        response = openai_chat.DIALECT.decode_response(body)
    except ProviderError as error:
        with pytest.raises(type(error), match=re.escape(error.message)):
            openai_chat.DIALECT.ending(body)
        return
    reason = response.candidates[0].finish_reason if response.candidates else None
    assert openai_chat.DIALECT.ending(body) == (response.usage, reason)


async def test_wrong_key_and_nobody_home(transport: Http1Transport) -> None:
    async with OpenAIEmulator() as emulator:
        with pytest.raises(AuthFailed):
            await provider_at(emulator, "openai", transport, "sk-wrong").send(call_of(ask("x")), "echo-1")
        gone = provider_at(emulator, "openai", transport)
    with pytest.raises(Unreachable):
        await gone.send(call_of(ask("x")), "echo-1")


async def test_groq_refuses_by_name_and_drops_when_lenient(transport: Http1Transport) -> None:
    body = ask("x", logprobs=True, n=1, logit_bias={}, top_k=-1, seed=4)
    body["messages"][0]["name"] = "bob"
    async with OpenAIEmulator("groq") as emulator:
        provider = provider_at(emulator, "groq", transport)
        with pytest.raises(Unsupported) as raised:
            await provider.send(call_of(body), "echo-1")
        assert raised.value.features == ("logprobs",)
        assert emulator.stats.requests == 0
        for forward in (True, False):
            answer = await provider.send(call_of(body, strict=False, forward=forward), "echo-1")
            await answer.aclose()
            assert answer.dropped == ("logprobs", "messages[].name")
            sent = emulator.last.json()
            assert sent == {"model": "echo-1", "messages": [{"role": "user", "content": "x"}], "seed": 4}


async def test_output_limit_goes_by_the_name_the_host_knows(transport: Http1Transport) -> None:
    for name, field in (("openai", "max_completion_tokens"), ("openai_like", "max_tokens")):
        async with OpenAIEmulator(FLAVOURS[name]) as emulator:
            provider = provider_at(emulator, name, transport)
            # Both at once: the newer one decides, as it did when the gateway estimated the cost.
            body = ask("x-script: long=9", max_tokens=7, max_completion_tokens=5)
            response = await whole(await provider.send(call_of(body), "reason-1"), stream=False)
            assert response.candidates[0].finish_reason == "length"
            assert emulator.last.json()[field] == 5
            assert {"max_tokens", "max_completion_tokens"} & emulator.last.json().keys() == {field}


async def test_same_dialect_keeps_every_byte_but_the_model(transport: Http1Transport) -> None:
    raw = (
        b'{"model":"alias", "messages":[{"role":"user",   "content":"caf\\u00e9 \xe2\x82\xac", "odd":1}],'
        b'"guided_json":{"a" : 1.50}, "model":"alias2"}'
    )
    request = openai_chat.DIALECT.decode_request(raw)
    assert request.model == "alias2"
    async with OpenAIEmulator("vllm") as emulator:
        provider = provider_at(emulator, "openai_like", transport)
        answer = await provider.send(Call("chat", "openai_chat", request, raw, "r"), "echo-1")
        await answer.aclose()
        assert emulator.last.body == (
            b'{"model":"echo-1","messages":[{"role":"user",   "content":"caf\\u00e9 \xe2\x82\xac", "odd":1}],'
            b'"guided_json":{"a" : 1.50}}'
        )


@pytest.mark.parametrize("stream", [False, True])
async def test_legacy_completions(stream: bool, transport: Http1Transport) -> None:
    raw = json.dumps({"model": "a", "prompt": "count to 5", "max_tokens": 9, "stream": stream, "echo": False}).encode()
    request = openai_completions.DIALECT.decode_request(raw)
    call = Call("completions", "openai_completions", request, raw, "r")
    async with OpenAIEmulator("vllm") as emulator:
        response = await whole(
            await provider_at(emulator, "openai_like", transport).send(call, "echo-1"), stream=stream
        )
        assert response.candidates[0].content == (TextPart("1, 2, 3, 4, 5"),)
        assert response.usage.output_tokens == emulator.stats.output_tokens == 5
        assert emulator.last.path == "/v1/completions"
        assert emulator.last.json()["prompt"] == "count to 5"
    async with OpenAIEmulator("groq") as emulator:  # no such operation there: it goes as a chat
        response = await whole(await provider_at(emulator, "groq", transport).send(call, "echo-1"), stream=stream)
        assert response.candidates[0].content == (TextPart("1, 2, 3, 4, 5"),)
        assert emulator.last.path == "/openai/v1/chat/completions"
        assert emulator.last.json()["max_completion_tokens"] == 9


async def test_models_and_registry(transport: Http1Transport) -> None:
    assert {"openai", "groq", "cerebras", "local", "openai_like", "anthropic", "bedrock"} <= set(registry.names())
    async with OpenAIEmulator() as emulator:
        assert "gpt-4o-mini" in await provider_at(emulator, "openai", transport).models()


@pytest.mark.parametrize("url", ["", "ftp://h/v1", "http://", "http://u:p@h/v1", "http://h/v1?k=1", "/v1"])
def test_unusable_base_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        registry.create(Endpoint("openai_like", base_url=url), Http1Transport())


def test_a_credential_never_shows() -> None:
    assert "sk-secret" not in repr(Endpoint("openai", credential=Credential({"api_key": "sk-secret"})))


async def test_closing_a_stream_stops_the_provider(transport: Http1Transport) -> None:
    async with OpenAIEmulator() as emulator:
        provider = provider_at(emulator, "openai", transport)
        answer = await provider.send(call_of(ask("x-script: long=100000 pace_ms=1", stream=True)), "echo-1")
        async for _ in answer.chunks():
            break
        await answer.aclose()
        await emulator.until_closed()
        assert emulator.stats.cut_by_client == 1
        assert transport.open_connections == 0
