"""The emulator is proved by google-genai, the adapter by the emulator: the request as sent and the answer as read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google import genai
from google.genai import errors, types

from providers import registry
from providers.base import Call, Credential, Endpoint
from providers.dialects import gemini, load
from providers.errors import (
    AuthFailed,
    BadRequest,
    Broken,
    ContextTooLong,
    Interrupted,
    Overloaded,
    ProviderError,
    Rejected,
    Throttled,
    TimedOut,
    Unreachable,
    Unsupported,
    WireError,
)
from providers.neutral import ChatRequest, Message, ReasoningPart, TextPart, ToolCallPart
from providers.transport.base import Timeouts
from providers.transport.http1 import Http1Transport
from tests.emulators.gemini import GeminiEmulator
from tests.providers.taken import text_of, whole

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    },
}


@pytest.fixture
async def transport() -> AsyncIterator[Http1Transport]:
    transport = Http1Transport()
    yield transport
    await transport.aclose()


@pytest.fixture
async def emulator() -> AsyncIterator[GeminiEmulator]:
    async with GeminiEmulator() as server:
        yield server


def provider_at(emulator: GeminiEmulator, transport: Http1Transport, key: str = "test-key") -> Any:
    return registry.create(Endpoint("gemini", emulator.url, credential=Credential({"api_key": key})), transport)


def native(body: dict[str, Any], model: str = "alias", *, stream: bool = False, **fields: Any) -> Call:
    raw = json.dumps(body).encode()
    request = gemini.DIALECT.decode_request(raw, model=model, stream=stream)
    return Call("chat", "gemini", request, raw, "req", **fields)


def foreign(body: dict[str, Any], *, strict: bool = True, dialect: str = "openai_chat") -> Call:
    raw = json.dumps({"model": "alias", **body}).encode()
    return Call("chat", dialect, load(dialect).decode_request(raw), raw, "req", strict=strict)


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


# --- the emulator -----------------------------------------------------------------------------------------------------


async def test_the_sdk_reads_the_emulator(emulator: GeminiEmulator) -> None:
    client = genai.Client(api_key="test-key", http_options=types.HttpOptions(base_url=emulator.url)).aio
    answer = await client.models.generate_content(model="gemini-2.5-flash", contents="say hello")
    assert answer.text == "hello"
    thinking = types.GenerateContentConfig(
        thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_budget=100)
    )
    stream = await client.models.generate_content_stream(model="gemini-2.5-flash", contents="say hi", config=thinking)
    parts = [p async for c in stream for p in (c.candidates or [])[0].content.parts]  # type: ignore[union-attr]
    assert "".join(p.text or "" for p in parts if p.thought).startswith("think1 think2")
    assert parts[-1].thought_signature == b"signature of text"
    assert (await client.models.count_tokens(model="m", contents="a b")).total_tokens == 5
    assert len([m async for m in await client.models.list()]) == 3
    with pytest.raises(errors.ClientError) as caught:
        await client.models.generate_content(model="fault-429-retry-after-ms", contents="x")
    assert caught.value.status == "RESOURCE_EXHAUSTED"
    await client.aclose()


# --- the adapter ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_native_body_goes_through_untouched(
    emulator: GeminiEmulator, transport: Http1Transport, stream: bool
) -> None:
    body = {
        "contents": [{"role": "user", "parts": [{"text": "say  hi"}]}],
        "safety_settings": [],
        "generationConfig": {"topK": 3.0, "temperature": 1e-1},
    }
    answer = await provider_at(emulator, transport).send(native(body, stream=stream), "gemini-2.5-flash")
    response = await whole(answer, stream=stream)
    assert text_of(response) == "hi"
    assert response.usage.total_tokens == emulator.stats.input_tokens + emulator.stats.output_tokens
    assert json.loads(emulator.last.body) == body
    verb = "streamGenerateContent" if stream else "generateContent"
    assert emulator.last.path == f"/v1beta/models/gemini-2.5-flash:{verb}"
    assert emulator.last.headers["x-goog-api-key"] == "test-key"


@pytest.mark.parametrize("stream", [False, True])
async def test_foreign_request_is_encoded(emulator: GeminiEmulator, transport: Http1Transport, stream: bool) -> None:
    call = foreign(
        ask(
            "use get_weather in parallel",
            stream=stream,
            tools=[TOOL],
            tool_choice="required",
            max_completion_tokens=99,
            stop=["END"],
            reasoning_effort="low",
        )
    )
    response = await whole(await provider_at(emulator, transport).send(call, "gemini-2.5-flash"), stream=stream)
    body = emulator.last.json()
    assert body["generationConfig"] == {
        "maxOutputTokens": 99,
        "stopSequences": ["END"],
        "thinkingConfig": {"thinkingBudget": 1024, "includeThoughts": True},
    }
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}
    assert body["tools"][0]["functionDeclarations"][0]["parametersJsonSchema"] == TOOL["function"]["parameters"]
    thought, *calls = response.candidates[0].content
    assert isinstance(thought, ReasoningPart)
    assert [json.loads(part.arguments)["location"] for part in calls if isinstance(part, ToolCallPart)] == [
        "San Francisco",
        "Paris",
    ]
    assert response.candidates[0].finish_reason == "tool_calls"
    assert response.usage.output_tokens == emulator.stats.output_tokens
    assert response.usage.reasoning_tokens == 8


async def test_tool_loop_signs_what_it_was_given(emulator: GeminiEmulator, transport: Http1Transport) -> None:
    """Gemini 3 refuses an unsigned turn: its own signature comes back, a foreign call gets Google's way out."""
    provider = provider_at(emulator, transport)
    first = foreign(ask("use get_weather", tools=[TOOL]))
    call = (await whole(await provider.send(first, "gemini-3-pro"), stream=False)).candidates[0].content[0]
    assert isinstance(call, ToolCallPart)
    assert call.signature is not None
    for signature in (call.signature, None):
        messages = (
            *first.request.messages,
            Message("assistant", (ToolCallPart(call.id, call.name, "{}", "function", signature),)),
        )
        request = ChatRequest("alias", (*messages, Message("user", (TextPart("say done"),))))
        answer = await provider.send(Call("chat", "neutral", request, b"", "req"), "gemini-3-pro")
        assert text_of(await whole(answer, stream=False)) == "done"
        sent = emulator.last.json()["contents"][1]["parts"][0]
        assert sent["thoughtSignature"] == (signature or "skip_thought_signature_validator")


