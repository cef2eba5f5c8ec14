"""What is on offer follows what operators set, in this process or in another, without a restart."""

from pathlib import Path

from billing.db import create_engine, writing
from billing.pricelist import set_margin, set_plan, set_price
from billing.prices import in_region
from billing.usage import Meter
from gateway.config import load
from gateway.routing.catalog import Deployment
from gateway.routing.offer import Offer

RATES = {Meter.INPUT_TOKENS: 1_000_000, Meter.OUTPUT_TOKENS: 4_000_000}


async def test_prices_margins_and_plans_are_read_anew_when_they_change(fresh_database_url: str, tmp_path: Path) -> None:
    engine = create_engine(fresh_database_url)
    offer = Offer(engine, load(environ={}, flags={"data_dir": tmp_path, "database_url": fresh_database_url}))
    deployment = Deployment("house", "house", "m1")

    async def sold() -> int:
        await offer.load()
        return offer.price_of(deployment, 10, organisation_id="org_1").sale[Meter.INPUT_TOKENS]

    async with writing(engine) as db:
        await set_price(db, "house", "m1", RATES, RATES, at_ns=1)
    assert await sold() == 1_000_000
    before = offer.prices
    await offer.load()
    assert offer.prices is before  # Nothing is read for nothing.
    async with writing(engine) as db:
        await set_margin(db, "plan", "gold", 15_000, at_ns=2)
        await set_plan(db, "org_1", "gold")
    assert await sold() == 1_500_000
    async with writing(engine) as db:
        await set_margin(db, "plan", "gold", 12_000, at_ns=3)
    assert await sold() == 1_200_000
    async with writing(engine) as db:
        await set_margin(db, "organisation", "org_1", 20_000, at_ns=4)
    assert await sold() == 2_000_000
    async with writing(engine) as db:
        await set_margin(db, "organisation", "org_1", None, at_ns=5)
        await set_plan(db, "org_1", None)
    assert await sold() == 1_000_000
    await engine.dispose()


async def test_what_is_elsewhere_is_sold_at_the_price_of_there(fresh_database_url: str, tmp_path: Path) -> None:
    """A deployment's region, or its provider's, chooses the row of the price book."""
    engine = create_engine(fresh_database_url)
    config = tmp_path / "farebox.toml"
    config.write_text(
        """
[providers.house]
kind = "openai"
region = "eu-central-1"
[[models]]
alias = "chat"
deployments = [{ provider = "house", model = "m1" }, { provider = "house", model = "m1", account = "a", region = "us" }]
"""
    )
    flags = {"data_dir": tmp_path, "database_url": fresh_database_url}
    offer = Offer(engine, load(config, environ={}, flags=flags))
    there = {meter: price * 2 for meter, price in RATES.items()}
    async with writing(engine) as db:
        await set_price(db, "house", "m1", RATES, RATES, at_ns=1)
        await set_price(db, "house", in_region("m1", "eu-central-1"), there, there, at_ns=1)
    await offer.load()
    sold = [offer.price_of(deployment, 10) for deployment in offer.catalog.deployments("chat")]
    assert [sheet.sale[Meter.INPUT_TOKENS] for sheet in sold] == [2_000_000, 1_000_000]
    (asked_for,) = offer.catalog.deployments("house/m1")
    assert offer.price_of(asked_for, 10).id == sold[0].id
    await engine.dispose()
