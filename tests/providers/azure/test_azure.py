"""Azure: the emulator proved by openai.AzureOpenAI, the adapter by the emulator."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI

from providers import registry
from providers.auth.entra import entra_token
from providers.azure_ai import AzureAI
from providers.base import Call, Credential, Endpoint
from providers.dialects import load
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
    Unsupported,
)
from providers.transport.base import Timeouts
from providers.transport.http1 import Http1Transport
from tests.emulators.azure import AzureEmulator
from tests.providers.speaking import Speaker
from tests.providers.taken import said

CLASSIC = "2024-10-21"


@pytest.fixture
async def transport() -> AsyncIterator[Http1Transport]:
    transport = Http1Transport()
    yield transport
    await transport.aclose()


@pytest.fixture
async def emulator() -> AsyncIterator[AzureEmulator]:
    async with AzureEmulator() as server:
        yield server


def provider_at(url: str, transport: Http1Transport, key: str = "azure-key", **options: Any) -> Any:
    endpoint = Endpoint("azure_ai", url, credential=Credential({"api_key": key}), options=options)
    return registry.create(endpoint, transport)


def call_of(body: dict[str, Any], dialect: str = "openai_chat", **fields: Any) -> Call:
    raw = json.dumps({"model": "alias", **body}).encode()
    return Call("chat", dialect, load(dialect).decode_request(raw), raw, "req", **fields)


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


# --- the emulator -----------------------------------------------------------------------------------------------------


async def test_the_sdk_reads_the_emulator(emulator: AzureEmulator) -> None:
    async with AsyncAzureOpenAI(
        api_key="azure-key", azure_endpoint=emulator.url, api_version=CLASSIC, max_retries=0
    ) as client:
        messages: Any = [{"role": "user", "content": "say hi"}]
        answer = await client.chat.completions.create(model="gpt-4o-mini", messages=messages)
        assert answer.choices[0].message.content == "hi"
        stream = await client.chat.completions.create(model="gpt-4o-mini", messages=messages, stream=True)
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices == []
        assert chunks[0].model_extra is not None
        assert "prompt_filter_results" in chunks[0].model_extra
        with pytest.raises(openai.BadRequestError) as filtered:
            await client.chat.completions.create(model="fault-content-filter", messages=messages)
        assert filtered.value.code == "content_filter"
        with pytest.raises(openai.RateLimitError) as throttled:
            await client.chat.completions.create(model="fault-429", messages=messages)
        assert throttled.value.response.headers["retry-after-ms"] == "2500"
    async with AsyncOpenAI(api_key="azure-key", base_url=f"{emulator.url}/openai/v1") as v1:
        answer = await v1.chat.completions.create(model="gpt-4o-mini", messages=messages)
        assert answer.choices[0].message.content == "hi"


# --- the adapter ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({}, "/openai/v1/chat/completions"),
        ({"api_version": CLASSIC}, "/openai/deployments/gpt-4o-mini/chat/completions"),
    ],
)
async def test_chat(
    emulator: AzureEmulator, transport: Http1Transport, options: dict[str, str], path: str, stream: bool
) -> None:
    provider = provider_at(f"{emulator.url}/openai/v1/" if not options else emulator.url, transport, **options)
    call = call_of(ask("say hi", stream=stream, max_tokens=50))
    assert await said(await provider.send(call, "gpt-4o-mini"), stream=stream) == "hi"
    assert emulator.last.path == path
    assert emulator.last.query.get("api-version") == options.get("api_version")
    assert emulator.last.headers["api-key"] == "azure-key"
    assert emulator.last.json()["max_completion_tokens"] == 50


async def test_output_limit_under_the_name_the_model_knows(emulator: AzureEmulator, transport: Http1Transport) -> None:
    provider = provider_at(emulator.url, transport, output_limit="max_tokens")
    await said(await provider.send(call_of(ask("say hi", max_completion_tokens=50)), "gpt-4o-mini"), stream=False)
    assert emulator.last.json()["max_tokens"] == 50


async def test_deployment_names_stay_inside_the_path(emulator: AzureEmulator, transport: Http1Transport) -> None:
    provider = provider_at(emulator.url, transport, api_version=CLASSIC)
    with pytest.raises(Rejected):
        await provider.send(call_of(ask("x")), "../../evil?x=")
    assert emulator.last.raw_path.startswith("/openai/deployments/..%2F..%2Fevil%3Fx%3D/")


@pytest.mark.parametrize("dialect", ["anthropic_messages", "openai_chat"])
async def test_claude_on_foundry(emulator: AzureEmulator, transport: Http1Transport, dialect: str) -> None:
    call = call_of(ask("say hi", max_tokens=50), dialect)
    assert await said(await provider_at(emulator.url, transport).send(call, "claude-opus-4-5"), stream=False) == "hi"
    assert emulator.last.path == "/anthropic/v1/messages"
    assert emulator.last.headers["x-api-key"] == emulator.last.headers["api-key"] == "azure-key"
    assert emulator.last.json()["model"] == "claude-opus-4-5"


@pytest.mark.parametrize("stream", [False, True])
async def test_responses_go_to_responses(transport: Http1Transport, stream: bool) -> None:
    async with Speaker() as speaker:
        call = call_of({"input": "say hi", "stream": stream, "store": False}, "openai_responses", output_limit=77)
        answer = await provider_at(speaker.url, transport).send(call, "gpt-5")
        assert await said(answer, stream=stream) == "hi"
        assert speaker.last.path == "/openai/v1/responses"
        sent = speaker.last.json()
        assert (sent["model"], sent["input"], sent["max_output_tokens"]) == ("gpt-5", "say hi", 77)


async def test_responses_with_foreign_seals_are_encoded_anew(transport: Http1Transport) -> None:
    async with Speaker() as speaker:
        sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "fbx1.e30="}
        body = {"input": [{"role": "user", "content": "x"}, sealed, {"role": "user", "content": "say hi"}]}
        call = call_of(body, "openai_responses")
        await said(await provider_at(speaker.url, transport).send(call, "gpt-5"), stream=False)
        assert [item["type"] for item in speaker.last.json()["input"]] == ["message", "message"]


async def test_responses_by_deployment_are_chats(emulator: AzureEmulator, transport: Http1Transport) -> None:
    """The older surface has no responses."""
    provider = provider_at(emulator.url, transport, api_version=CLASSIC)
    answer = await provider.send(call_of({"input": "say hi"}, "openai_responses"), "gpt-4o-mini")
    assert await said(answer, stream=False) == "hi"
    assert emulator.last.path.endswith("/chat/completions")


async def test_unsupported(emulator: AzureEmulator, transport: Http1Transport) -> None:
    with pytest.raises(Unsupported) as caught:
        await provider_at(emulator.url, transport).send(call_of(ask("x", top_k=5)), "gpt-4o-mini")
    assert caught.value.features == ("top_k",)


KINDS: dict[str, type[ProviderError]] = {
    "400": Rejected,
    "401": AuthFailed,
    "402": AuthFailed,
    "403": AuthFailed,
    "404": Rejected,
    "408": Broken,
    "429": Throttled,
    "429-retry-after": Throttled,
    "429-quota": AuthFailed,
    "500": Broken,
    "503": Overloaded,
    "context": ContextTooLong,
    "content-filter": ContentFiltered,
    "stream-error": Broken,
    "cut-mid-frame": Interrupted,
    "stall": TimedOut,
}


@pytest.mark.parametrize("fault", list(KINDS))
async def test_faults_end_as_the_right_kind(fault: str, emulator: AzureEmulator, transport: Http1Transport) -> None:
    provider = provider_at(emulator.url, transport)
    if KINDS[fault] is TimedOut:
        provider.timeouts = Timeouts(between_bytes_s=0.3)
    with pytest.raises(KINDS[fault]) as caught:
        call = call_of(ask("x-script: long=20", stream=True))
        await said(await provider.send(call, f"fault-{fault}"), stream=True)
    assert type(caught.value) is KINDS[fault]
    assert caught.value.retry_after_s == {"429": 2.5, "429-retry-after": 7.0}.get(fault)


async def test_wait_told_in_words_alone(transport: Http1Transport) -> None:
    async with AzureEmulator(throttle="text") as emulator:
        with pytest.raises(Throttled) as caught:
            await provider_at(emulator.url, transport).send(call_of(ask("x")), "fault-429")
        assert caught.value.retry_after_s == 6


async def test_wrong_key(emulator: AzureEmulator, transport: Http1Transport) -> None:
    with pytest.raises(AuthFailed):
        await provider_at(emulator.url, transport, "wrong").send(call_of(ask("x")), "gpt-4o-mini")


async def test_entra_bearer(transport: Http1Transport) -> None:
    async with AzureEmulator(api_key="entra-token") as emulator:
        endpoint = Endpoint("azure_ai", emulator.url, credential=Credential({"access_token": "entra-token"}))
        provider = AzureAI(endpoint, transport)
        assert await said(await provider.send(call_of(ask("say hi")), "gpt-4o-mini"), stream=False) == "hi"
        assert emulator.last.headers["authorization"] == "Bearer entra-token"
        assert "api-key" not in emulator.last.headers
        await provider.aclose()


async def test_entra_without_a_way_in_is_ours_to_fix() -> None:
    fields = {"tenant_id": "bad tenant", "client_id": "c", "client_secret": "s"}
    with pytest.raises(AuthFailed, match="Entra"):
        await entra_token(Credential(fields)).get()


def test_resource_names() -> None:
    made = AzureAI(
        Endpoint("azure_ai", options={"resource": "my-res"}, credential=Credential({"api_key": "k"})), Http1Transport()
    )
    assert made.base_url == "https://my-res.services.ai.azure.com"
    with pytest.raises(ValueError, match="resource"):
        AzureAI(Endpoint("azure_ai", options={"resource": "evil.example/"}), Http1Transport())
    with pytest.raises(ValueError, match="base_url"):
        AzureAI(Endpoint("azure_ai"), Http1Transport())
