"""The yard as a stranger meets it: one line of JSON on standard output, and everything that it claims is true."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cohere
import openai
import psutil
import pytest
import pytest_asyncio

from tests.emulators.media import wav
from tests.matrix import features
from tests.matrix.anthropic_sdks import Messages
from tests.matrix.asks import Address
from tests.matrix.openai_sdks import Chat, Completions

pytestmark = pytest.mark.asyncio(loop_scope="module")

START_S = 60
FAMILIES = {
    *("openai", "azure_ai", "groq", "cerebras", "openai_like", "local", "cohere"),
    *("sagemaker", "anthropic", "bedrock", "bedrock_mantle", "vertex", "gemini"),
}
BY_CHAT: dict[str, features.Check] = {
    "chat": features.text,
    "stream": features.stream,
    "tools": features.tools,
    "tool_choice": features.forced_tool,
    "parallel_tools": features.parallel_tools,
    "json_schema": features.schema,
    "images": features.image,
    "reasoning": features.reasoning,
    "prompt_cache": features.prompt_cache,
    "stop": features.stop,
    "logprobs": features.logprobs,
    "candidates": features.candidates,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started() -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """The process and the line it printed. Port 0: any free one, which `base_url` tells."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.emulators", "--with-gateway", "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    async with asyncio.timeout(START_S):
        line = await process.stdout.readline()
    yield process, json.loads(line)
    if process.returncode is None:
        process.kill()
        await process.wait()


async def test_all_that_is_claimed_of_each_model_is_true(
    started: tuple[asyncio.subprocess.Process, dict[str, Any]],
) -> None:
    told = started[1]
    assert set(told["models"]) >= FAMILIES
    gateway = Address(told["base_url"], told["key"])
    chat, completions, claude = Chat(gateway), Completions(gateway), Messages(gateway)

    async def true_of(alias: str, capability: str) -> None:
        if capability in BY_CHAT:
            await BY_CHAT[capability](chat, alias)
        elif capability == "completions":
            await features.text(completions, alias)
        elif capability == "count_tokens":
            await features.count_tokens(claude, alias)
        else:
            await SPECIAL[capability](gateway, alias)

    room, wrong = asyncio.Semaphore(16), []

    async def one(alias: str, capability: str) -> None:
        async with room:
            try:
                await true_of(alias, capability)
            except Exception as error:
                wrong.append(f"{alias} {capability}: {type(error).__name__}: {error}"[:500])

    models = [model for listed in told["models"].values() for model in listed]
    await asyncio.gather(*(one(model["id"], word) for model in models for word in model["capabilities"]))
    for client in (chat, completions, claude):
        await client.aclose()
    assert not wrong, "\n".join(wrong)


def sdk_of(gateway: Address) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=gateway.v1, api_key=gateway.key, max_retries=0)


async def embeddings(gateway: Address, alias: str) -> None:
    async with sdk_of(gateway) as sdk:
        answer = await sdk.embeddings.create(model=alias, input=["one text", "another"])
    assert [len(entry.embedding) for entry in answer.data] == [8, 8]
    assert answer.usage.prompt_tokens > 0


async def rerank(gateway: Address, alias: str) -> None:
    sdk = cohere.AsyncClientV2(api_key=gateway.key, base_url=gateway.url, timeout=20)
    answer = await sdk.rerank(model=alias, query="whales sing", documents=["trees stand", "whales sing at night"])
    assert next(found.index for found in answer.results) == 1


async def transcriptions(gateway: Address, alias: str) -> None:
    async with sdk_of(gateway) as sdk:
        assert (await sdk.audio.transcriptions.create(model=alias, file=("a.wav", wav(1.0)))).text


async def translations(gateway: Address, alias: str) -> None:
    async with sdk_of(gateway) as sdk:
        assert (await sdk.audio.translations.create(model=alias, file=("a.wav", wav(1.0)))).text


async def speech(gateway: Address, alias: str) -> None:
    async with sdk_of(gateway) as sdk:
        sound = await sdk.audio.speech.create(model=alias, voice="alloy", input="hello", response_format="wav")
    assert sound.content.startswith(b"RIFF")


async def image_generation(gateway: Address, alias: str) -> None:
    async with sdk_of(gateway) as sdk:
        answer = await sdk.images.generate(model=alias, prompt="a lighthouse")
    assert answer.data is not None
    assert answer.data[0].b64_json


SPECIAL: dict[str, Callable[[Address, str], Any]] = {
    "embeddings": embeddings,
    "rerank": rerank,
    "transcriptions": transcriptions,
    "translations": translations,
    "speech": speech,
    "image_generation": image_generation,
}


async def test_told_to_stop_it_takes_everything_with_it(
    started: tuple[asyncio.subprocess.Process, dict[str, Any]],
) -> None:
    process, _ = started
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        assert await process.wait() == 0
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