async def test_native_body_is_encoded_when_google_would_refuse_it(
    emulator: GeminiEmulator, transport: Http1Transport
) -> None:
    contents = [
        {"role": "user", "parts": [{"text": "x"}]},
        {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"output": "42"}}}]},
    ]
    answer = await provider_at(emulator, transport).send(native({"contents": contents}), "gemini-3-flash")
    assert text_of(await whole(answer, stream=False)) == "The tool said: 42"


async def test_output_limit_replaces_the_clients_own(emulator: GeminiEmulator, transport: Http1Transport) -> None:
    body = {
        "contents": [{"parts": [{"text": "x-script: long=50"}]}],
        "generation_config": {"max_output_tokens": 40, "temperature": 0},
    }
    answer = await provider_at(emulator, transport).send(native(body, output_limit=4), "gemini-2.5-flash")
    await whole(answer, stream=False)
    assert emulator.last.json()["generation_config"] == {"temperature": 0, "maxOutputTokens": 4}


async def test_unsupported_is_named_before_anything_is_sent(
    emulator: GeminiEmulator, transport: Http1Transport
) -> None:
    provider = provider_at(emulator, transport)
    body = ask("x", logit_bias={"5": 1}, parallel_tool_calls=False)
    with pytest.raises(Unsupported) as caught:
        await provider.send(foreign(body), "gemini-2.5-flash")
    assert set(caught.value.features) == {"logit_bias", "parallel_tool_calls"}
    assert emulator.requests == []
    answer = await provider.send(foreign(body, strict=False), "gemini-2.5-flash")
    await answer.aclose()
    assert set(answer.dropped) == {"logit_bias", "parallel_tool_calls"}


async def test_rivals_of_tokens_that_are_not_shown_are_a_loss(
    emulator: GeminiEmulator, transport: Http1Transport
) -> None:
    provider = provider_at(emulator, transport)
    with pytest.raises(Unsupported) as caught:
        await provider.send(foreign(ask("x", top_logprobs=2)), "gemini-2.5-flash")
    assert (caught.value.features, emulator.requests) == (("top_logprobs",), [])
    answer = await provider.send(foreign(ask("x", top_logprobs=2), strict=False), "gemini-2.5-flash")
    await answer.aclose()
    assert answer.dropped == ("top_logprobs",)
    assert "logprobs" not in emulator.last.json().get("generationConfig", {})
    answer = await provider.send(foreign(ask("x", logprobs=True, top_logprobs=2)), "gemini-2.5-flash")
    await answer.aclose()
    sent = emulator.last.json()["generationConfig"]
    assert (answer.dropped, sent["responseLogprobs"], sent["logprobs"]) == ((), True, 2)


