"""What can be asked for and what it costs: models, the providers behind them, prices and their history."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery, JSONBody, QueryParameter
from msgspec import Meta, Struct
from sqlalchemy import select

from billing import pricelist, schema
from billing.db import AsyncConnection, writing
from billing.errors import UnknownPrice
from billing.money import format_usd, parse_usd
from billing.prices import PriceSheet, Rates
from billing.usage import Meter
from billing.worker import post_unpriced
from gateway.admin import reports
from gateway.admin.auth.routes import record
from gateway.admin.problems import invalid
from gateway.admin.reports import Quantiles
from gateway.admin.services import Services
from gateway.admin.times import DAY_NS, Period, Stamp, stamp
from gateway.admin.wants import Caller, Office
from gateway.routing.catalog import LOCAL, Deployment
from gateway.routing.offer import sheet_of

_MILLION = 1_000_000
# Shown in lists; every other meter is in the history.
_MAIN = (Meter.INPUT_TOKENS, Meter.OUTPUT_TOKENS, Meter.CACHE_READ_TOKENS)


class DeploymentView(Struct, frozen=True):
    """price: USD per million of each main meter, None while there is no price: such a model is refused. condition,
    in_flight: as this gateway process has it; first_token_ms: of its last calls."""

    id: str
    provider: str
    kind: str
    model: str
    priority: int
    weight: int
    context_window: int | None
    max_output_tokens: int | None
    price: dict[str, str] | None
    price_id: str | None
    condition: str
    in_flight: int
    first_token_ms: int | None


class ModelView(Struct, frozen=True):
    alias: str
    deployments: list[DeploymentView]


class Models(Struct, frozen=True):
    """total: how many match; models: the first `limit` of them."""

    total: int
    models: list[ModelView]


class ProviderView(Struct, frozen=True):
    """The last 24 hours of a configured provider. state: off, idle, healthy, failing (5 % of the requests or more).

    source: "file" is the settings file or the environment; "database" was added here. ill: deployments that this
    gateway process goes round now, each with its breaker's condition."""

    name: str
    kind: str
    base_url: str | None
    region: str | None
    models: int
    requests: int
    failed: int
    first_token: Quantiles
    state: str
    source: Literal["file", "database"]
    credential: str | None
    ill: dict[str, str]


class TierView(Struct, frozen=True):
    above_input_tokens: int
    sale: dict[str, str]
    cost: dict[str, str]


class PriceView(Struct, frozen=True):
    """One row of the price history. sale, cost: USD per million units of each meter, as listed."""

    id: str
    provider: str
    model: str
    source: str
    effective_from: Stamp
    in_force: bool
    sale: dict[str, str]
    cost: dict[str, str]
    tiers: list[TierView]
    daily_utc: tuple[int, int] | None


class NewPrice(Struct, frozen=True, forbid_unknown_fields=True):
    """sale: USD per million units, by meter. cost: what the provider asks; None: the same as sale."""

    provider: Annotated[str, Meta(min_length=1, max_length=64)]
    model: Annotated[str, Meta(min_length=1, max_length=256)]
    sale: dict[Meter, Annotated[str, Meta(max_length=40)]]
    cost: dict[Meter, Annotated[str, Meta(max_length=40)]] | None = None


@get("/models", name="models.list")
async def list_models(
    services: Office, search: FromQuery[str] = "", limit: Annotated[int, QueryParameter(ge=1, le=5000)] = 200
) -> Models:
    """Every alias that clients may ask for, with what stands behind it."""
    aliases, now_ns = services.catalog().aliases, services.clock()
    wanted = search.lower()
    found = [alias for alias in sorted(aliases) if wanted in alias.lower()]
    views = [
        ModelView(alias, [_deployment(services, each, now_ns) for each in aliases[alias]]) for alias in found[:limit]
    ]
    return Models(len(found), views)


@get("/providers", name="providers.list")
async def list_providers(services: Office) -> list[ProviderView]:
    """The providers of this installation, with their last 24 hours. Credentials are never shown."""
    now_ns = services.clock()
    period = Period(now_ns - DAY_NS, now_ns)
    live = services.yard.offer.live
    known: dict[str, tuple[str, str | None, str | None]] = {
        name: (said.kind or name, said.base_url, said.region) for name, said in live.settings.providers.items()
    }
    if live.settings.local.enabled:
        known[LOCAL] = (LOCAL, live.settings.local.base_url, None)
    models: dict[str, set[str]] = {}
    for deployments in services.catalog().aliases.values():
        for each in deployments:
            models.setdefault(each.provider, set()).add(each.id)
    standings = services.yard.outlook([ident for ids in models.values() for ident in ids]).standings
    async with services.reader.reading() as db:
        used = {each.name: each.totals for each in await reports.groups(db, "provider", period, {}, limit=1000)}
        views = []
        for name, facts in sorted(known.items()):
            totals, ids = used.get(name, reports.Totals()), models.get(name, set())
            said, entry = live.settings.providers.get(name), live.document.providers.get(name)
            ill = {each: standings[each].condition for each in sorted(ids) if each in standings}
            views.append(
                ProviderView(
                    name,
                    *facts,
                    len(ids),
                    totals.requests,
                    totals.failed,
                    await reports.first_token(db, period, [name]),
                    _state(totals) if said is None or said.enabled else "off",
                    "file" if entry is None else "database",
                    None if entry is None else entry.credential,
                    {each: condition for each, condition in ill.items() if condition != "closed"},
                )
            )
    return views


