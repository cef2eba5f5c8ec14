"""The Bedrock adapter and its emulator, over real sockets: Converse, and Claude in its own words; three credentials."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from providers.base import Call, Credential, Endpoint
from providers.bedrock import Bedrock
from providers.dialects import anthropic_messages, bedrock_converse
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
from providers.neutral import (
    CachePoint,
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    ReasoningPart,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCallPart,
    ToolChoice,
    ToolResultPart,
)
from providers.neutral.request import Reasoning
from providers.transport.base import Timeouts
from providers.transport.http1 import Http1Transport
from tests.emulators.bedrock import ACCESS_KEY_ID, PROFILE_ARN, SECRET_ACCESS_KEY, BedrockEmulator
from tests.providers.taken import drained, whole

CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
NOVA = "amazon.nova-pro-v1:0"
OSS = "openai.gpt-oss-120b-1:0"
KEYS = {"access_key_id": ACCESS_KEY_ID, "secret_access_key": SECRET_ACCESS_KEY}
REMOTE_IMAGE = ImagePart(url="https://a/b.png")
WEATHER = Tool("get_weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})


@pytest.fixture
async def transport() -> AsyncIterator[Http1Transport]:
    transport = Http1Transport()
    yield transport
    await transport.aclose()


def adapter(
    emulator: BedrockEmulator, transport: Http1Transport, fields: dict[str, str] = KEYS, **options: Any
) -> Bedrock:
    return Bedrock(Endpoint("bedrock", emulator.url, "eu-central-1", Credential(fields), options), transport)


def user(text: str) -> Message:
    return Message("user", (TextPart(text),))


def call(request: ChatRequest, **facts: Any) -> Call:
    """From a client of another dialect."""
    return Call("chat", "openai_chat", request, b"", "req-1", **facts)


def messages_call(body: dict[str, Any], **facts: Any) -> Call:
    """From an Anthropic client."""
    raw = json.dumps({"model": "alias", "max_tokens": 4000, **body}).encode()
    request = anthropic_messages.DIALECT.decode_request(raw)
    return Call("chat", "anthropic_messages", request, raw, "req-1", **facts)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("native", [False, True])
async def test_answers_and_usage(stream: bool, native: bool, transport: Http1Transport) -> None:
    text = "hello\nx-script: reasoning=3 cached=2 cache_write=4"
    async with BedrockEmulator() as emulator:
        provider = adapter(emulator, transport)
        if native:
            asked = messages_call({"messages": [{"role": "user", "content": text}], "stream": stream})
        else:
            asked = call(ChatRequest("a", (user(text),), stream))
        response = await whole(await provider.send(asked, CLAUDE), stream=stream)
        reasoning, said = response.candidates[0].content
        sealed_by = "anthropic_messages" if native else "bedrock_converse"
        assert reasoning == ReasoningPart("think1 think2 think3", "c2NyaXB0ZWQgc2lnbmF0dXJl", dialect=sealed_by)
        assert isinstance(said, TextPart)
        assert said.text.startswith("You said: hello")
        usage = response.usage
        assert (usage.input_tokens, usage.output_tokens) == (emulator.stats.input_tokens, emulator.stats.output_tokens)
        assert (usage.cache_read_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens) == (2, 4, 2)
        assert usage.reasoning_tokens == (3 if native else None)
        assert usage.service_tier == "default"
        assert response.id == ("msg_test1" if native else "req-test-1")
        assert response.model == CLAUDE
        verb = ("invoke", "invoke-with-response-stream") if native else ("converse", "converse-stream")
        assert emulator.last.raw_path == f"/model/us.anthropic.claude-sonnet-4-5-20250929-v1%3A0/{verb[stream]}"


async def test_a_native_stream_reaches_an_anthropic_client_as_sse(transport: Http1Transport) -> None:
    async with BedrockEmulator() as emulator:
        asked = messages_call(
            {"messages": [{"role": "user", "content": "say hi"}], "stream": True, "thinking": {"type": "disabled"}},
            forward_headers=(("anthropic-version", "2026-10-21"), ("anthropic-beta", "b1-2026, b2-2026")),
        )
        answer = await adapter(emulator, transport).send(asked, CLAUDE)
        tap, seen = answer.dialect.tap(True), bytearray()
        await drained(answer, lambda chunk: seen.extend(tap.feed(chunk)), lambda: seen.extend(tap.close()))
        assert seen.startswith(b"event: message_start\ndata: {")
        assert seen.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
        assert b"invocationMetrics" not in seen
        assert tap.usage.output_tokens == emulator.stats.output_tokens == 1
        assert (tap.finish_reason, tap.output_bytes) == ("stop", 2)
        sent = emulator.last.json()
        assert sent["anthropic_version"] == "bedrock-2023-05-31"
        assert sent["anthropic_beta"] == ["b1-2026", "b2-2026"]
        assert {"model", "stream"} & sent.keys() == set()


async def test_arns_are_encoded_whole(transport: Http1Transport) -> None:
    arn = "arn:aws:bedrock:eu-central-1:123:application-inference-profile/abc"
    async with BedrockEmulator() as emulator:
        await (await adapter(emulator, transport).send(call(ChatRequest("a", (user("x"),))), arn)).aclose()
        path = "/model/arn%3Aaws%3Abedrock%3Aeu-central-1%3A123%3Aapplication-inference-profile%2Fabc/converse"
        assert emulator.last.raw_path == path


async def test_three_ways_to_be_somebody(transport: Http1Transport) -> None:
    request = call(ChatRequest("a", (user("x"),)))
    async with BedrockEmulator(api_key="ABSK-static") as emulator:
        for fields, options, expected in (
            (KEYS, {}, "AWS4-HMAC-SHA256 Credential=AKIDTEST/"),
            ({"api_key": "ABSK-static"}, {}, "Bearer ABSK-static"),
            (KEYS, {"auth": "minted"}, "Bearer bedrock-api-key-"),
        ):
            provider = adapter(emulator, transport, fields, **options)
            await (await provider.send(request, NOVA)).aclose()
            assert emulator.last.headers["authorization"].startswith(expected)
            await provider.aclose()
        for fields in ({**KEYS, "secret_access_key": "wrong"}, {"api_key": "wrong"}):
            with pytest.raises(AuthFailed):
                await adapter(emulator, transport, fields).send(request, NOVA)


async def test_a_tool_loop(transport: Http1Transport) -> None:
    """Names and ids outside Bedrock's alphabet go in and come back; calls of the history keep their tools declared."""
    tool = replace(WEATHER, name="weather.get_weather")
    history = (
        user("first"),
        Message(
            "assistant", (TextPart(""), ToolCallPart("functions.f:0/é", "weather.get_weather", '{"city": "Rome"}'))
        ),
        Message("user", (ToolResultPart("functions.f:0/é", (TextPart("rain"),)),)),
        user("get_weather again"),
    )
    async with BedrockEmulator() as emulator:
        provider = adapter(emulator, transport)
        for stream in (False, True):
            asked = ChatRequest("a", history, stream, (tool,), ToolChoice("required"))
            response = await whole(await provider.send(call(asked), NOVA), stream=stream)
            (part,) = response.candidates[0].content
            assert isinstance(part, ToolCallPart)
            assert part.name == "weather.get_weather"
            assert json.loads(part.arguments) == {"city": "San Francisco"}
            assert response.candidates[0].finish_reason == "tool_calls"
        sent = emulator.last.json()
        assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "user"]
        called, answered = sent["messages"][1]["content"][0]["toolUse"], sent["messages"][2]["content"][0]["toolResult"]
        assert called["toolUseId"] == answered["toolUseId"]
        assert sent["toolConfig"]["toolChoice"] == {"any": {}}
        # Tools forbidden, and none given at all: the history still needs them declared.
        asked = ChatRequest("a", history, tools=(tool,), tool_choice=ToolChoice("none"))
        with pytest.raises(Unsupported):
            await provider.send(call(asked), NOVA)
        await (await provider.send(call(asked, strict=False), NOVA)).aclose()
        assert "toolChoice" not in emulator.last.json()["toolConfig"]
        answer = await provider.send(call(ChatRequest("a", history)), NOVA)
        await answer.aclose()
        assert answer.dropped == ("tools: those of the history are declared again",)
        # Without a history a forbidden tool is simply not there.
        asked = ChatRequest("a", (user("get_weather"),), tools=(tool,), tool_choice=ToolChoice("none"))
        await (await provider.send(call(asked), NOVA)).aclose()
        assert "toolConfig" not in emulator.last.json()


