"""The price book: which price holds, and that the shipped ones are those of the list they came from."""

import datetime
from decimal import Decimal

import pytest
from genai_prices import Usage
from genai_prices.data import providers
from genai_prices.types import ModelInfo, Provider
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import schema, seed
from billing.db import reading, writing
from billing.errors import UnknownPrice
from billing.pricelist import Seed, SeedModel, SeedPrice, load_prices, load_sheet, read_seed, seed_prices, set_price
from billing.prices import OPERATOR, ModelMatch, PriceBook, PriceSheet, Rates, make_sheet
from billing.rating import charge
from billing.usage import Meter
from tests.billing.make import AT_NS

DAY_NS = 86_400 * 10**9
IN, OUT = Meter.INPUT_TOKENS, Meter.OUTPUT_TOKENS

SMALL = {
    IN: 700,
    Meter.CACHE_READ_TOKENS: 200,
    Meter.CACHE_WRITE_5M_TOKENS: 100,
    OUT: 50,
    Meter.REASONING_TOKENS: 30,
    Meter.REQUESTS: 1,
}
# Above every context tier there is.
LARGE = SMALL | {IN: 1_500_000}
# In the day and in the night, before and after dated changes.
TIMES = [
    datetime.datetime(2024, 6, 1, 2, 0, tzinfo=datetime.UTC),
    datetime.datetime(2025, 3, 1, 12, 0, tzinfo=datetime.UTC),
    datetime.datetime(2026, 11, 23, 17, 0, tzinfo=datetime.UTC),
]


@pytest.fixture(scope="module")
def shipped() -> PriceBook:
    """The seed as it would be loaded."""
    sheets, matches = [], []
    content = read_seed()
    for model in content.models:
        name = f"{model.provider}/{model.model}"
        matches.append(ModelMatch(model.provider, model.model, model.match))
        for i, price in enumerate(model.prices):
            row = (f"{name}/{i}", model.provider, model.model, price.effective_from_ns, price.rates, content.source, i)
            sheets.append(make_sheet(*row, model.variant))
    return PriceBook(sheets, matches)


def per_token(model: ModelInfo) -> bool:
    plans = model.prices if isinstance(model.prices, list) else [model]
    return all(plan.prices.input_mtok is not None for plan in plans)  # type: ignore[union-attr]


LISTED = [
    pytest.param(provider, id=provider.id) for provider in providers if provider.id in seed.PROVIDERS
]  # fmt: skip


@pytest.mark.parametrize("provider", LISTED)
def test_shipped_prices_are_those_of_genai_prices(provider: Provider, shipped: PriceBook) -> None:
    compared = 0
    for listed in filter(per_token, provider.models):
        # As they resolve the name, which may be another entry than the one that bears it.
        model = provider.find_model(listed.id) or listed
        if not per_token(model):
            continue
        for at in TIMES:
            sheet = shipped.sheet(seed.PROVIDERS[provider.id], model.id, int(at.timestamp()) * 10**9)
            for used in (SMALL, LARGE):
                if OUT not in sheet.cost:
                    used = {meter: n for meter, n in used.items() if "output" not in meter and "reasoning" not in meter}
                theirs = model.calc_price(their_usage(used), provider, genai_request_timestamp=at)
                ours = charge(used, sheet)
                assert ours.cost_pusd == theirs.total_price * 10**12, (model.id, at, used)
                assert ours.sale_pusd == ours.cost_pusd
                compared += 1
    assert compared, "no model compared"


def their_usage(used: dict[Meter, int]) -> Usage:
    """They nest: input includes what was cached, output includes reasoning."""
    read, written = used[Meter.CACHE_READ_TOKENS], used[Meter.CACHE_WRITE_5M_TOKENS]
    reasoning = used.get(Meter.REASONING_TOKENS, 0)
    return Usage(
        input_tokens=used[IN] + read + written,
        cache_read_tokens=read,
        cache_write_tokens=written,
        output_tokens=used.get(OUT, 0) + reasoning,
        output_reasoning_tokens=reasoning,
    )


