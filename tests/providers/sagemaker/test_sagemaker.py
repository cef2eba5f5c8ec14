"""The SageMaker adapter and its emulator, both ways in; boto3 judges the emulator's frames."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from providers import registry
from providers.base import Call, Credential, Endpoint
from providers.dialects import openai_chat
from providers.errors import AuthFailed, Broken, Overloaded, ProviderError, Rejected, Throttled
from providers.neutral import ChatRequest, Message, TextPart, collect
from providers.sagemaker import SageMaker
from providers.transport.http1 import Http1Transport
from tests.emulators.bedrock import ACCESS_KEY_ID, SECRET_ACCESS_KEY
from tests.emulators.sagemaker import SageMakerEmulator
from tests.providers.taken import whole

KEYS = {"access_key_id": ACCESS_KEY_ID, "secret_access_key": SECRET_ACCESS_KEY}


@pytest.fixture
async def transport() -> AsyncIterator[Http1Transport]:
    transport = Http1Transport()
    yield transport
    await transport.aclose()


def adapter(
    emulator: SageMakerEmulator, transport: Http1Transport, fields: dict[str, str] = KEYS, **options: Any
) -> SageMaker:
    provider = registry.create(Endpoint("sagemaker", emulator.url, "us-east-1", Credential(fields), options), transport)
    assert isinstance(provider, SageMaker)
    return provider


def call(text: str, *, stream: bool = False, forward: bool = True) -> Call:
    raw = json.dumps({"model": "a", "messages": [{"role": "user", "content": text}], "stream": stream}).encode()
    request = openai_chat.DIALECT.decode_request(raw)
    return Call("chat", "openai_chat" if forward else "other", request, raw, "r")


@pytest.mark.parametrize("api", ["openai", "invocations"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("forward", [False, True])
async def test_answers_and_usage(api: str, stream: bool, forward: bool, transport: Http1Transport) -> None:
    async with SageMakerEmulator() as emulator:
        provider = adapter(emulator, transport, api=api, inference_component="llama")
        asked = call("x-script: unicode", stream=stream, forward=forward)
        response = await whole(await provider.send(asked, "my-endpoint"), stream=stream)
        (text,) = response.candidates[0].content
        assert isinstance(text, TextPart)
        assert "日本語 👩‍👩‍👧 line\u2028separator" in text.text
        assert response.usage.output_tokens == emulator.stats.output_tokens
        tail = "openai/v1/chat/completions" if api == "openai" else "invocations" + "-response-stream" * stream
        assert emulator.last.raw_path == f"/endpoints/my-endpoint/{tail}"
        assert emulator.last.json()["model"] == ""
        assert emulator.last.headers["x-amzn-sagemaker-inference-component"] == "llama"


async def test_an_openai_client_gets_plain_sse_out_of_the_frames(transport: Http1Transport) -> None:
    async with SageMakerEmulator() as emulator:
        answer = await adapter(emulator, transport, api="invocations").send(call("say hi", stream=True), "e")
        tap, seen = answer.dialect.tap(False), bytearray()
        async for chunk in answer.chunks():
            seen += tap.feed(chunk)
        seen += tap.close()
        await answer.aclose()
        assert seen.startswith(b"data: {")
        assert seen.endswith(b"data: [DONE]\n\n")
        assert b'"prompt_tokens"' not in seen  # the client did not ask for usage; we did
        assert tap.usage.output_tokens == 1


@pytest.mark.parametrize("api", ["openai", "invocations"])
@pytest.mark.parametrize(
    ("fault", "kind", "status"),
    [
        ("429", Throttled, 429),
        ("not-ready", Overloaded, 429),
        ("500", Broken, 500),
        ("503", Overloaded, 503),
        ("530", Broken, 530),
    ],
)
async def test_faults(api: str, fault: str, kind: type[ProviderError], status: int, transport: Http1Transport) -> None:
    async with SageMakerEmulator() as emulator:
        with pytest.raises(ProviderError) as raised:
            await adapter(emulator, transport, api=api).send(call("x"), f"fault-{fault}")
        assert type(raised.value) is kind
        assert raised.value.status == status


async def test_the_containers_own_refusal_comes_through(transport: Http1Transport) -> None:
    async with SageMakerEmulator() as emulator:
        with pytest.raises(Rejected, match="does not exist") as raised:
            await adapter(emulator, transport, served_model="x").send(call("x"), "e")
        assert raised.value.status == 404


async def test_an_error_among_the_frames(transport: Http1Transport) -> None:
    async with SageMakerEmulator() as emulator:
        provider = adapter(emulator, transport, api="invocations")
        with pytest.raises(Broken, match="container died") as raised:
            await whole(await provider.send(call("x", stream=True), "fault-stream-error"), stream=True)
        assert raised.value.code == "StreamBroken"


async def test_wrong_keys_and_a_missing_region(transport: Http1Transport) -> None:
    async with SageMakerEmulator() as emulator:
        wrong = adapter(emulator, transport, {**KEYS, "secret_access_key": "no"}, api="invocations")
        with pytest.raises(AuthFailed):
            await wrong.send(call("x"), "e")
        await wrong.aclose()
    with pytest.raises(ValueError, match="region"):
        SageMaker(Endpoint("sagemaker", credential=Credential(KEYS)), transport)
    placed = SageMaker(Endpoint("sagemaker", region="eu-west-1", credential=Credential(KEYS)), transport)
    assert placed.base_url == "https://runtime.sagemaker.eu-west-1.amazonaws.com"


def _boto3_stream(url: str) -> bytes:
    client = boto3.client(
        "sagemaker-runtime",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
        config=Config(retries={"total_max_attempts": 1}),
    )
    body = json.dumps({"messages": [{"role": "user", "content": "say hi"}], "stream": True})
    answer = client.invoke_endpoint_with_response_stream(EndpointName="e", Body=body)
    streamed = b"".join(event["PayloadPart"]["Bytes"] for event in answer["Body"])
    with pytest.raises(ClientError) as raised:
        client.invoke_endpoint(EndpointName="fault-429", Body=body)
    assert raised.value.response["OriginalStatusCode"] == 429
    return streamed


async def test_the_emulator_is_what_boto3_expects() -> None:
    async with SageMakerEmulator() as emulator:
        streamed = await asyncio.to_thread(_boto3_stream, emulator.url)
    decoder = openai_chat.DIALECT.event_decoder()
    response = collect([*decoder.feed(streamed), *decoder.close()])
    assert response.candidates[0].content == (TextPart("hi"),)


def test_the_neutral_request_is_bounded_under_the_name_that_containers_know() -> None:
    request = ChatRequest("a", (Message("user", (TextPart("x"),)),), max_output_tokens=7)
    provider = SageMaker(Endpoint("sagemaker", region="eu-west-1", credential=Credential(KEYS)), Http1Transport())
    body = provider.adjust({"max_completion_tokens": 9}, Call("chat", "o", request, b"", "r"), "e")
    assert body == {"model": "", "max_tokens": 7}