async def test_everything_that_converse_can_say(transport: Http1Transport) -> None:
    """botocore's validator in the emulator judges the shape of it all."""
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    request = ChatRequest(
        "a",
        (
            Message("system", (TextPart("be brief", cache=CachePoint("1h")),)),
            Message("developer", (TextPart("be kind"),)),
            Message(
                "user",
                (
                    TextPart("look"),
                    ImagePart("image/jpeg", "/9j/aaaa"),
                    ImagePart(url="data:image/png;base64,iVBORw0KGgo="),
                    ImagePart(url="s3://bucket/a/photo.webp"),
                    FilePart("application/pdf", "my report.v2.pdf", "JVBERi0x"),
                    FilePart("text/plain", text="plain"),
                    FilePart("video/mp4", data="AAAA", cache=CachePoint()),
                ),
            ),
        ),
        tools=(replace(WEATHER, description="", cache=CachePoint("5m"), strict=True),),
        response_format=ResponseFormat("json_schema", schema, "answer"),
        max_output_tokens=50,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        stop=("END",),
        service_tier="flex",
        metadata={"team": "a"},
        user="u-1",
    )
    async with BedrockEmulator() as emulator:
        provider = adapter(
            emulator, transport, guardrail={"id": "gr1", "version": 2, "trace": "enabled"}, latency="optimized"
        )
        response = await whole(await provider.send(call(request), NOVA), stream=False)
        assert response.candidates[0].content == (TextPart('{"name": "Alice"}'),)
        sent = emulator.last.json()
        assert sent["system"] == [
            {"text": "be brief"},
            {"cachePoint": {"type": "default", "ttl": "1h"}},
            {"text": "be kind"},
        ]
        assert sent["additionalModelRequestFields"] == {"inferenceConfig": {"topK": 40}}
        assert sent["guardrailConfig"] == {"guardrailIdentifier": "gr1", "guardrailVersion": "2", "trace": "enabled"}
        assert sent["performanceConfig"] == {"latency": "optimized"}
        assert sent["serviceTier"] == {"type": "flex"}
        documents = [block["document"] for block in sent["messages"][0]["content"] if "document" in block]
        assert [(d["format"], d["name"]) for d in documents] == [("pdf", "my report-v2-pdf"), ("txt", "document 0-5")]
        assert sent["messages"][0]["content"][-1] == {"cachePoint": {"type": "default"}}


