"""The Anthropic adapter against its emulator, over real sockets: what is sent, and what comes back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from providers.anthropic import Anthropic
from providers.base import Call, Credential, Endpoint
from providers.dialects import anthropic_messages
from providers.dialects.sealed import Sealed, seal
from providers.errors import (
    AuthFailed,
    Broken,
    ContextTooLong,
    Interrupted,
    Overloaded,
    ProviderError,
    Rejected,
    Throttled,
    TimedOut,
    Unsupported,
)
from providers.neutral import ChatRequest, Message, ReasoningPart, TextPart, Tool, ToolCallPart
from providers.neutral.content import ToolResultPart
from providers.neutral.request import Reasoning
from providers.transport.base import Timeouts
from providers.transport.http1 import Http1Transport
from tests.emulators.anthropic import AnthropicEmulator
from tests.providers.taken import drained, whole

WEATHER = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}


@pytest.fixture
async def transport() -> AsyncIterator[Http1Transport]:
    transport = Http1Transport()
    yield transport
    await transport.aclose()


def adapter(
    emulator: AnthropicEmulator, transport: Http1Transport, key: str = "sk-ant-test", **options: Any
) -> Anthropic:
    endpoint = Endpoint("anthropic", emulator.url, credential=Credential({"api_key": key}), options=options)
    return Anthropic(endpoint, transport)


def ask(text: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "alias", "max_tokens": 4096, "messages": [{"role": "user", "content": text}], **fields}


def call_of(body: dict[str, Any], *, forward: bool = True, **facts: Any) -> Call:
    """forward: the client spoke this dialect; False makes the adapter encode the neutral request."""
    raw = json.dumps(body).encode()
    request = anthropic_messages.DIALECT.decode_request(raw)
    return Call("chat", "anthropic_messages" if forward else "another", request, raw, "req", **facts)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("forward", [False, True])
async def test_answers_and_usage(stream: bool, forward: bool, transport: Http1Transport) -> None:
    async with AnthropicEmulator() as emulator:
        body = ask("hello\nx-script: reasoning=3 cached=2 cache_write=4", stream=stream)
        call = call_of(body, forward=forward)
        response = await whole(await adapter(emulator, transport).send(call, "claude-sonnet-4-5"), stream=stream)
        reasoning, text = response.candidates[0].content
        assert reasoning == ReasoningPart(
            "think1 think2 think3", "c2NyaXB0ZWQgc2lnbmF0dXJl", dialect="anthropic_messages"
        )
        assert isinstance(text, TextPart)
        assert text.text.startswith("You said: hello")
        assert response.id == "msg_test1"
        usage = response.usage
        assert (usage.input_tokens, usage.output_tokens) == (emulator.stats.input_tokens, emulator.stats.output_tokens)
        assert (usage.reasoning_tokens, usage.cache_read_tokens, usage.cache_write_tokens) == (3, 2, 4)
        assert usage.cache_write_1h_tokens == 2
        assert usage.service_tier == "default"
        assert emulator.last.json()["model"] == "claude-sonnet-4-5"
        assert emulator.last.headers["x-api-key"] == "sk-ant-test"
        assert emulator.last.headers["anthropic-version"] == "2023-06-01"


async def test_the_clients_version_and_betas_go_on(transport: Http1Transport) -> None:
    async with AnthropicEmulator() as emulator:
        forward = (("anthropic-version", "2026-10-21"), ("anthropic-beta", "a-2026-01-01,b-2026-02-02"))
        call = call_of(ask("x"), forward_headers=forward)
        await (await adapter(emulator, transport, auth="bearer").send(call, "claude-opus-4-6")).aclose()
        sent = emulator.last.headers
        assert sent["anthropic-version"] == "2026-10-21"
        assert sent["anthropic-beta"] == "a-2026-01-01,b-2026-02-02"
        assert sent["authorization"] == "Bearer sk-ant-test"
        assert "x-api-key" not in sent


async def test_same_dialect_keeps_every_byte_but_model_and_limit(transport: Http1Transport) -> None:
    raw = (
        b'{"model":"alias","max_tokens":9000, "messages":[{"role":"user","content":"caf\\u00e9"}],'
        b'"metadata":{"user_id" : "u"}}'
    )
    request = anthropic_messages.DIALECT.decode_request(raw)
    call = Call("chat", "anthropic_messages", request, raw, "r", output_limit=100)
    async with AnthropicEmulator() as emulator:
        await (await adapter(emulator, transport).send(call, "claude-opus-4-6")).aclose()
        assert emulator.last.body == (
            b'{"model":"claude-opus-4-6","max_tokens":100,"messages":[{"role":"user","content":"caf\\u00e9"}],'
            b'"metadata":{"user_id" : "u"}}'
        )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_loop_with_thinking(stream: bool, transport: Http1Transport) -> None:
    """The signed thinking comes back to Claude whole, from a client of another dialect too."""
    tools = (Tool("get_weather", parameters=WEATHER["input_schema"]),)  # type: ignore[arg-type]
    asked = Message("user", (TextPart("weather in parallel"),))
    thinking = Reasoning(enabled=True, budget_tokens=1024)
    async with AnthropicEmulator() as emulator:
        provider = adapter(emulator, transport)
        request = ChatRequest("a", (asked,), stream, tools, reasoning=thinking, max_output_tokens=3000)
        first = await whole(
            await provider.send(Call("chat", "other", request, b"", "r"), "claude-sonnet-4-5"), stream=stream
        )
        content = first.candidates[0].content
        calls = [part for part in content if isinstance(part, ToolCallPart)]
        assert [json.loads(c.arguments) for c in calls] == [{"city": "San Francisco"}, {"city": "Paris"}]
        assert first.candidates[0].finish_reason == "tool_calls"
        results = tuple(ToolResultPart(c.id, (TextPart("sunny"),)) for c in calls)
        # Two user messages, as a client of a dialect with a tool role would make them.
        history = (asked, Message("assistant", content), *(Message("user", (r,)) for r in results))
        request = ChatRequest("a", history, stream, tools, reasoning=thinking, max_output_tokens=3000)
        second = await whole(
            await provider.send(Call("chat", "other", request, b"", "r"), "claude-sonnet-4-5"), stream=stream
        )
        assert second.candidates[0].content[-1] == TextPart("The tool said: sunny; sunny")
        sent = emulator.last.json()["messages"]
        assert [block["type"] for block in sent[1]["content"]] == ["thinking", "tool_use", "tool_use"]
        assert [block["type"] for block in sent[2]["content"]] == ["tool_result", "tool_result"]


async def test_a_call_without_arguments_streams_an_empty_object(transport: Http1Transport) -> None:
    async with AnthropicEmulator() as emulator:
        tool = {"name": "list_files", "input_schema": {"type": "object"}}
        call = call_of(ask("list_files now", stream=True, tools=[tool]))
        response = await whole(await adapter(emulator, transport).send(call, "claude-opus-4-6"), stream=True)
        (part,) = response.candidates[0].content
        assert isinstance(part, ToolCallPart)
        assert part.arguments == "{}"


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
        ("500", Broken, True),
        ("502-html", Broken, True),
        ("503", Overloaded, True),
        ("529", Overloaded, True),
        ("context", ContextTooLong, False),
        ("cut-before-head", Broken, True),
        ("garbage", Broken, True),
        ("redirect", Broken, True),
        ("wrong-content-type", Broken, True),
        ("200-error-body", Broken, True),
        ("slow-first-byte", TimedOut, True),
    ],
)
async def test_faults_before_the_answer(
    fault: str, kind: type[ProviderError], retryable: bool, transport: Http1Transport
) -> None:
    async with AnthropicEmulator() as emulator:
        provider = adapter(emulator, transport)
        if fault == "slow-first-byte":
            provider.timeouts = Timeouts(first_byte_s=0.2)
        with pytest.raises(ProviderError) as raised:
            await whole(await provider.send(call_of(ask("x", stream=True)), f"fault-{fault}"), stream=True)
        assert type(raised.value) is kind
        assert raised.value.retryable is retryable


@pytest.mark.parametrize(
    ("fault", "seconds"), [("429-retry-after", 7.0), ("429-retry-after-ms", 1.5), ("429-retry-after-date", 7.0)]
)
async def test_how_long_to_wait(fault: str, seconds: float, transport: Http1Transport) -> None:
    async with AnthropicEmulator() as emulator:
        with pytest.raises(Throttled) as raised:
            await adapter(emulator, transport).send(call_of(ask("x")), f"fault-{fault}")
        assert raised.value.retry_after_s == seconds
        assert raised.value.code == "rate_limit_error"


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ("stall", (TimedOut,)),
        ("cut-mid-frame", (Interrupted,)),
        ("reset", (Interrupted,)),
        ("no-end", (Interrupted,)),
        ("bad-frame", (ProviderError,)),
        ("stream-error", (Overloaded,)),
    ],
)
async def test_faults_inside_a_stream(
    fault: str, kinds: tuple[type[ProviderError], ...], transport: Http1Transport
) -> None:
    """Both ways of reading see the fault: the tap, for the same dialect, and the decoder, for another one."""
    async with AnthropicEmulator() as emulator:
        provider = adapter(emulator, transport)
        if fault == "stall":
            provider.timeouts = Timeouts(between_bytes_s=0.3)
        call = call_of(ask("x-script: long=20", stream=True))
        answer = await provider.send(call, f"fault-{fault}")
        decoder = answer.dialect.event_decoder()
        with pytest.raises(kinds):
            await drained(answer, lambda chunk: list(decoder.feed(chunk)), lambda: list(decoder.close()))
        assert (decoder.usage.input_tokens or 0) > 0  # known from the first event: it can be billed
        answer = await provider.send(call, f"fault-{fault}")
        tap, seen = answer.dialect.tap(False), bytearray()
        with pytest.raises(kinds):
            await drained(answer, lambda chunk: seen.extend(tap.feed(chunk)), lambda: seen.extend(tap.close()))
        assert tap.started
        assert b"word1" in seen
        assert b'"error"' not in seen
        assert tap.output_bytes > 0
        assert tap.usage.input_tokens == decoder.usage.input_tokens


@pytest.mark.parametrize("fault", ["byte-by-byte", "split-utf8", "huge-chunk", "keep-alive-close"])
async def test_odd_but_whole_answers(fault: str, transport: Http1Transport) -> None:
    async with AnthropicEmulator() as emulator:
        provider = adapter(emulator, transport)
        call = call_of(ask("x-script: unicode", stream=True))
        for _ in range(2):
            response = await whole(await provider.send(call, f"fault-{fault}"), stream=True)
            (text,) = response.candidates[0].content
            assert isinstance(text, TextPart)
            assert "👩‍👩‍👧 line\u2028separator" in text.text


async def test_what_claude_cannot_say_is_refused_or_dropped_by_name(transport: Http1Transport) -> None:
    request = ChatRequest(
        "a",
        (Message("user", (TextPart("x"),)),),
        seed=1,
        frequency_penalty=0.5,
        presence_penalty=0,
        logprobs=False,
        extensions={"openai_chat": {"modalities": ["audio"]}},
    )
    async with AnthropicEmulator() as emulator:
        provider = adapter(emulator, transport)
        with pytest.raises(Unsupported) as raised:
            await provider.send(Call("chat", "openai_chat", request, b"", "r"), "claude-opus-4-6")
        assert raised.value.features == ("frequency_penalty", "seed", "modalities")
        assert emulator.stats.requests == 0
        answer = await provider.send(Call("chat", "openai_chat", request, b"", "r", strict=False), "claude-opus-4-6")
        await answer.aclose()
        assert answer.dropped == ("frequency_penalty", "seed", "modalities")
        assert emulator.last.json()["max_tokens"] == 32_000


async def test_foreign_seals_do_not_reach_anthropic(transport: Http1Transport) -> None:
    """Forwarded as they are, another model's seals would be a 400."""
    foreign = seal(Sealed("gemini", signature="abc"))
    body = ask("hi")
    body["messages"] += [
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": foreign}]},
        {"role": "user", "content": "go on"},
    ]
    async with AnthropicEmulator() as emulator:
        answer = await adapter(emulator, transport).send(call_of(body), "claude-opus-4-6")
        await answer.aclose()
        assert answer.dropped == ("messages[1].content[0]: reasoning of another model",)
        assert len(emulator.last.json()["messages"]) == 2