@pytest.mark.parametrize(
    ("provider", "name", "model"),
    [
        ("openai", "gpt-4o-2024-11-20", "gpt-4o"),
        ("azure_ai", "gpt-4o", "gpt-4o"),  # Azure lists few of its own; OpenAI's list answers.
        ("bedrock", "anthropic.claude-3-5-sonnet-20241022-v2:0", None),
        ("gemini", "gemini-2.5-flash", "gemini-2.5-flash"),
        ("vertex", "gemini-2.5-flash", "gemini-2.5-flash"),
        ("groq", "llama-3.3-70b-versatile", None),
        ("cerebras", "gpt-oss-120b", None),
        ("anthropic", "claude-sonnet-4-5-20250929", None),
    ],
)
def test_names_that_clients_send_find_their_price(
    shipped: PriceBook, provider: str, name: str, model: str | None
) -> None:
    sheet = shipped.sheet(provider, name, AT_NS)
    assert model is None or sheet.model == model
    assert sheet.sale[IN] > 0


def test_the_shipped_file_is_what_the_script_writes() -> None:
    assert seed.build() == read_seed()


def test_hours_do_not_come_out_even_and_round_up() -> None:
    assert seed.pusd_per_unit(Decimal("0.111"), 3600) == 30_833_334
    assert seed.pusd_per_unit(Decimal("0.15"), 10**6) == 150_000


def priced(price: int, since_ns: int = 0, source: str = "list", **more: object) -> PriceSheet:
    rates = Rates({IN: price}, {IN: price})
    sheet = make_sheet(f"{source}-{price}-{since_ns}", "acme", "m", since_ns, rates, source)
    return PriceSheet(**{name: getattr(sheet, name) for name in sheet.__struct_fields__} | more)


def test_the_price_of_a_time_is_the_last_that_had_begun() -> None:
    book = PriceBook([priced(1, 10), priced(2, 20), priced(3, 30)], [])
    assert [book.sheet("acme", "m", at).sale[IN] for at in (10, 19, 20, 29, 30, 99)] == [1, 1, 2, 2, 3, 3]
    with pytest.raises(UnknownPrice):
        book.sheet("acme", "m", 9)