@pytest.mark.parametrize(
    ("model", "reasoning", "expected", "effort"),
    [
        (CLAUDE, Reasoning(effort="low"), {"thinking": {"type": "enabled", "budget_tokens": 1024}}, None),
        (CLAUDE, Reasoning(effort="none"), {"thinking": {"type": "disabled"}}, None),
        ("anthropic.claude-opus-4-6-v1", Reasoning(effort="high"), {"thinking": {"type": "adaptive"}}, "high"),
        (OSS, Reasoning(effort="xhigh"), {"reasoning_effort": "high"}, None),
        (OSS, Reasoning(budget_tokens=1000), {"reasoning_effort": "low"}, None),
        (NOVA, Reasoning(effort="low"), {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "low"}}, None),
        ("mistral.large", Reasoning(effort="medium"), None, "medium"),
    ],
)
async def test_each_family_is_told_to_think_in_its_own_words(
    model: str, reasoning: Reasoning, expected: Any, effort: str | None, transport: Http1Transport
) -> None:
    async with BedrockEmulator() as emulator:
        request = ChatRequest("a", (user("x"),), reasoning=reasoning)
        await (await adapter(emulator, transport).send(call(request), model)).aclose()
        sent = emulator.last.json()
        assert sent.get("additionalModelRequestFields") == expected
        assert sent.get("outputConfig", {}).get("effort") == effort


