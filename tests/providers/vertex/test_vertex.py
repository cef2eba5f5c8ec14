"""Vertex against its emulator: the three surfaces, their paths and credentials, and what Vertex must not be sent."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google import genai
from google.genai import types
from google.oauth2.credentials import Credentials

from providers import registry
from providers.base import Call, Credential, Endpoint
from providers.dialects import load
from providers.errors import AuthFailed, Unsupported
from providers.transport.http1 import Http1Transport
from providers.vertex import Vertex
from tests.emulators.gemini import GeminiEmulator
from tests.providers.taken import said

ROOT = "/v1/projects/p/locations/us-central1"


@pytest.fixture
async def transport() -> AsyncIterator[Http1Transport]:
    transport = Http1Transport()
    yield transport
    await transport.aclose()


@pytest.fixture
async def emulator() -> AsyncIterator[GeminiEmulator]:
    async with GeminiEmulator("vertex") as server:
        yield server


def provider_at(emulator: GeminiEmulator, transport: Http1Transport, **fields: str) -> Any:
    options = {"project": "p", "location": "us-central1"}
    credential = Credential(fields or {"access_token": "test-key"})
    return registry.create(Endpoint("vertex", emulator.url, credential=credential, options=options), transport)


def call_of(dialect: str, body: dict[str, Any], *, stream: bool | None = None) -> Call:
    raw = json.dumps(body).encode()
    model = "alias" if dialect == "gemini" else None
    return Call("chat", dialect, load(dialect).decode_request(raw, model=model, stream=stream), raw, "req")


async def test_the_sdk_reads_the_emulator(emulator: GeminiEmulator) -> None:
    credentials: Any = Credentials(token="test-key")  # type: ignore[no-untyped-call]
    client = genai.Client(
        vertexai=True,
        project="p",
        location="us-central1",
        credentials=credentials,
        http_options=types.HttpOptions(base_url=emulator.url),
    ).aio
    answer = await client.models.generate_content(model="gemini-2.5-flash", contents="say hello")
    assert answer.text == "hello"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata.traffic_type is types.TrafficType.ON_DEMAND
    await client.aclose()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-flash", f"{ROOT}/publishers/google/models/gemini-2.5-flash"),
        ("google/gemini-2.5-flash", f"{ROOT}/publishers/google/models/gemini-2.5-flash"),
        ("endpoints/123", f"{ROOT}/endpoints/123"),
    ],
)
async def test_gemini(emulator: GeminiEmulator, transport: Http1Transport, model: str, path: str, stream: bool) -> None:
    call = call_of("openai_chat", {"model": "a", "messages": [{"role": "user", "content": "say hi"}], "stream": stream})
    assert await said(await provider_at(emulator, transport).send(call, model), stream=stream) == "hi"
    assert emulator.last.path == f"{path}:{'streamGenerateContent' if stream else 'generateContent'}"
    assert emulator.last.headers["authorization"] == "Bearer test-key"


async def test_ids_and_tiers_stay_out_of_the_body(emulator: GeminiEmulator, transport: Http1Transport) -> None:
    """Forwarded or encoded alike: Vertex answers 400 to a field that it does not know."""
    tool_call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"id": "kept"}'}}
    chat = {
        "model": "a",
        "service_tier": "flex",
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "tool_calls": [tool_call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        ],
    }
    native = {
        "serviceTier": "flex",
        "contents": [
            {"role": "user", "parts": [{"text": "x"}]},
            {"role": "model", "parts": [{"functionCall": {"id": "i", "name": "f", "args": {"id": "kept"}}}]},
            {"role": "user", "parts": [{"functionResponse": {"id": "i", "name": "f", "response": {"output": "42"}}}]},
        ],
    }
    for dialect, body in (("openai_chat", chat), ("gemini", native)):
        answer = await provider_at(emulator, transport).send(call_of(dialect, body), "gemini-2.5-flash")
        assert await said(answer, stream=False) == "The tool said: 42"
        sent = emulator.last.json()["contents"][1]["parts"][0]["functionCall"]
        assert sent == {"name": "f", "args": {"id": "kept"}}
        assert emulator.last.headers["x-vertex-ai-llm-shared-request-type"] == "flex"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", ["anthropic_messages", "openai_chat"])
async def test_claude_by_raw_predict(
    emulator: GeminiEmulator, transport: Http1Transport, dialect: str, stream: bool
) -> None:
    body = {
        "model": "alias",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "say hi"}],
        "stream": stream,
    }
    answer = await provider_at(emulator, transport).send(call_of(dialect, body), "claude-sonnet-4-5@20250929")
    assert await said(answer, stream=stream) == "hi"
    verb = "streamRawPredict" if stream else "rawPredict"
    assert emulator.last.path == f"{ROOT}/publishers/anthropic/models/claude-sonnet-4-5@20250929:{verb}"
    sent = emulator.last.json()
    assert "model" not in sent
    assert sent["anthropic_version"] == "vertex-2023-10-16"


@pytest.mark.parametrize("stream", [False, True])
async def test_models_of_others_by_the_openai_endpoint(
    emulator: GeminiEmulator, transport: Http1Transport, stream: bool
) -> None:
    body = {"model": "alias", "messages": [{"role": "user", "content": "say hi"}], "stream": stream, "max_tokens": 9}
    model = "meta/llama-4-maverick-17b-128e-instruct-maas"
    answer = await provider_at(emulator, transport).send(call_of("openai_chat", body), model)
    assert await said(answer, stream=stream) == "hi"
    assert emulator.last.path == f"{ROOT}/endpoints/openapi/chat/completions"
    assert emulator.last.json()["model"] == model


async def test_express_mode(emulator: GeminiEmulator, transport: Http1Transport) -> None:
    provider = provider_at(emulator, transport, api_key="test-key")
    body = {"contents": [{"parts": [{"text": "say hi"}]}]}
    assert await said(await provider.send(call_of("gemini", body), "gemini-2.5-flash"), stream=False) == "hi"
    assert emulator.last.path == "/v1/publishers/google/models/gemini-2.5-flash:generateContent"
    with pytest.raises(Unsupported):
        await provider.send(call_of("gemini", body), "claude-opus-4")


async def test_bad_token(emulator: GeminiEmulator, transport: Http1Transport) -> None:
    body = {"contents": [{"parts": [{"text": "x"}]}]}
    with pytest.raises(AuthFailed):
        await provider_at(emulator, transport, access_token="old").send(call_of("gemini", body), "gemini-2.5-flash")


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("global", "https://aiplatform.googleapis.com"),
        ("eu", "https://aiplatform.eu.rep.googleapis.com"),
        ("europe-west4", "https://europe-west4-aiplatform.googleapis.com"),
    ],
)
def test_hosts(location: str, host: str) -> None:
    endpoint = Endpoint("vertex", region=location, options={"project": "p"})
    assert Vertex(endpoint, Http1Transport()).base_url == host


@pytest.mark.parametrize("options", [{}, {"project": "p", "location": "evil.example/"}])
def test_bad_settings_stop_the_start(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="vertex"):
        Vertex(Endpoint("vertex", options=options), Http1Transport())
