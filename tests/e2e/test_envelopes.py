"""Known dialects in other wrappings: Claude on Bedrock's and Vertex's paths, Gemini's stream as an array."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import boto3
import httpx
import pytest
from botocore.exceptions import ClientError, EventStreamError

from tests.e2e.yard import Yard

pytestmark = pytest.mark.asyncio(loop_scope="module")

COUNT = "count from 1 to 5"
FIVE = "1, 2, 3, 4, 5"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": COUNT}], "max_tokens": 100}
BACKENDS = ["via-anthropic", "via-openai", "via-gemini", "claude-bedrock"]


def runtime(yard: Yard) -> Any:
    key = yard.gateway.key
    return boto3.client(
        "bedrock-runtime",
        endpoint_url=yard.gateway.url,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=key,
    )


def body_of(**more: Any) -> bytes:
    return json.dumps({"anthropic_version": "bedrock-2023-05-31", **ASK, **more}).encode()


@pytest.mark.parametrize("alias", BACKENDS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_boto3_invokes_claude(yard: Yard, alias: str, stream: bool) -> None:
    def run() -> str:
        sdk = runtime(yard)
        if not stream:
            answer = json.loads(sdk.invoke_model(modelId=alias, body=body_of())["body"].read())
            return "".join(block["text"] for block in answer["content"])
        events = [
            json.loads(event["chunk"]["bytes"])
            for event in sdk.invoke_model_with_response_stream(modelId=alias, body=body_of())["body"]
        ]
        assert events[0]["type"] == "message_start"
        assert events[-1]["type"] == "message_stop"
        return "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta")

    assert await asyncio.to_thread(run) == FIVE


@pytest.mark.parametrize("alias", BACKENDS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_anthropics_own_bedrock_client(yard: Yard, alias: str, stream: bool) -> None:
    key = yard.gateway.key
    async with anthropic.AsyncAnthropicBedrock(
        base_url=yard.gateway.url, aws_access_key=key, aws_secret_key=key, aws_region="us-east-1", max_retries=0
    ) as sdk:
        if stream:
            async with await sdk.messages.create(model=alias, stream=True, **ASK) as events:
                seen = [e async for e in events]
            text = "".join(
                e.delta.text for e in seen if e.type == "content_block_delta" and e.delta.type == "text_delta"
            )
        else:
            answer = await sdk.messages.create(model=alias, **ASK)
            text = "".join(block.text for block in answer.content if block.type == "text")
    assert text == FIVE


@pytest.mark.parametrize("alias", BACKENDS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_anthropics_own_vertex_client(yard: Yard, alias: str, stream: bool) -> None:
    async with anthropic.AsyncAnthropicVertex(
        base_url=f"{yard.gateway.v1}", access_token=yard.gateway.key, project_id="p", region="us-east5", max_retries=0
    ) as sdk:
        if stream:
            async with sdk.messages.stream(model=alias, **ASK) as events:
                answer = await events.get_final_message()
        else:
            answer = await sdk.messages.create(model=alias, **ASK)
        counted = await sdk.messages.count_tokens(model=alias, messages=ASK["messages"])
    assert "".join(block.text for block in answer.content if block.type == "text") == FIVE
    assert counted.input_tokens > 0


async def test_betas_of_the_body_reach_anthropic_as_its_header(yard: Yard) -> None:
    body = body_of(anthropic_beta=["context-1m-2025-08-07", "other-1"])
    await asyncio.to_thread(lambda: runtime(yard).invoke_model(modelId="via-anthropic", body=body))
    sent = yard.backends["anthropic"].last
    assert sent.headers["anthropic-beta"] == "context-1m-2025-08-07,other-1"
    assert not sent.json().keys() & {"anthropic_beta", "anthropic_version"}


async def test_an_invocation_fails_as_boto3_knows_it(yard: Yard) -> None:
    def run() -> list[str]:
        sdk, seen = runtime(yard), []
        for alias, body in (("nope", body_of()), ("via-anthropic", b'{"messages":[]}'), ("anthropic-500", body_of())):
            with pytest.raises(ClientError) as refused:
                sdk.invoke_model(modelId=alias, body=body)
            seen.append(refused.value.response["Error"]["Code"])
        return seen

    codes = await asyncio.to_thread(run)
    assert codes[:2] == ["ResourceNotFoundException", "ValidationException"]
    assert codes[2] in ("InternalServerException", "ModelErrorException", "ServiceUnavailableException")


@pytest.mark.parametrize("alias", ["anthropic-stream-error", "openai-cut-mid-frame", "gemini-cut-mid-frame"])
async def test_an_error_in_the_stream_is_an_exception_frame(yard: Yard, alias: str) -> None:
    def run() -> None:
        events = iter(runtime(yard).invoke_model_with_response_stream(modelId=alias, body=body_of())["body"])
        assert next(events)["chunk"]["bytes"]
        with pytest.raises(EventStreamError):
            list(events)

    await asyncio.to_thread(run)


@pytest.mark.parametrize("alias", ["via-gemini", "via-openai"])
async def test_a_gemini_stream_without_alt_sse_is_one_array(yard: Yard, alias: str) -> None:
    body = {"contents": [{"role": "user", "parts": [{"text": COUNT}]}]}
    async with httpx.AsyncClient(headers={"x-goog-api-key": yard.gateway.key}) as http:
        url = f"{yard.gateway.url}/v1beta/models/{alias}:streamGenerateContent"
        answer = await http.post(url, json=body)
        cut = await http.post(url.replace(alias, "openai-cut-mid-frame"), json=body)
    assert answer.headers["content-type"].startswith("application/json")
    chunks = answer.json()
    assert len(chunks) > 1
    texts = [p.get("text", "") for c in chunks for p in c["candidates"][0].get("content", {}).get("parts", ())]
    assert "".join(texts) == FIVE
    assert cut.json()[-1]["error"]["code"] >= 500


async def test_what_claude_code_asks_before_it_starts(yard: Yard) -> None:
    async with httpx.AsyncClient(base_url=yard.gateway.url) as http:
        assert (await http.head("/")).status_code == 200
        assert (await http.get("/v1/tcp_warming")).status_code in (200, 204)
        assert (await http.get("/inference-profiles?type=SYSTEM_DEFINED")).status_code == 401
        key = {"authorization": f"Bearer {yard.gateway.key}"}
        listed = await http.get("/inference-profiles?type=SYSTEM_DEFINED", headers=key)
        models = await http.get("/foundation-models", headers=key)
        assert (await http.post("/v1/messages?beta=true", headers=key, json={"model": "via-openai", **ASK})).is_success
    found = {profile["inferenceProfileId"] for profile in listed.json()["inferenceProfileSummaries"]}
    assert {"via-anthropic", "claude-bedrock"} <= found
    assert {"via-anthropic"} <= {model["modelId"] for model in models.json()["modelSummaries"]}