@get("/prices", name="prices.list")
async def list_prices(services: Office, provider: FromQuery[str], model: FromQuery[str]) -> list[PriceView]:
    """Every price that this model ever had here, the newest first."""
    async with services.reader.reading() as db:
        return await _history(db, services, provider, model)


@post("/prices", name="prices.set")
async def set_price(data: JSONBody[NewPrice], actor: Caller, services: Office) -> list[PriceView]:
    """Set a price from now on. What was charged before stays as it was; requests that wait for a price are charged.
    Returns the history."""
    now_ns = services.clock()
    if Meter.INPUT_TOKENS not in data.sale or Meter.OUTPUT_TOKENS not in data.sale:
        raise invalid(
            "sale", "a price names at least input_tokens and output_tokens", "Write 0 where nothing is asked."
        )
    sale = _per_unit(data.sale, "sale")
    cost = sale if data.cost is None else _per_unit(data.cost, "cost")
    async with writing(services.engine) as db:
        sheet = await pricelist.set_price(db, data.provider, data.model, sale, cost, at_ns=now_ns)
        await post_unpriced(db, await pricelist.load_prices(db), at_ns=now_ns)
        after = {"id": sheet.id, "sale": {meter.value: price for meter, price in data.sale.items()}}
        await record(db, actor, "prices.set", f"{data.provider}/{data.model}", now_ns, after=after)
    await services.keys.recount_late()
    await services.reload_prices()
    async with services.reader.reading() as db:
        return await _history(db, services, data.provider, data.model)


catalog_handlers: list[HTTPRouteHandler] = [list_models, list_providers, list_prices, set_price]


def _deployment(services: Services, each: Deployment, now_ns: int) -> DeploymentView:
    sheet: PriceSheet | None
    try:
        sheet = sheet_of(services.prices(), each, now_ns)
    except UnknownPrice:
        sheet = None
    price = None if sheet is None else {m.value: _usd_per_million(sheet.sale[m]) for m in _MAIN if m in sheet.sale}
    standing = services.yard.outlook([each.id]).of(each.id)
    return DeploymentView(
        each.id,
        each.provider,
        each.kind,
        each.model,
        each.priority,
        each.weight,
        each.context_window,
        each.max_output_tokens,
        price,
        None if sheet is None else sheet.id,
        standing.condition,
        standing.in_flight,
        None if standing.first_token_s is None else round(standing.first_token_s * 1000),
    )


def _state(totals: reports.Totals) -> str:
    if not totals.requests:
        return "idle"
    return "failing" if totals.failed * 20 >= totals.requests else "healthy"


async def _history(db: AsyncConnection, services: Services, provider: str, model: str) -> list[PriceView]:
    now_ns = services.clock()
    table = schema.prices.c
    rows = await db.execute(
        select(schema.prices)
        .where(table.provider == provider, table.model == model)
        .order_by(table.effective_from_ns.desc(), table.position.desc())
    )
    try:
        current = services.prices().sheet(provider, model, now_ns).id
    except UnknownPrice:
        current = ""
    views = []
    for row in rows.mappings():
        rates = msgspec.convert(row["rates"], Rates)
        views.append(
            PriceView(
                row["id"],
                provider,
                model,
                row["source"],
                stamp(row["effective_from_ns"]),
                row["id"] == current,
                _listed(rates.sale),
                _listed(rates.cost),
                [TierView(tier.above_input_tokens, _listed(tier.sale), _listed(tier.cost)) for tier in rates.tiers],
                rates.daily,
            )
        )
    return views


def _listed(prices: dict[Meter, int]) -> dict[str, str]:
    return {meter.value: _usd_per_million(price) for meter, price in prices.items()}


def _usd_per_million(price_pusd: int) -> str:
    return format_usd(price_pusd * _MILLION)


def _per_unit(listed: dict[Meter, str], field: str) -> dict[Meter, int]:
    """USD per million units as pUSD per unit. Raises: Problem for what is no whole number of them."""
    prices = {}
    for meter, text in listed.items():
        try:
            amount = parse_usd(text)
        except ValueError as error:
            raise invalid(field, f"{meter}: {error}", "Write dollars per million, as 0.15.") from error
        if amount < 0 or amount % _MILLION:
            raise invalid(field, f"{meter}: {text} is no price", "Not below zero, at most six decimals.")
        prices[meter] = amount // _MILLION
    return prices
