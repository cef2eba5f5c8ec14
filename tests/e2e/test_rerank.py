"""Reranking: Cohere's own SDK and Jina's form ask, each kind of host answers, what it bills by is charged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path

import cohere
import httpx
import pytest
import pytest_asyncio

from gateway.config import PriceSettings
from tests.e2e.harness import House, house, model, provider, settings_for
from tests.emulators.azure import AzureEmulator
from tests.emulators.bedrock import BedrockEmulator
from tests.emulators.ranking import RankingEmulator, ranked, tokens_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUERY = "where do whales sing"
DOCUMENTS = ["nothing of that kind", "whales sing in the sea", "where whales sing at night do tell"]
UNIT = PriceSettings(per={"search_units": Decimal("0.002")})
UNIT_PUSD = 2 * 10**9
TOKEN_PUSD = 1_500_000
BY_UNIT = ("cohere", "bedrock-cohere", "bedrock-amazon", "azure")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rerankers(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, _valkey: str
) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("rerank")
    (folder / "farebox.db").write_bytes(sqlite_template.read_bytes())
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        hosted, jina, tei = [await enter(RankingEmulator(f)) for f in ("cohere", "jina", "tei")]  # type: ignore[arg-type]
        bedrock, azure = await enter(BedrockEmulator()), await enter(AzureEmulator())
        aws = {"access_key_id": "AKIDTEST", "secret_access_key": "secret-test-key"}
        providers = {
            "cohere": provider("cohere", hosted.url),
            "vllm": provider("openai_like", f"{jina.url}/v1"),
            "tei": provider("openai_like", tei.url, options={"rerank": "tei"}),
            "bedrock": provider("bedrock", bedrock.url, aws, region="us-east-1"),
            "azure": provider("azure_ai", azure.url, {"api_key": "azure-key"}),
        }
        models = (
            model("rank-cohere", "cohere/rerank-v3.5", price=UNIT),
            model("rank-bedrock-cohere", "bedrock/cohere.rerank-v3-5:0", price=UNIT),
            model("rank-bedrock-amazon", "bedrock/amazon.rerank-v1:0", price=UNIT),
            model("rank-azure", "azure/cohere-rerank-v4", price=UNIT),
            model("rank-vllm", "vllm/bge-reranker"),
            model("rank-tei", "tei/bge-reranker"),
            model("rank-silent", "vllm/fault-no-usage"),
            model("rank-busy", "cohere/fault-429", "vllm/bge-reranker"),
            model("rank-wild", "cohere/wild-index", price=UNIT),
            model("rank-unpriced", "cohere/rerank-unheard-of", price=None),
            model("rank-by-token", "cohere/rerank-by-token"),  # whose host tells no tokens
        )
        url = f"sqlite+aiosqlite:///{folder / 'farebox.db'}"
        yield await enter(house(settings_for(folder, url, _valkey, providers, models)))


def sdk_of(house: House) -> cohere.AsyncClientV2:
    return cohere.AsyncClientV2(api_key=house.key, base_url=house.url, timeout=20)


@pytest.mark.parametrize("host", [*BY_UNIT, "vllm", "tei"])
async def test_cohere_python_gets_the_order(rerankers: House, host: str) -> None:
    before = await rerankers.charged_pusd()
    answer = await sdk_of(rerankers).rerank(model=f"rank-{host}", query=QUERY, documents=DOCUMENTS, top_n=2)
    assert [(found.index, found.relevance_score) for found in answer.results] == ranked(QUERY, DOCUMENTS, 2)
    assert answer.meta is not None
    assert answer.meta.billed_units is not None
    charged, row = await rerankers.charged_pusd() - before, (await rerankers.rows())[-1]
    if host in BY_UNIT:
        assert answer.meta.billed_units.search_units == 1
        assert (charged, row["quantities"]) == (UNIT_PUSD, {"requests": 1, "search_units": 1})
    elif host == "vllm":
        tokens = tokens_of(QUERY, DOCUMENTS)
        assert (charged, row["quantities"]) == (tokens * TOKEN_PUSD, {"requests": 1, "input_tokens": tokens})
    assert row["dialect"] == "rerank"
    assert row["estimated"] is (host == "tei")  # which tells nothing, so what was held for is charged
    assert charged > 0


async def test_the_older_api_and_documents_as_objects(rerankers: House) -> None:
    sdk = cohere.AsyncClient(api_key=rerankers.key, base_url=rerankers.url, timeout=20)
    given = [{"text": text} for text in DOCUMENTS]
    answer = await sdk.rerank(model="rank-cohere", query=QUERY, documents=given, return_documents=True)  # type: ignore[arg-type]
    assert [found.document.text for found in answer.results if found.document] == [
        DOCUMENTS[at] for at, _ in ranked(QUERY, DOCUMENTS)
    ]


async def test_jinas_form_has_its_usage(rerankers: House) -> None:
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {rerankers.key}"}) as http:
        body = {"model": "rank-vllm", "query": QUERY, "documents": DOCUMENTS}
        answer = (await http.post(f"{rerankers.v1}/rerank", json=body)).json()
    assert answer["usage"]["total_tokens"] == tokens_of(QUERY, DOCUMENTS)
    assert answer["model"] == "rank-vllm"


async def test_hundreds_of_documents_are_several_units(rerankers: House) -> None:
    before = await rerankers.charged_pusd()
    await sdk_of(rerankers).rerank(model="rank-bedrock-amazon", query=QUERY, documents=DOCUMENTS * 70)
    assert await rerankers.charged_pusd() - before == 3 * UNIT_PUSD


async def test_a_budget_that_covers_no_unit_refuses_before_anything_is_sent(rerankers: House) -> None:
    key = await rerankers.new_key(budget_pusd=UNIT_PUSD - 1)
    poor = cohere.AsyncClientV2(api_key=key, base_url=rerankers.url, timeout=20)
    with pytest.raises(cohere.TooManyRequestsError):
        await poor.rerank(model="rank-cohere", query=QUERY, documents=DOCUMENTS, request_options={"max_retries": 0})
    enough = cohere.AsyncClientV2(
        api_key=await rerankers.new_key(budget_pusd=UNIT_PUSD), base_url=rerankers.url, timeout=20
    )
    assert (await enough.rerank(model="rank-cohere", query=QUERY, documents=DOCUMENTS)).results


async def test_who_tells_no_usage_is_charged_what_was_held_and_marked(rerankers: House) -> None:
    await sdk_of(rerankers).rerank(model="rank-silent", query=QUERY, documents=DOCUMENTS)
    row = (await rerankers.rows())[-1]
    assert row["estimated"]
    assert row["quantities"]["input_tokens"] >= tokens_of(QUERY, DOCUMENTS)


async def test_another_host_takes_over(rerankers: House) -> None:
    answer = await sdk_of(rerankers).rerank(model="rank-busy", query=QUERY, documents=DOCUMENTS)
    assert len(answer.results) == 3
    assert (await rerankers.rows())[-1]["deployment"] == "vllm/bge-reranker"


async def test_a_host_sold_by_the_token_that_counts_units_is_charged_as_held(rerankers: House) -> None:
    await sdk_of(rerankers).rerank(model="rank-by-token", query=QUERY, documents=DOCUMENTS)
    row = (await rerankers.rows())[-1]
    assert row["estimated"]
    assert set(row["quantities"]) == {"requests", "input_tokens"}


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"model": "rank-unpriced"}, 403, "no price"),
        ({"model": "rank-wild"}, 502, "was not there"),
        ({"model": "rank-cohere", "documents": []}, 400, "documents"),
        ({"model": "rank-cohere", "documents": [{}]}, 400, "documents[0]"),
        ({"model": "rank-cohere", "query": 3}, 400, "query"),
        ({"model": "rank-cohere", "top_n": 0}, 400, "top_n"),
        ({"model": "rank-cohere", "truncate_prompt_tokens": 3}, 400, "truncate_prompt_tokens"),
        ({"query": "without a model"}, 400, "model"),
    ],
)
async def test_bad_input_is_told_in_both_tongues(
    rerankers: House, body: dict[str, object], status: int, says: str
) -> None:
    rows = len(await rerankers.rows())
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {rerankers.key}"}) as http:
        whole = {"query": QUERY, "documents": DOCUMENTS} | body
        answer = await http.post(f"{rerankers.url}/v2/rerank", json=whole)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["message"]
    assert says in answer.json()["error"]["message"]
    assert [row["quantities"] for row in (await rerankers.rows())[rows:]] in ([], [{}])
