"""Token counts: asked of the provider where it counts, estimated and called so where none does; never charged."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import boto3
import httpx
import openai
import pytest
from google import genai
from google.genai import types

from tests.e2e.yard import Yard

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASKED = "count from 1 to 5"
COUNTED = 8  # 3, and one for each of its pieces, as the scripted model has it


async def by_anthropic(yard: Yard, alias: str) -> int:
    async with anthropic.AsyncAnthropic(base_url=yard.gateway.url, api_key=yard.gateway.key, max_retries=0) as sdk:
        asked: Any = [{"role": "user", "content": ASKED}]
        return (await sdk.messages.count_tokens(model=alias, messages=asked)).input_tokens


async def by_gemini(yard: Yard, alias: str) -> int:
    sdk = genai.Client(api_key=yard.gateway.key, http_options=types.HttpOptions(base_url=yard.gateway.url))
    return (await sdk.aio.models.count_tokens(model=alias, contents=ASKED)).total_tokens or 0


async def by_boto3(yard: Yard, alias: str) -> int:
    def run() -> int:
        key = yard.gateway.key
        sdk = boto3.client(
            "bedrock-runtime",
            endpoint_url=yard.gateway.url,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=key,
        )
        converse = {"messages": [{"role": "user", "content": [{"text": ASKED}]}]}
        return int(sdk.count_tokens(modelId=alias, input={"converse": converse})["inputTokens"])

    return await asyncio.to_thread(run)


async def by_openai(yard: Yard, alias: str) -> int:
    async with openai.AsyncOpenAI(base_url=yard.gateway.v1, api_key=yard.gateway.key, max_retries=0) as sdk:
        return (await sdk.responses.input_tokens.count(model=alias, input=ASKED)).input_tokens


CLIENTS = {"anthropic": by_anthropic, "gemini": by_gemini, "boto3": by_boto3, "openai": by_openai}


@pytest.mark.parametrize("client", list(CLIENTS))
@pytest.mark.parametrize("backend", ["anthropic", "gemini", "bedrock"])
async def test_a_provider_that_counts_is_asked(yard: Yard, client: str, backend: str) -> None:
    assert await CLIENTS[client](yard, f"via-{backend}") == COUNTED


@pytest.mark.parametrize("client", list(CLIENTS))
async def test_elsewhere_it_is_estimated_and_says_so(yard: Yard, client: str) -> None:
    sent = yard.backends["groq"].stats.requests
    assert 5 <= await CLIENTS[client](yard, "via-groq") <= 30
    assert yard.backends["groq"].stats.requests == sent


async def test_a_count_is_free_and_needs_a_key(yard: Yard) -> None:
    before = len(await yard.gateway.rows())
    body = {"model": "via-groq", "messages": [{"role": "user", "content": ASKED}]}
    async with httpx.AsyncClient() as http:
        url = f"{yard.gateway.v1}/messages/count_tokens?beta=true"
        answer = await http.post(url, json=body, headers={"x-api-key": yard.gateway.key})
        assert answer.headers["x-farebox-estimated"] == "true"
        assert (await http.post(url, json=body)).status_code == 401
        unknown = await http.post(url, json=body | {"model": "nope"}, headers={"x-api-key": yard.gateway.key})
    assert unknown.status_code == 404
    assert unknown.json()["error"]["type"] == "not_found_error"
    assert len(await yard.gateway.rows()) == before


async def test_a_count_that_the_provider_cannot_give_now_is_estimated(yard: Yard) -> None:
    backend = yard.backends["anthropic"]
    await backend.stop()
    try:
        assert 5 <= await by_anthropic(yard, "via-anthropic") <= 30
    finally:
        await backend.start()