async def test_a_budget_that_no_longer_fits_the_limit_shrinks_with_it(transport: Http1Transport) -> None:
    body = ask("hi", thinking={"type": "enabled", "budget_tokens": 3000})
    async with AnthropicEmulator() as emulator:
        call = call_of(body, output_limit=2000)
        call = replace(call, request=replace(call.request, max_output_tokens=2000))
        await (await adapter(emulator, transport).send(call, "claude-sonnet-4-5")).aclose()
        sent = emulator.last.json()
        assert sent["max_tokens"] == 2000
        assert sent["thinking"] == {"type": "enabled", "budget_tokens": 1999}


async def test_count_tokens_and_models(transport: Http1Transport) -> None:
    async with AnthropicEmulator() as emulator:
        provider = adapter(emulator, transport)
        assert await provider.count_tokens(call_of(ask("one two three")), "claude-opus-4-6") == 6
        assert "max_tokens" not in emulator.last.json()
        assert "claude-opus-4-6" in await provider.models()
        with pytest.raises(AuthFailed):
            await adapter(emulator, transport, "wrong").models()


async def test_a_streams_client_is_told_the_model_it_asked_for(transport: Http1Transport) -> None:
    """Claude Code leaves thinking out of the next turn when the names differ."""
    async with AnthropicEmulator() as emulator:
        answer = await adapter(emulator, transport).send(call_of(ask("say hi", stream=True)), "claude-sonnet-4-5")
        tap = answer.dialect.tap(True)
        got = b"".join([tap.feed(chunk) async for chunk in answer.chunks()]) + tap.close()
        await answer.aclose()
    first, rest = got.split(b"\n\n", 1)
    message = json.loads(first.partition(b"data: ")[2])["message"]
    assert first.startswith(b"event: message_start\n")
    assert message["model"] == json.loads(call_of(ask("x")).body)["model"]
    assert message["usage"]["input_tokens"] == emulator.stats.input_tokens
    assert b"message_start" not in rest
