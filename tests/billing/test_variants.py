"""Service tiers, margins and imported price lists: nothing is sold at a price that is not its own."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import ledger, litellm, schema
from billing.accounts import customer
from billing.db import reading, writing
from billing.errors import UnknownPrice
from billing.journal import Journal
from billing.pricelist import (
    import_prices,
    load_prices,
    load_sheet,
    read_seed,
    seed_prices,
    set_margin,
    set_plan,
    set_price,
)
from billing.prices import (
    BPS,
    PRIORITY,
    ModelMatch,
    PriceBook,
    Rates,
    Tier,
    in_region,
    make_sheet,
    variant_of,
    variants_asked,
)
from billing.rating import charge
from billing.usage import Meter
from billing.worker import Worker, post_unpriced
from tests.billing.make import AT_NS, BOOK, COST, SALE, SHEET, record

DEARER = {Meter.INPUT_TOKENS: 6_000_000, Meter.OUTPUT_TOKENS: 30_000_000}
FAST = make_sheet("price_fast", "openai", "gpt-test", 0, Rates(DEARER, DEARER), "test", variant=PRIORITY)


@pytest.mark.parametrize(
    ("said", "variant"),
    [(None, ""), ("auto", ""), ("Default", ""), ("standard", ""), ("on_demand", ""), ("priority", "priority"),
     ("flex", "flex"), ("scale", "scale")],
)  # fmt: skip
def test_what_a_tier_is_called(said: str | None, variant: str) -> None:
    assert variant_of(said) == variant


def test_a_tier_is_sold_at_its_own_price_or_not_at_all() -> None:
    book = PriceBook([SHEET, FAST], [])
    assert book.sheet("openai", "gpt-test", AT_NS, variant=PRIORITY) is FAST
    assert book.sheet("openai", "gpt-test", AT_NS) is SHEET
    with pytest.raises(UnknownPrice, match="flex"):
        book.sheet("openai", "gpt-test", AT_NS, variant="flex")
    assert book.sheet("openai", "gpt-test", AT_NS, variant=PRIORITY) is FAST
    assert variants_asked("priority") == ("priority", "")
    assert variants_asked(None) == ("",)


async def test_the_shipped_list_prices_tiers_and_batches(fresh_engine: AsyncEngine) -> None:
    async with reading(fresh_engine) as db:
        book = await load_prices(db)
    variants = ("", "batch", "flex", "priority")
    tiers = {variant: book.sheet("openai", "gpt-5", AT_NS, variant=variant) for variant in variants}
    cost = {variant: sheet.cost[Meter.OUTPUT_TOKENS] for variant, sheet in tiers.items()}
    assert cost["batch"] * 2 == cost["flex"] * 2 == cost[""] == cost["priority"] // 2
    assert all(sheet.variant == variant for variant, sheet in tiers.items())
    async with writing(fresh_engine) as db:
        assert await seed_prices(db, read_seed(), at_ns=AT_NS) == 0


async def test_an_answer_of_an_unpriced_tier_waits_for_its_price(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    book = Journal.open(folder, "gw")
    await book.settle(record("fast", variant="priority"))
    await book.settle(record("plain"))
    await book.close()
    await Worker(folder, fresh_engine, BOOK).ship_once()
    rows = schema.usage_records.c
    async with reading(fresh_engine) as db:
        charged = {row.id: row.charge_pusd for row in await db.execute(select(rows.id, rows.charge_pusd))}
    assert charged["fast"] is None
    assert charged["plain"] is not None
    async with writing(fresh_engine) as db:
        assert (await post_unpriced(db, BOOK, at_ns=AT_NS)).total() == 0, "the standard price is not its price"
        assert (await post_unpriced(db, PriceBook([SHEET, FAST], []), at_ns=AT_NS)).total() == 1
    async with reading(fresh_engine) as db:
        row = (await db.execute(select(schema.usage_records).where(rows.id == "fast"))).mappings().one()
    assert (row["charge_pusd"], row["price_id"]) == (90 * 6_000_000 + 20 * 30_000_000, FAST.id)


async def test_a_price_that_comes_late_is_that_of_the_region_that_answered(
    fresh_engine: AsyncEngine, tmp_path: Path
) -> None:
    model = in_region("gpt-test", "eu-central-1")
    here = structs.replace(SHEET, id="here", model=model)
    fast_here = structs.replace(FAST, id="fast-here", model=model, sale={m: 2 * p for m, p in FAST.sale.items()})
    folder = tmp_path / "journal"
    book = Journal.open(folder, "gw")
    await book.settle(record("fast", variant="priority", price_id=here.id))
    await book.close()
    await Worker(folder, fresh_engine, PriceBook([SHEET, here], [])).ship_once()
    async with writing(fresh_engine) as db:
        assert not await post_unpriced(db, PriceBook([SHEET, here, FAST], []), at_ns=AT_NS), "not the price elsewhere"
        assert (await post_unpriced(db, PriceBook([SHEET, here, FAST, fast_here], []), at_ns=AT_NS)).total() == 1
    rows = schema.usage_records.c
    async with reading(fresh_engine) as db:
        row = (await db.execute(select(schema.usage_records).where(rows.id == "fast"))).mappings().one()
    assert (row["charge_pusd"], row["price_id"]) == (2 * (90 * 6_000_000 + 20 * 30_000_000), fast_here.id)


@given(
    price=st.integers(0, 10**9),
    bps=st.integers(0, 100 * BPS),
    tokens=st.integers(1, 10**6),
)
def test_a_margin_never_sells_below_it_and_at_most_one_pusd_a_token_above(price: int, bps: int, tokens: int) -> None:
    sheet = make_sheet("p", "openai", "m", 0, Rates({Meter.INPUT_TOKENS: 7}, {Meter.INPUT_TOKENS: price}), "test")
    made = charge({Meter.INPUT_TOKENS: tokens}, sheet.with_margin(bps))
    assert made.cost_pusd == price * tokens
    if price:
        assert made.cost_pusd * bps <= made.sale_pusd * BPS < made.cost_pusd * bps + tokens * BPS
    else:
        assert made.sale_pusd == 7 * tokens, "what costs nothing keeps its listed price"


async def test_margins_by_organisation_go_before_those_of_its_plan(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    async with writing(fresh_engine) as db:
        listed = await set_price(db, "openai", "gpt-test", SALE, COST, at_ns=0)
        await set_margin(db, "plan", "team", 12_500, at_ns=AT_NS)
        await set_plan(db, "org_1", "team")
        await set_plan(db, "org_2", "team")
        await set_margin(db, "organisation", "org_2", 11_000, at_ns=AT_NS)
        await set_margin(db, "organisation", "org_2", 10_500, at_ns=AT_NS)
    async with reading(fresh_engine) as db:
        book = await load_prices(db)
    sheets = [book.sheet("openai", "gpt-test", AT_NS, organisation_id=f"org_{n}") for n in (1, 2, 3)]
    assert [s.sale[Meter.OUTPUT_TOKENS] for s in sheets] == [12_500_000, 10_500_000, SALE[Meter.OUTPUT_TOKENS]]
    assert sheets[2].id == listed.id
    assert all(book.by_id(s.id) == s for s in sheets)
    # The worker of a process that knows nothing of the margin charges what the record's price id says.
    journal = Journal.open(tmp_path / "journal", "gw")
    sold = record("r1", price_id=sheets[0].id)
    await journal.settle(sold)
    await journal.close()
    await Worker(tmp_path / "journal", fresh_engine, PriceBook([], [])).ship_once()
    async with reading(fresh_engine) as db:
        assert await load_sheet(db, sheets[0].id) == sheets[0]
        assert (await ledger.trial_balance(db)).sound
        owed = {b.account: b.balance_pusd for b in await ledger.balances(db)}[customer("org_1")]
    assert owed == charge(sold.quantities, sheets[0]).sale_pusd
    async with writing(fresh_engine) as db:
        await set_margin(db, "organisation", "org_2", None, at_ns=AT_NS)
        await set_plan(db, "org_2", None)
        assert (await load_prices(db)).sheet("openai", "gpt-test", AT_NS, organisation_id="org_2").id == listed.id


LIST = {
    "sample_spec": {"litellm_provider": "one of them", "input_cost_per_token": 0.0},
    "gpt-test": {
        "litellm_provider": "openai", "input_cost_per_token": 2.5e-06, "output_cost_per_token": 1.1e-05,
        "cache_read_input_token_cost": 1.25e-07, "input_cost_per_token_priority": 5e-06,
        "output_cost_per_token_priority": 2e-05, "input_cost_per_token_batches": 1.25e-06, "max_tokens": 4096,
        "search_context_cost_per_query": {"search_context_size_low": 0.01, "search_context_size_high": 0.025},
    },
    "vertex_ai/gemini-x": {
        "litellm_provider": "vertex_ai-language-models", "input_cost_per_token": 1e-06, "output_cost_per_token": 4e-06,
        "input_cost_per_token_above_200k_tokens": 2e-06, "output_cost_per_token_above_200k_tokens": 6e-06,
    },
    "bedrock/us-east-1/claude": {"litellm_provider": "bedrock", "input_cost_per_token": 1e-06},
    "bedrock/us-east-1/1-month-commitment/claude": {"litellm_provider": "bedrock", "input_cost_per_second": 0.01},
    "dall-e": {"litellm_provider": "openai", "output_cost_per_image": 0.04},
    "dall-e-old": {"litellm_provider": "openai", "input_cost_per_pixel": 1.9e-08},
    "elsewhere": {"litellm_provider": "nobody", "input_cost_per_token": 1e-06},
}  # fmt: skip


def test_a_list_is_read_exactly_and_what_it_says_otherwise_is_named() -> None:
    listed = {(e.provider, e.name, e.variant): e.rates for e in litellm.read_list(json.dumps(LIST).encode())}
    gpt = {("openai", "gpt-test", ""), ("openai", "gpt-test", "priority")}
    regions = {("bedrock", "claude#us-east-1", "")}
    assert set(listed) == gpt | regions | {("vertex", "gemini-x", ""), ("openai", "dall-e", "")}
    assert listed[("openai", "dall-e", "")].cost == {Meter.IMAGES: 4 * 10**10}
    assert listed[("openai", "gpt-test", "")].cost == {
        Meter.INPUT_TOKENS: 2_500_000, Meter.OUTPUT_TOKENS: 11_000_000, Meter.CACHE_READ_TOKENS: 125_000,
        Meter.SEARCHES: 25 * 10**9,
    }  # fmt: skip
    assert listed[("openai", "gpt-test", "priority")].cost[Meter.SEARCHES] == 25 * 10**9
    dear = {Meter.INPUT_TOKENS: 2_000_000, Meter.OUTPUT_TOKENS: 6_000_000}
    assert listed[("vertex", "gemini-x", "")].tiers == (Tier(200_000, dear, dear),)
    found = litellm.compare(BOOK, litellm.read_list(json.dumps(LIST).encode()), AT_NS)
    ours = {(d.model, d.meter): (d.ours, d.theirs) for d in found if d.variant == "" and d.provider == "openai"}
    assert ours == {
        ("gpt-test", Meter.OUTPUT_TOKENS): (10_000_000, 11_000_000),
        ("gpt-test", Meter.CACHE_READ_TOKENS): (2_500_000, 125_000),
        ("gpt-test", Meter.SEARCHES): (None, 25 * 10**9),
        ("dall-e", Meter.IMAGES): (None, 4 * 10**10),
    }
    with pytest.raises(ValueError, match="LiteLLM"):
        litellm.read_list(b"[1]")
    with pytest.raises(ValueError, match="negative"):
        litellm.read_list(b'{"m": {"litellm_provider": "openai", "input_cost_per_token": -1e-6}}')


async def test_a_region_has_prices_of_its_own(fresh_engine: AsyncEngine) -> None:
    """Of deployments that are there; what a list says of a region that costs what it costs everywhere is not news."""
    dearer = {meter: price * 11 // 10 for meter, price in COST.items()}
    usd = {name: {Meter.INPUT_TOKENS: "input", Meter.OUTPUT_TOKENS: "output"}[name] for name in COST}
    said = {"litellm_provider": "bedrock"} | {
        f"{usd[name]}_cost_per_token": price / 10**12 for name, price in COST.items()
    }
    there = said | {f"{usd[name]}_cost_per_token": price / 10**12 for name, price in dearer.items()}
    prices = {"claude": said, "bedrock/us-east-1/claude": said, "bedrock/eu-central-1/claude": there}
    async with writing(fresh_engine) as db:
        await set_price(db, "bedrock", "claude", COST, COST, at_ns=AT_NS)
        await set_price(db, "bedrock", "claude", SALE, SALE, at_ns=AT_NS, variant=PRIORITY)
        listed = litellm.read_list(json.dumps(prices).encode())
        book = await load_prices(db)
        chosen, differing = litellm.to_import(listed, litellm.compare(book, listed, AT_NS), replace=False)
        assert [(name, rates.cost) for _, name, _, rates in chosen] == [("claude#eu-central-1", dearer)]
        assert differing == 0
        assert await import_prices(db, chosen, "prices.json", at_ns=AT_NS) == 1
        book = await load_prices(db)
        assert litellm.compare(book, listed, AT_NS) == []

    def costs(region: str | None, **more: str) -> int:
        return book.sheet("bedrock", "claude", AT_NS, region=region, **more).cost[Meter.INPUT_TOKENS]

    assert costs("eu-central-1") == dearer[Meter.INPUT_TOKENS]
    assert costs(None) == costs("us-east-1") == COST[Meter.INPUT_TOKENS]
    sheet = book.sheet("bedrock", "claude", AT_NS, region="eu-central-1")
    assert book.by_id(sheet.id) == sheet
    assert costs("us-east-1", variant=PRIORITY) == SALE[Meter.INPUT_TOKENS]
    with pytest.raises(UnknownPrice):  # The region has prices, and none of this tier: another region's is not it.
        costs("eu-central-1", variant=PRIORITY)
    assert "claude" in book.models("bedrock")
    assert not any("#" in name for name in book.models("bedrock"))
    assert book.regions("bedrock", "claude") == ["eu-central-1"]
    for wrong in ("EU", "eu central", "", "a/b"):
        with pytest.raises(ValueError, match="not a region"):
            in_region("claude", wrong)
    # By another of the model's names.
    named = PriceBook([*book.sheets()], [ModelMatch("bedrock", "claude", {"starts_with": "anthropic.claude"})])
    assert named.sheet("bedrock", "anthropic.claude-v1:0", AT_NS, region="eu-central-1").id == sheet.id


async def test_imported_prices_outrank_the_shipped_and_outlive_a_release_that_says_nothing_new(
    fresh_engine: AsyncEngine,
) -> None:
    listed = litellm.read_list(json.dumps(LIST).encode())
    rows = [(e.provider, e.name, e.variant, e.rates) for e in listed]
    async with writing(fresh_engine) as db:
        await set_price(db, "vertex", "gemini-x", SALE, COST, at_ns=AT_NS)
        assert await import_prices(db, rows, "prices.json", at_ns=AT_NS) == 5
        assert await import_prices(db, rows, "prices.json", at_ns=AT_NS) == 0
        assert await seed_prices(db, read_seed(), at_ns=AT_NS + 1) == 0
        book = await load_prices(db)
    assert book.sheet("openai", "gpt-test", AT_NS, variant=PRIORITY).cost[Meter.OUTPUT_TOKENS] == 20_000_000
    assert book.sheet("vertex", "gemini-x", AT_NS).cost == book.sheet("vertex", "gemini-x", AT_NS + 1).cost
    assert book.sheet("vertex", "gemini-x", AT_NS).cost[Meter.INPUT_TOKENS] == COST[Meter.INPUT_TOKENS]