def test_an_hour_of_the_day_over_midnight() -> None:
    night = priced(1, daily=(22 * 3600, 6 * 3600), position=1)
    book = PriceBook([priced(2), night], [])
    hours = {
        hour: book.sheet("acme", "m", AT_NS // DAY_NS * DAY_NS + hour * 3600 * 10**9).sale[IN] for hour in range(24)
    }
    assert [hour for hour, price in hours.items() if price == 1] == [0, 1, 2, 3, 4, 5, 22, 23]


def test_until_then_every_price_stays_what_it_is() -> None:
    second, noon = 10**9, 12 * 3600 * 10**9
    book = PriceBook([priced(1), priced(2, noon), priced(3, 2 * noon)], [])
    assert [book.stands_until(at) for at in (0, noon - 1, noon)] == [noon, noon, 2 * noon]
    assert book.stands_until(2 * noon) > 10**18
    by_day = PriceBook([priced(1), priced(2, daily=(0, 6 * 3600), position=1)], [])
    assert by_day.stands_until(6 * 3600 * second - 1) == 6 * 3600 * second


def test_the_operator_outranks_a_newer_list() -> None:
    book = PriceBook([priced(7, 10, OPERATOR), priced(1, 20)], [])
    assert book.sheet("acme", "m", 30).sale[IN] == 7


@pytest.mark.parametrize(("provider", "model"), [("acme", "n"), ("nobody", "m"), ("azure_ai", "m"), ("", "")])
def test_what_has_no_price_is_refused(provider: str, model: str) -> None:
    with pytest.raises(UnknownPrice) as caught:
        PriceBook([priced(1)], [ModelMatch("acme", "m", {"equals": "mm"})]).sheet(provider, model, AT_NS)
    assert caught.value.meter is None


async def test_a_price_is_set_once_and_kept_for_ever(fresh_engine: AsyncEngine) -> None:
    async with writing(fresh_engine) as db:
        first = await set_price(db, "local", "smol", {IN: 5}, {}, at_ns=AT_NS)
        again = await set_price(db, "local", "smol", {IN: 5}, {}, at_ns=AT_NS + 1)
        assert again.id == first.id
        second = await set_price(db, "local", "smol", {IN: 6}, {}, at_ns=AT_NS + DAY_NS)
        back = await set_price(db, "local", "smol", {IN: 5}, {}, at_ns=AT_NS + 2 * DAY_NS)
    assert len({first.id, second.id, back.id}) == 3
    async with reading(fresh_engine) as db:
        book = await load_prices(db)
        assert [book.sheet("local", "smol", AT_NS + day * DAY_NS).id for day in range(4)] == [
            first.id,
            second.id,
            back.id,
            back.id,
        ]
        assert await load_sheet(db, first.id) == first == book.by_id(first.id)
        assert await load_sheet(db, "price_of_nothing") is None


async def test_two_prices_in_the_same_instant_are_two_rows_and_the_later_holds(fresh_engine: AsyncEngine) -> None:
    async with writing(fresh_engine) as db:
        for price in (1, 2, 1):
            last = await set_price(db, "local", "m", {IN: price}, {}, at_ns=AT_NS)
        assert (await load_prices(db)).sheet("local", "m", AT_NS) == last
        rows = await db.execute(select(schema.prices).where(schema.prices.c.provider == "local"))
        assert len(rows.all()) == 3


async def test_the_operators_price_survives_a_new_seed(fresh_engine: AsyncEngine) -> None:
    async with writing(fresh_engine) as db:
        mine = await set_price(db, "openai", "gpt-4o", {IN: 1}, {}, at_ns=AT_NS)
        await seed_prices(db, read_seed(), at_ns=AT_NS + DAY_NS)
        book = await load_prices(db)
    assert book.sheet("openai", "gpt-4o", AT_NS + 2 * DAY_NS) == mine
    # The dated name finds the same model, and with it the operator's word.
    assert book.sheet("openai", "gpt-4o-2024-11-20", AT_NS + 2 * DAY_NS) == mine


async def test_a_negative_price_is_refused(fresh_engine: AsyncEngine) -> None:
    with pytest.raises(ValueError, match="negative price for local/m"):
        async with writing(fresh_engine) as db:
            await set_price(db, "local", "m", {IN: -1}, {}, at_ns=AT_NS)


def release(source: str, *prices: SeedPrice) -> Seed:
    return Seed(source, (SeedModel("acme", "m", prices, {"starts_with": "m"}),))


async def test_a_release_changes_prices_from_now_on_and_no_earlier(fresh_engine: AsyncEngine) -> None:
    old = release("list 1", SeedPrice({IN: 10}), SeedPrice({IN: 11}, effective_from_ns=AT_NS - DAY_NS))
    # Corrects the price of today and that of long ago, and knows of a change to come.
    new = release(
        "list 2",
        SeedPrice({IN: 8}),
        SeedPrice({IN: 9}, effective_from_ns=AT_NS - DAY_NS),
        SeedPrice({IN: 12}, effective_from_ns=AT_NS + 5 * DAY_NS),
    )
    async with writing(fresh_engine) as db:
        assert await seed_prices(db, old, at_ns=AT_NS - 2 * DAY_NS) == 2
        assert await seed_prices(db, old, at_ns=AT_NS) == 0
        assert await seed_prices(db, new, at_ns=AT_NS) == 2
        assert await seed_prices(db, new, at_ns=AT_NS + DAY_NS) == 0
        book = await load_prices(db)
    days = {-3: 10, -1: 11, 0: 9, 4: 9, 5: 12}
    assert {day: book.sheet("acme", "m-2", AT_NS + day * DAY_NS).sale[IN] for day in days} == days


async def test_a_release_that_says_the_same_adds_nothing(fresh_engine: AsyncEngine) -> None:
    async with writing(fresh_engine) as db:
        assert await seed_prices(db, read_seed(), at_ns=AT_NS) == 0
        renamed = Seed("genai-prices 9", read_seed().models)
        assert await seed_prices(db, renamed, at_ns=AT_NS) == 0
