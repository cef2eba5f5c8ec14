"""Embeddings: each family's SDK asks, either backend answers, and what it counted is what is charged."""

from __future__ import annotations

import cohere
import httpx
import openai
import pytest
from google import genai
from google.genai import types

from tests.e2e.yard import Yard
from tests.emulators.openai import vector

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = ["a first text", "and a second one"]
PRICE_PUSD = 1_500_000


def expected(dimensions: int = 8) -> list[list[float]]:
    return [vector(text, dimensions) for text in TEXTS]


def sdk_of(yard: Yard, base_url: str | None = None) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=base_url or yard.gateway.v1, api_key=yard.gateway.key, max_retries=0)


@pytest.mark.parametrize("alias", ["embed-openai", "embed-google"])
@pytest.mark.parametrize("encoding", ["base64", "float", None])
async def test_openai_python_gets_its_vectors_in_either_encoding(yard: Yard, alias: str, encoding: str | None) -> None:
    before = await yard.gateway.charged_pusd()
    async with sdk_of(yard) as sdk:
        more = {} if encoding is None else {"encoding_format": encoding}
        answer = await sdk.embeddings.create(model=alias, input=TEXTS, **more)  # type: ignore[arg-type]
    vectors = [entry.embedding for entry in answer.data]
    if encoding == "base64":  # asked for by name, the SDK hands it over as it came
        assert all(isinstance(packed, str) for packed in vectors)
    else:
        assert vectors == expected()
    assert [entry.index for entry in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens > 0
    assert await yard.gateway.charged_pusd() - before == answer.usage.prompt_tokens * PRICE_PUSD


@pytest.mark.parametrize("alias", ["embed-openai", "embed-google"])
async def test_dimensions_reach_the_provider(yard: Yard, alias: str) -> None:
    async with sdk_of(yard) as sdk:
        answer = await sdk.embeddings.create(model=alias, input=TEXTS, dimensions=16)
    assert [entry.embedding for entry in answer.data] == expected(16)


@pytest.mark.parametrize("alias", ["embed-openai", "embed-google"])
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
# The name has no "gemini" in it: for newer models of that name the SDK joins all contents into one.
async def test_google_genai_gets_its_vectors(yard: Yard, alias: str, many: bool) -> None:
    before = await yard.gateway.charged_pusd()
    sdk = genai.Client(api_key=yard.gateway.key, http_options=types.HttpOptions(base_url=yard.gateway.url))
    answer = await sdk.aio.models.embed_content(model=alias, contents=TEXTS if many else TEXTS[0])  # type: ignore[arg-type]
    assert [entry.values for entry in answer.embeddings or []] == (expected() if many else expected()[:1])
    assert await yard.gateway.charged_pusd() > before


async def test_one_text_by_its_own_verb(yard: Yard) -> None:
    async with httpx.AsyncClient(headers={"x-goog-api-key": yard.gateway.key}) as http:
        body = {"content": {"parts": [{"text": TEXTS[0]}]}}
        answer = await http.post(f"{yard.gateway.url}/v1beta/models/embed-google:embedContent", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["embedding"]["values"] == expected()[0]


@pytest.mark.parametrize("path", ["/openai/v1/embeddings", "/embeddings", "/models/embeddings"])
async def test_every_path_of_the_family(yard: Yard, path: str) -> None:
    async with sdk_of(yard, yard.gateway.url + path.removesuffix("/embeddings")) as sdk:
        answer = await sdk.embeddings.create(model="embed-openai", input=TEXTS[0])
    assert answer.data[0].embedding == expected()[0]


async def test_azure_names_the_deployment_in_the_path(yard: Yard) -> None:
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=yard.gateway.url, api_key=yard.gateway.key, api_version="2024-10-21", max_retries=0
    ) as sdk:
        answer = await sdk.embeddings.create(model="embed-openai", input=TEXTS)
    assert [entry.embedding for entry in answer.data] == expected()


async def test_token_ids_are_held_for_and_go_through(yard: Yard) -> None:
    async with sdk_of(yard) as sdk:
        answer = await sdk.embeddings.create(model="embed-openai", input=[[1, 2, 3], [4, 5]])
        assert answer.usage.prompt_tokens == 5
        with pytest.raises(openai.BadRequestError, match="token ids"):
            await sdk.embeddings.create(model="embed-google", input=[[1, 2, 3]])


async def test_a_row_is_written_with_input_alone(yard: Yard) -> None:
    async with sdk_of(yard) as sdk:
        answer = await sdk.embeddings.create(model="embed-openai", input=TEXTS)
    row = (await yard.gateway.rows())[-1]
    assert row["dialect"] == "openai_embeddings"
    assert not row["estimated"]
    assert row["quantities"] == {"input_tokens": answer.usage.prompt_tokens, "requests": 1}


async def test_who_makes_none_says_so(yard: Yard) -> None:
    async with sdk_of(yard) as sdk:
        with pytest.raises(openai.BadRequestError, match="embeddings"):
            await sdk.embeddings.create(model="via-groq", input="x")
        with pytest.raises(openai.BadRequestError, match="input"):
            await sdk.embeddings.create(model="embed-openai", input=[])


@pytest.mark.parametrize("alias", ["cohere/embed-v4.0", "bedrock/cohere.embed-english-v3", "embed-google"])
async def test_coheres_own_client_gets_its_vectors(yard: Yard, alias: str) -> None:
    before = await yard.gateway.charged_pusd()
    async with cohere.AsyncClientV2(api_key=yard.gateway.key, base_url=yard.gateway.url) as sdk:
        answer = await sdk.embed(
            model=alias, texts=TEXTS, input_type="search_query", embedding_types=["float"], output_dimension=16
        )
    assert answer.embeddings.float_ == expected(16)
    assert answer.meta is not None
    assert answer.meta.billed_units is not None
    tokens = int(answer.meta.billed_units.input_tokens or 0)
    assert await yard.gateway.charged_pusd() - before == tokens * PRICE_PUSD > 0
    async with cohere.AsyncClient(api_key=yard.gateway.key, base_url=yard.gateway.url) as old:
        plain = await old.embed(model=alias, texts=TEXTS, input_type="search_document")
    assert plain.embeddings == expected()
    if alias.startswith("cohere/"):
        assert yard.backends["cohere"].last.path == "/v2/embed"
        assert yard.backends["cohere"].last.json()["input_type"] == "search_document"


async def test_what_cohere_clients_are_refused(yard: Yard) -> None:
    key = {"authorization": f"Bearer {yard.gateway.key}"}
    base = {"model": "cohere/embed-v4.0", "texts": ["x"], "input_type": "search_query"}
    async with httpx.AsyncClient(base_url=yard.gateway.url, headers=key) as http:
        for more, said in (
            ({"embedding_types": ["int8"]}, "int8"),
            ({"images": ["data:image/png;base64,AAAA"]}, "images"),
            ({"texts": ["x"] * 97}, "texts"),
            ({"model": "nobody"}, "nobody"),
            ({"model": "embed-openai"}, "task"),  # which OpenAI's have no word for
        ):
            answer = await http.post("/v2/embed", json={**base, **more})
            assert answer.status_code in (400, 404), answer.text
            assert said in answer.json()["message"]
        lenient = await http.post(
            "/v2/embed", json={**base, "model": "embed-openai"}, headers={"x-farebox-losses": "lenient"}
        )
        assert lenient.headers["x-farebox-dropped"] == "task"