@pytest.mark.parametrize(
    ("request_", "feature"),
    [
        (
            ChatRequest("a", (Message("user", (ImagePart(url="https://a/b.png"),)),)),
            "messages[0].content[0]: image by URL",
        ),
        (ChatRequest("a", (Message("user", (FilePart(file_id="file-1"),)),)), "messages[0].content[0]: file by id"),
        (ChatRequest("a", (user("x"),), candidates=2), "n"),
        (ChatRequest("a", (user("x"),), response_format=ResponseFormat("json_object")), "response_format json_object"),
        (
            ChatRequest("a", (user("x"),), extensions={"gemini": {"safetySettings": [{"category": "X"}]}}),
            "safetySettings",
        ),
        (ChatRequest("a", (user("x"),), tools=(replace(WEATHER, name="n" * 65),)), f"tool {'n' * 65!r}"),
        (ChatRequest("a", (user("x"),), tools=(WEATHER,), parallel_tool_calls=False), "parallel_tool_calls"),
    ],
)
async def test_what_converse_cannot_say_is_refused_by_name(
    request_: ChatRequest, feature: str, transport: Http1Transport
) -> None:
    async with BedrockEmulator() as emulator:
        with pytest.raises(Unsupported) as raised:
            await adapter(emulator, transport).send(call(request_), NOVA)
        assert raised.value.features == (feature,)
        assert emulator.stats.requests == 0


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(
    ("fault", "kind", "retryable"),
    [
        ("400", Rejected, False),
        ("401", AuthFailed, False),
        ("402", Throttled, True),
        ("403", AuthFailed, False),
        ("404", Rejected, False),
        ("408", Broken, True),
        ("413", Rejected, False),
        ("422", Broken, True),
        ("429", Throttled, True),
        ("498", Overloaded, True),
        ("500", Broken, True),
        ("502-html", Broken, True),
        ("503", Overloaded, True),
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
    fault: str, kind: type[ProviderError], retryable: bool, native: bool, transport: Http1Transport
) -> None:
    async with BedrockEmulator() as emulator:
        provider = adapter(emulator, transport)
        if fault == "slow-first-byte":
            provider.timeouts = Timeouts(first_byte_s=0.2)
        asked = faulty(native, fault)
        with pytest.raises(ProviderError) as raised:
            await whole(await provider.send(asked, CLAUDE), stream=True)
        assert type(raised.value) is kind
        assert raised.value.retryable is retryable


def faulty(native: bool, fault: str) -> Call:
    text = f"x-script: long=20 fault={fault}"
    if native:
        return messages_call({"messages": [{"role": "user", "content": text}], "stream": True})
    return call(ChatRequest("a", (user(text),), True))


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ("stall", (TimedOut,)),
        ("cut-mid-frame", (Interrupted,)),
        ("reset", (Interrupted,)),
        ("no-end", (Interrupted,)),
        ("bad-frame", (ProviderError,)),
        ("stream-error", (Throttled,)),
    ],
)
async def test_faults_inside_a_stream(
    fault: str, kinds: tuple[type[ProviderError], ...], native: bool, transport: Http1Transport
) -> None:
    """Both ways of reading see the fault: the tap, for the same dialect, and the decoder, for another one."""
    async with BedrockEmulator() as emulator:
        provider = adapter(emulator, transport)
        if fault == "stall":
            provider.timeouts = Timeouts(between_bytes_s=0.3)
        answer = await provider.send(faulty(native, fault), CLAUDE)
        decoder, events = answer.dialect.event_decoder(), []
        with pytest.raises(kinds):
            await drained(answer, lambda chunk: events.extend(decoder.feed(chunk)), lambda: list(decoder.close()))
        assert events
        answer = await provider.send(faulty(native, fault), CLAUDE)
        tap, seen = answer.dialect.tap(False), bytearray()
        with pytest.raises(kinds):
            await drained(answer, lambda chunk: seen.extend(tap.feed(chunk)), lambda: seen.extend(tap.close()))
        assert tap.started
        assert b"word1" in seen
        assert tap.output_bytes > 0


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("fault", ["byte-by-byte", "split-utf8", "keep-alive-close"])
async def test_odd_but_whole_answers(fault: str, native: bool, transport: Http1Transport) -> None:
    async with BedrockEmulator() as emulator:
        provider = adapter(emulator, transport)
        text = f"x-script: unicode fault={fault}"
        asked = call(ChatRequest("a", (user(text),), True))
        if native:
            asked = messages_call({"messages": [{"role": "user", "content": text}], "stream": True})
        for _ in range(2):
            response = await whole(await provider.send(asked, CLAUDE), stream=True)
            (said,) = response.candidates[0].content
            assert isinstance(said, TextPart)
            assert "👩‍👩‍👧 line\u2028separator" in said.text


