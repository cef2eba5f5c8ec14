"""Embeddings of every host that makes them, asked by openai-python, google-genai and boto3; each token is charged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import boto3
import openai
import pytest
import pytest_asyncio
from botocore.config import Config
from google import genai
from google.genai import types

from tests.e2e.harness import House, house, model, provider, settings_for
from tests.emulators import scripted
from tests.emulators.azure import AzureEmulator
from tests.emulators.bedrock import BedrockEmulator
from tests.emulators.gemini import GeminiEmulator
from tests.emulators.openai import vector
from tests.emulators.server import Emulator

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = ["a first text", "and a second one", "three"]
PRICE_PUSD = 1_500_000
HOSTS = {
    "vertex-old": "vertex/text-embedding-005",
    "vertex-new": "vertex/gemini-embedding-001",
    "bedrock-titan": "bedrock/amazon.titan-embed-text-v2:0",
    "bedrock-cohere": "bedrock/cohere.embed-multilingual-v3",
    "bedrock-nova": "bedrock/amazon.nova-2-multimodal-embeddings-v1:0",
    "azure": "azure/text-embedding-3-small",
    "azure-old": "azure-old/text-embedding-3-small",
}


class Hosts:
    def __init__(self, gateway: House, backends: dict[str, Emulator]) -> None:
        self.gateway = gateway
        self.backends = backends

    @property
    def openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.gateway.v1, api_key=self.gateway.key, max_retries=0)

    def boto3(self) -> Any:
        return boto3.client(
            "bedrock-runtime",
            endpoint_url=self.gateway.url,
            region_name="us-east-1",
            aws_access_key_id=self.gateway.key,
            aws_secret_access_key=self.gateway.key,
            config=Config(retries={"max_attempts": 0}),
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str) -> AsyncIterator[Hosts]:
    folder = tmp_path_factory.mktemp("embed")
    (folder / "farebox.db").write_bytes(sqlite_template.read_bytes())
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        bedrock, azure = await enter(BedrockEmulator()), await enter(AzureEmulator())
        vertex = await enter(GeminiEmulator("vertex", key="token"))
        aws = {"access_key_id": "AKIDTEST", "secret_access_key": "secret-test-key"}
        google = {"project": "p", "location": "us-central1"}
        azure_key, old = {"api_key": "azure-key"}, {"api_version": "2024-10-21"}
        providers = {
            "bedrock": provider("bedrock", bedrock.url, aws, region="us-east-1"),
            "azure": provider("azure_ai", azure.url, azure_key),
            "azure-old": provider("azure_ai", azure.url, azure_key, options=old),
            "vertex": provider("vertex", vertex.url, {"access_token": "token"}, options=google),
        }
        models = tuple(model(alias, place) for alias, place in HOSTS.items())
        models += (model("titan-pictures", "bedrock/amazon.titan-embed-image-v1"),)
        url = f"sqlite+aiosqlite:///{folder / 'farebox.db'}"
        built = await enter(house(settings_for(folder, url, _valkey, providers, models)))
        yield Hosts(built, {"bedrock": bedrock, "azure": azure, "vertex": vertex})


@pytest.mark.parametrize("alias", HOSTS)
@pytest.mark.parametrize("dimensions", [None, 256])
async def test_openai_python_gets_the_vectors(hosts: Hosts, alias: str, dimensions: int | None) -> None:
    before = await hosts.gateway.charged_pusd()
    more: Any = {} if dimensions is None else {"dimensions": dimensions}
    answer = await hosts.openai.embeddings.create(model=alias, input=TEXTS, **more)
    assert [entry.embedding for entry in answer.data] == [vector(text, dimensions or 8) for text in TEXTS]
    tokens = sum(scripted.count(text) for text in TEXTS)
    assert answer.usage.prompt_tokens == tokens
    assert await hosts.gateway.charged_pusd() - before == tokens * PRICE_PUSD


async def test_google_genai_names_a_task(hosts: Hosts) -> None:
    sdk = genai.Client(api_key=hosts.gateway.key, http_options=types.HttpOptions(base_url=hosts.gateway.url))
    config = types.EmbedContentConfig(task_type="RETRIEVAL_QUERY", output_dimensionality=16)
    for alias in ("vertex-old", "bedrock-cohere"):
        answer = await sdk.aio.models.embed_content(model=alias, contents=TEXTS, config=config)  # type: ignore[arg-type]
        assert [entry.values for entry in answer.embeddings or []] == [vector(text, 16) for text in TEXTS]
    assert hosts.backends["vertex"].last.json()["instances"][0]["task_type"] == "RETRIEVAL_QUERY"
    assert hosts.backends["bedrock"].last.json()["input_type"] == "search_query"


async def test_more_than_one_call_takes_are_several(hosts: Hosts) -> None:
    many = ["x"] * 100
    answer = await hosts.openai.embeddings.create(model="bedrock-cohere", input=many)
    assert len(answer.data) == 100
    assert [len(sent.json()["texts"]) for sent in hosts.backends["bedrock"].requests[-2:]] in ([96, 4], [4, 96])


@pytest.mark.parametrize("alias", ["bedrock-titan", "bedrock-cohere", "azure", "vertex-old"])
async def test_boto3_asks_in_titans_form(hosts: Hosts, alias: str) -> None:
    body = json.dumps({"inputText": TEXTS[0], "dimensions": 16})
    answer = await asyncio.to_thread(hosts.boto3().invoke_model, modelId=alias, body=body)
    said = json.loads(answer["body"].read())
    assert said["embedding"] == vector(TEXTS[0], 16)
    assert said["inputTextTokenCount"] == scripted.count(TEXTS[0])


async def test_boto3_asks_in_coheres_form(hosts: Hosts) -> None:
    body = json.dumps({"texts": TEXTS, "input_type": "search_query"})
    answer = await asyncio.to_thread(hosts.boto3().invoke_model, modelId="bedrock-cohere", body=body)
    assert json.loads(answer["body"].read())["embeddings"] == [vector(text, 8) for text in TEXTS]
    told = answer["ResponseMetadata"]["HTTPHeaders"]["x-amzn-bedrock-input-token-count"]
    assert int(told) == sum(scripted.count(text) for text in TEXTS)


def nova(text: dict[str, Any], **more: Any) -> str:
    params = {"embeddingPurpose": "TEXT_RETRIEVAL", "text": text, **more}
    return json.dumps({"taskType": "SINGLE_EMBEDDING", "singleEmbeddingParams": params})


@pytest.mark.parametrize("alias", ["bedrock-nova", "bedrock-cohere", "vertex-old"])
async def test_boto3_asks_in_novas_form(hosts: Hosts, alias: str) -> None:
    body = nova({"truncationMode": "NONE", "value": TEXTS[0]}, embeddingDimension=256)
    answer = await asyncio.to_thread(hosts.boto3().invoke_model, modelId=alias, body=body)
    (found,) = json.loads(answer["body"].read())["embeddings"]
    assert (found["embeddingType"], found["embedding"]) == ("TEXT", vector(TEXTS[0], 256))
    told = answer["ResponseMetadata"]["HTTPHeaders"]["x-amzn-bedrock-input-token-count"]
    assert int(told) == scripted.count(TEXTS[0])


async def test_what_nova_is_told_of_purpose_and_length(hosts: Hosts) -> None:
    await hosts.openai.embeddings.create(model="bedrock-nova", input=TEXTS[0], dimensions=1024)
    said = hosts.backends["bedrock"].last.json()["singleEmbeddingParams"]
    assert (said["embeddingPurpose"], said["embeddingDimension"]) == ("GENERIC_INDEX", 1024)
    assert said["text"] == {"truncationMode": "NONE", "value": TEXTS[0]}
    with pytest.raises(openai.BadRequestError, match="embeddingDimension"):
        await hosts.openai.embeddings.create(model="bedrock-nova", input="x", dimensions=7)
    ask = hosts.boto3().invoke_model
    with pytest.raises(Exception, match="image: texts alone"):
        await asyncio.to_thread(ask, modelId="bedrock-nova", body=nova({"value": "x"}, image={"format": "png"}))
    with pytest.raises(Exception, match="truncationMode"):
        await asyncio.to_thread(ask, modelId="bedrock-cohere", body=nova({"truncationMode": "END", "value": "x"}))


async def test_bad_input_is_told_in_each_tongue(hosts: Hosts) -> None:
    for body, says in (
        ({"texts": [], "input_type": "search_query"}, "texts"),
        ({"texts": ["x"], "input_type": "poem"}, "input_type"),
        ({"inputText": 3}, "inputText"),
    ):
        with pytest.raises(Exception, match=says):
            await asyncio.to_thread(hosts.boto3().invoke_model, modelId="bedrock-titan", body=json.dumps(body))
    with pytest.raises(openai.BadRequestError, match="token ids"):
        await hosts.openai.embeddings.create(model="bedrock-titan", input=[[1, 2]])
    with pytest.raises(openai.BadRequestError, match="titan-embed-image"):
        await hosts.openai.embeddings.create(model="titan-pictures", input="x")