KINDS: dict[str, type[ProviderError]] = {
    "400": Rejected,
    "401": AuthFailed,
    "403": AuthFailed,
    "404": Rejected,
    "408": Broken,
    "413": Rejected,
    "422": Rejected,
    "429": Throttled,
    "429-retry-after": Throttled,
    "429-retry-after-ms": Throttled,
    "429-retry-after-date": Throttled,
    "500": Broken,
    "502-html": Broken,
    "503": Overloaded,
    "context": ContextTooLong,
    "redirect": Broken,
    "cut-before-head": Unreachable,
    "garbage": Broken,
    "slow-first-byte": TimedOut,
    "200-error-body": Broken,
    "wrong-content-type": Broken,
    "truncated-json": WireError,
    "stall": TimedOut,
    "cut-mid-frame": Interrupted,
    "reset": Interrupted,
    "bad-frame": WireError,
    "stream-error": Overloaded,
    "no-end": Interrupted,
}
STREAMED_ONLY = {"stall", "cut-mid-frame", "reset", "bad-frame", "stream-error", "no-end"}
WAITS = {"429-retry-after": 7.0, "429-retry-after-ms": 1.5, "429-retry-after-date": 7.0}


@pytest.mark.parametrize("flavour", ["gemini", "vertex"])
@pytest.mark.parametrize("fault", list(KINDS))
async def test_faults_end_as_the_right_kind(flavour: Any, fault: str, transport: Http1Transport) -> None:
    stream = fault in STREAMED_ONLY or (flavour == "vertex" and fault.startswith("4"))
    async with GeminiEmulator(flavour) as emulator:
        provider = provider_at(emulator, transport) if flavour == "gemini" else vertex_at(emulator, transport)
        if KINDS[fault] is TimedOut:
            provider.timeouts = Timeouts(first_byte_s=0.3, between_bytes_s=0.3)
        with pytest.raises((KINDS[fault], Broken) if fault == "cut-before-head" else KINDS[fault]) as caught:
            body = {"contents": [{"parts": [{"text": "x-script: long=20"}]}]}
            await whole(await provider.send(native(body, stream=stream), f"fault-{fault}"), stream=stream)
        assert caught.value.retry_after_s == WAITS.get(fault)


def vertex_at(emulator: GeminiEmulator, transport: Http1Transport) -> Any:
    options = {"project": "p", "location": "us-central1"}
    credential = Credential({"access_token": "test-key"})
    return registry.create(Endpoint("vertex", emulator.url, credential=credential, options=options), transport)


@pytest.mark.parametrize("fault", ["byte-by-byte", "split-utf8", "huge-chunk", "no-usage", "keep-alive-close"])
async def test_hard_but_good_streams_are_read(fault: str, emulator: GeminiEmulator, transport: Http1Transport) -> None:
    body = {"contents": [{"parts": [{"text": "x-script: unicode"}]}]}
    answer = await provider_at(emulator, transport).send(native(body, stream=True), f"fault-{fault}")
    response = await whole(answer, stream=True)
    assert "日本語" in text_of(response)
    assert (response.usage.input_tokens is None) == (fault == "no-usage")


@pytest.mark.parametrize("name", ["systemInstruction", "system_instruction"])
def test_a_system_prompt_that_is_no_content_is_refused_as_google_does(name: str) -> None:
    """Its SDKs make content of a text; whoever writes JSON by hand should not learn of it when he changes hosts."""
    body = {"contents": [{"parts": [{"text": "hi"}]}], name: "be brief"}
    with pytest.raises(BadRequest) as refused:
        gemini.DIALECT.decode_request(json.dumps(body).encode(), model="m", stream=False)
    assert refused.value.param == "systemInstruction"


async def test_bad_key(emulator: GeminiEmulator, transport: Http1Transport) -> None:
    with pytest.raises(AuthFailed, match="API key not valid"):
        await provider_at(emulator, transport, "wrong").send(native({"contents": [{"parts": [{"text": "x"}]}]}), "m")


@pytest.mark.parametrize("stream", [False, True])
async def test_blocked_prompt_is_a_filtered_answer(
    emulator: GeminiEmulator, transport: Http1Transport, stream: bool
) -> None:
    body = {"contents": [{"parts": [{"text": "x"}]}]}
    answer = await provider_at(emulator, transport).send(native(body, stream=stream), "fault-content-filter")
    response = await whole(answer, stream=stream)
    assert response.candidates[0].finish_reason == "content_filter"
    assert response.candidates[0].native_reason == "PROHIBITED_CONTENT"
    assert response.usage.input_tokens == emulator.stats.input_tokens


async def test_models(emulator: GeminiEmulator, transport: Http1Transport) -> None:
    assert "gemini-2.5-flash" in await provider_at(emulator, transport).models()


@pytest.mark.parametrize("details", [5, {"a": 1}, [1, {"fieldViolations": 3}, {"retryDelay": 7}], "x"])
def test_details_of_any_shape_are_survived(details: Any) -> None:
    body = json.dumps({"error": {"code": 400, "message": "m", "status": "INVALID_ARGUMENT", "details": details}})
    assert type(gemini.DIALECT.decode_error(400, {}, body.encode())) is Rejected
