"""Bills of every form are read the same, and only what no estimate explains is called unexplained."""

import json
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from billing.bills import BillLine, read_bill
from billing.db import reading
from billing.journal import Journal
from billing.reconcile import reconcile, same_model
from billing.usage import Outcome
from billing.worker import Worker
from tests.billing.make import AT_NS, BOOK, RECORD_COST_PUSD, record

DAY = "2026-11-18"
AT_S = AT_NS // 10**9


def bucket(*results: dict[str, object]) -> bytes:
    return json.dumps({"object": "page", "data": [{"start_time": AT_S, "results": list(results)}]}).encode()


def anthropic(*results: dict[str, object]) -> bytes:
    return json.dumps({"data": [{"starting_at": f"{DAY}T00:00:00Z", "results": list(results)}]}).encode()


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (bucket({"model": "m", "input_tokens": 90, "input_cached_tokens": 10, "output_tokens": 20}),
         BillLine(DAY, "m", 90, 20)),
        (bucket({"line_item": "m, input", "amount": {"value": 0.06, "currency": "usd"}}),
         BillLine(DAY, "m", None, None, 60_000_000_000)),
        (anthropic({"model": "m", "uncached_input_tokens": 50, "cache_read_input_tokens": 10, "output_tokens": 20,
                    "cache_creation": {"ephemeral_5m_input_tokens": 25, "ephemeral_1h_input_tokens": 5}}),
         BillLine(DAY, "m", 90, 20)),
        (anthropic({"model": "m", "amount": "123.45", "currency": "USD"}),
         BillLine(DAY, "m", None, None, 1_234_500_000_000)),
        (b"\xef\xbb\xbfusage_date_utc,model_version,usage_input_tokens_no_cache,usage_input_tokens_cache_read,"
         b"usage_output_tokens\r\n2026-11-18,m,80,10,20\r\n",
         BillLine(DAY, "m", 90, 20)),
        (b"date,model,prompt_tokens,completion_tokens,cost_usd\n2026-11-18,m,\"1,090\",20,$0.5\n\n",
         BillLine(DAY, "m", 1090, 20, 500_000_000_000)),
        (b"lineItem/UsageStartDate,lineItem/ProductCode,lineItem/UsageType,lineItem/UnblendedCost\n"
         b"2026-11-18T03:00:00Z,AmazonBedrock,m,0.25\n2026-11-18T04:00:00Z,AmazonBedrock,m,0.25\n"
         b"2026-11-18T04:00:00Z,AmazonS3,other,9\n",
         BillLine(DAY, "m", None, None, 500_000_000_000)),
        (b"line_item_usage_start_date,line_item_product_code,line_item_usage_type,line_item_unblended_cost\n"
         b"2026-11-18 03:00:00,AmazonBedrock,m,1e-6\n",
         BillLine(DAY, "m", None, None, 1_000_000)),
        (b"date,ConsumedService,meterName,costInBillingCurrency,billingCurrency\n"
         b"11/18/2026,Microsoft.CognitiveServices,m,1.5,USD\n",
         BillLine(DAY, "m", None, None, 1_500_000_000_000)),
        (b"usage_start_time,sku.description,cost,currency\n2026-11-17 23:00:00-02:00,m,2,USD\n",
         BillLine(DAY, "m", None, None, 2_000_000_000_000)),
        (b"ChargePeriodStart,ServiceName,SkuMeter,BilledCost,BillingCurrency\n"
         b"2026-11-18T00:00:00Z,Amazon Bedrock,m,3,USD\n"
         b"2026-11-18T00:00:00Z,Amazon S3,other,9,USD\n",
         BillLine(DAY, "m", None, None, 3_000_000_000_000)),
        (b'{"usage_start_time": "2026-11-18 03:00:00 UTC", "service": {"description": "Vertex AI"}, '
         b'"sku": {"description": "m"}, "cost": 0.1, "currency": "USD"}\n'
         b'{"usage_start_time": "2026-11-18 04:00:00 UTC", "service": {"description": "Compute Engine"}, '
         b'"sku": {"description": "n"}, "cost": 5, "currency": "USD"}\n',
         BillLine(DAY, "m", None, None, 100_000_000_000)),
        (b'[{"usage_start_time": "2026-11-18 03:00:00 UTC", "sku": {"description": "m"}, "cost": 1e-6, '
         b'"currency": "USD"}]',
         BillLine(DAY, "m", None, None, 1_000_000)),
    ],
)  # fmt: skip
def test_every_form_of_a_bill(data: bytes, line: BillLine) -> None:
    assert read_bill(data) == [line]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"a,b\n1,2\n", "columns"),
        (b"{", "JSON"),
        (b'{"error": 1}', "data"),
        (b'{"data": [{"results": []}]}', "time"),
        (bucket({"input_tokens": 1}), "group_by=model"),
        (bucket({"line_item": "m", "amount": {"value": 1, "currency": "eur"}}), "eur"),
        (b"date,model,cost_usd\n2026-11-18,m,much\n", "much"),
        (b"date,model,cost_usd\nyesterday,m,1\n", "yesterday"),
    ],
)
def test_what_is_no_bill_says_what_is_missing(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_bill(data)


@pytest.mark.parametrize(
    "name", ["gpt-x", "gpt-x-2026-08-06", "openai/GPT-X", "gpt-x-20260806", "gpt-x-20260806-v1:0", "gpt-x-latest"]
)
def test_one_model_by_its_names(name: str) -> None:
    assert same_model(name) == "gpt-x"


async def test_only_what_estimates_do_not_explain_is_unexplained(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal", "gw")
    for number in range(10):
        await journal.settle(record(f"ok{number}"))
    await journal.settle(record("cut", estimated=True, outcome=Outcome.KILLED))
    await journal.settle(record("else", provider="groq"))
    await journal.settle(record("later", at_ns=AT_NS + 86_400 * 10**9))
    await journal.close()
    await Worker(tmp_path / "journal", fresh_engine, BOOK).ship_once()

    async def compared(tokens_in: int, tokens_out: int, cost_pusd: int | None) -> tuple[int | None, ...]:
        line = BillLine(DAY, "gpt-test-2026-01-01", tokens_in, tokens_out, cost_pusd)
        async with reading(fresh_engine) as db:
            (found,) = await reconcile(db, "openai", [line])
        assert (found.day, found.model, found.ours.input_tokens) == (DAY, "gpt-test", 11 * 90)
        return found.unexplained_input_tokens, found.unexplained_output_tokens, found.unexplained_cost_pusd

    assert await compared(11 * 90, 11 * 20, 11 * RECORD_COST_PUSD) == (0, 0, 0)
    assert await compared(10 * 90, 10 * 20, 10 * RECORD_COST_PUSD) == (0, 0, 0), "the killed one was never answered"
    assert await compared(11 * 90 + 1, 10 * 20 - 1, None) == (1, -1, None)
    async with reading(fresh_engine) as db:
        unknown = await reconcile(db, "openai", [BillLine(DAY, "gpt-other", 5, 0)])
        assert [(d.model, d.explained) for d in unknown] == [("gpt-other", False), ("gpt-test", False)]
        assert await reconcile(db, "openai", []) == []


async def test_a_cloud_bills_by_names_of_its_own(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal", "gw")
    for number in range(4):
        await journal.settle(record(f"a{number}", provider="bedrock"))
    await journal.close()
    await Worker(tmp_path / "journal", fresh_engine, BOOK).ship_once()
    cost = 4 * RECORD_COST_PUSD
    bill = [
        BillLine(DAY, "USE1-GptTest-input-tokens", None, None, cost - 7),
        BillLine(DAY, "USE1-GptTest-output-tokens", None, None, 7),
    ]
    async with reading(fresh_engine) as db:
        assert len(await reconcile(db, "bedrock", bill)) == 3
        (named,) = await reconcile(db, "bedrock", bill, names={"*gpttest*": "gpt-test"})
        assert (named.model, named.explained, named.unexplained_cost_pusd) == ("gpt-test", True, 0)
        (day,) = await reconcile(db, "bedrock", bill, by_day=True)
        assert (day.day, day.explained, day.ours.cost_pusd) == (DAY, True, cost)
        (more,) = await reconcile(db, "bedrock", [*bill, BillLine(DAY, "x", None, None, 5)], by_day=True)
        assert more.unexplained_cost_pusd == 5