async def test_a_converse_stream_without_metadata_is_whole_but_uncounted(transport: Http1Transport) -> None:
    async with BedrockEmulator() as emulator:
        asked = call(ChatRequest("a", (user("x-script: say=hi fault=no-usage"),), True))
        response = await whole(await adapter(emulator, transport).send(asked, NOVA), stream=True)
        assert response.candidates[0].content == (TextPart("hi"),)
        assert response.usage.output_tokens is None


@pytest.mark.parametrize(("fault", "seconds"), [("429-retry-after", 7.0), ("429-retry-after-ms", 1.5)])
async def test_how_long_to_wait(fault: str, seconds: float, transport: Http1Transport) -> None:
    async with BedrockEmulator() as emulator:
        with pytest.raises(Throttled) as raised:
            await adapter(emulator, transport).send(call(ChatRequest("a", (user("x"),))), f"fault-{fault}")
        assert raised.value.retry_after_s == seconds
        assert raised.value.code == "ThrottlingException"


async def test_a_boto3_client_is_passed_through(transport: Http1Transport) -> None:
    """Same dialect in and out: the body's own bytes, but for the limit that the budget sets."""
    raw = (
        b'{"messages": [{"role":"user","content":[{"text":"caf\\u00e9"}]}],'
        b'"inferenceConfig":{"maxTokens":900,"topP":0.5}}'
    )
    request = bedrock_converse.DIALECT.decode_request(raw, model="alias", stream=True)
    async with BedrockEmulator() as emulator:
        asked = Call("chat", "bedrock_converse", request, raw, "r", output_limit=10)
        answer = await adapter(emulator, transport).send(asked, NOVA)
        tap, seen, direct = answer.dialect.tap(True), bytearray(), bytearray()

        def feed(chunk: bytes) -> None:
            direct.extend(chunk)
            seen.extend(tap.feed(chunk))

        await drained(answer, feed, lambda: seen.extend(tap.close()))
        assert seen == direct
        assert tap.usage.output_tokens == emulator.stats.output_tokens
        assert emulator.last.body == (
            b'{"messages":[{"role":"user","content":[{"text":"caf\\u00e9"}]}],'
            b'"inferenceConfig":{"maxTokens":10,"topP":0.5}}'
        )


async def test_models_and_a_missing_region(transport: Http1Transport) -> None:
    async with BedrockEmulator() as emulator:
        assert await adapter(emulator, transport).models() == (
            "anthropic.claude-sonnet-4-5-20250929-v1:0",
            "amazon.nova-pro-v1:0",
            "openai.gpt-oss-120b-1:0",
            "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            PROFILE_ARN,
        )
    with pytest.raises(ValueError, match="region"):
        Bedrock(Endpoint("bedrock", credential=Credential(KEYS)), transport)
    urls = {
        region: Bedrock(Endpoint("bedrock", region=region, credential=Credential(KEYS)), transport).base_url
        for region in ("us-east-1", "cn-north-1")
    }
    assert urls == {
        "us-east-1": "https://bedrock-runtime.us-east-1.amazonaws.com",
        "cn-north-1": "https://bedrock-runtime.cn-north-1.amazonaws.com.cn",
    }


def test_the_request_path_imports_no_botocore() -> None:
    """In a fresh interpreter, since this one has boto3 loaded long ago."""
    code = "import sys, providers.bedrock, providers.sagemaker; sys.exit('botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0
