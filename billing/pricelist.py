"""The price book in SQL: loading it, appending to it, and the prices that are shipped with us."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from billing import schema
from billing.prices import OPERATOR, ModelMatch, PriceBook, PriceSheet, Rates, Tier, make_sheet
from billing.usage import Meter

SEED_PATH: Final = Path(__file__).with_name("prices_seed.json")


class SeedPrice(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a provider asks, in pUSD per unit; `tiers` are (above how many input tokens, prices)."""

    cost: dict[Meter, int]
    tiers: tuple[tuple[int, dict[Meter, int]], ...] = ()
    daily: tuple[int, int] | None = None
    effective_from_ns: int = 0

    @property
    def rates(self) -> Rates:
        """Sold at cost: a margin is the operator's to add."""
        return Rates(self.cost, self.cost, tuple(Tier(above, cost, cost) for above, cost in self.tiers), self.daily)


class SeedModel(msgspec.Struct, frozen=True, omit_defaults=True):
    provider: str
    model: str
    prices: tuple[SeedPrice, ...]
    match: dict[str, Any] | None = None


class Seed(msgspec.Struct, frozen=True):
    """prices_seed.json, as billing.seed writes it. In each model the last price in force wins."""

    source: str
    models: tuple[SeedModel, ...]


async def load_prices(db: AsyncConnection) -> PriceBook:
    """Everything in the tables, as of now."""
    models = await db.execute(select(schema.price_models).order_by(schema.price_models.c.position))
    rows = await db.execute(select(schema.prices))
    return PriceBook(
        [_sheet(row) for row in rows.mappings()],
        [ModelMatch(row["provider"], row["model"], row["match"]) for row in models.mappings()],
    )


async def load_sheet(db: AsyncConnection, price_id: str) -> PriceSheet | None:
    """One sheet, for a record that was priced after our snapshot was taken."""
    row = (await db.execute(select(schema.prices).where(schema.prices.c.id == price_id))).mappings().first()
    return None if row is None else _sheet(row)


async def set_price(
    db: AsyncConnection,
    provider: str,
    model: str,
    sale: Mapping[Meter, int],
    cost: Mapping[Meter, int],
    *,
    at_ns: int,
    tiers: Sequence[Tier] = (),
) -> PriceSheet:
    """The operator's word on a price, from `at_ns` on: a new row; older ones stay as they were charged.

    Saying again what holds already appends nothing, so a configuration may be applied at every start."""
    rates = Rates(dict(sale), dict(cost), tuple(tiers))
    said = [
        sheet
        for row in (
            await db.execute(
                select(schema.prices)
                .where(schema.prices.c.provider == provider, schema.prices.c.model == model)
                .where(schema.prices.c.source == OPERATOR)
                .order_by(schema.prices.c.effective_from_ns, schema.prices.c.position)
            )
        ).mappings()
        if (sheet := _sheet(row)).in_force(at_ns)
    ]
    sheet = _new_sheet(provider, model, at_ns, rates, OPERATOR, position=len(said))
    if said and (said[-1].sale, said[-1].cost, said[-1].tiers) == (sheet.sale, sheet.cost, sheet.tiers):
        return said[-1]
    await _append(db, [(sheet, rates)], at_ns)
    return sheet


def read_seed(path: Path = SEED_PATH) -> Seed:
    return msgspec.json.decode(path.read_bytes(), type=Seed)


async def seed_prices(db: AsyncConnection, seed: Seed, *, at_ns: int) -> int:
    """Bring the shipped prices into the tables. Returns: how many rows were new.

    A model that is not there yet comes with its history. For one that is, the seed is heard from `at_ns` on if it says
    something new: a release that corrects a price does not rewrite what has been charged."""
    listed = select(schema.prices).where(schema.prices.c.source != OPERATOR)
    known: dict[tuple[str, str], list[PriceSheet]] = {}
    for row in (await db.execute(listed)).mappings():
        known.setdefault((row["provider"], row["model"]), []).append(_sheet(row))
    fresh: list[tuple[PriceSheet, Rates]] = []
    for model in seed.models:
        rows = known.get((model.provider, model.model), [])
        offered = _offer(model, seed.source, since_ns=0, first_position=0)
        if rows:
            if _from_now_on(rows, at_ns) == _from_now_on([sheet for sheet, _ in offered], at_ns):
                continue
            position = max(sheet.position for sheet in rows) + 1
            heard = {sheet.position for sheet in _in_effect([sheet for sheet, _ in offered], at_ns)}
            offered = [
                pair
                for pair in _offer(model, seed.source, since_ns=at_ns, first_position=position)
                if pair[0].position - position in heard
            ]
        fresh += offered
    await _append(db, fresh, at_ns)
    await _replace_matches(db, seed)
    return len(fresh)


def _offer(model: SeedModel, source: str, *, since_ns: int, first_position: int) -> list[tuple[PriceSheet, Rates]]:
    return [
        (
            _new_sheet(
                model.provider, model.model, max(price.effective_from_ns, since_ns), price.rates, source, position
            ),
            price.rates,
        )
        for position, price in enumerate(model.prices, first_position)
    ]


def _in_effect(sheets: Sequence[PriceSheet], at_ns: int) -> list[PriceSheet]:
    """What matters from now on: the price of the day, those for an hour of it, and all that will begin later."""
    ordered = sorted(sheets, key=lambda sheet: (sheet.effective_from_ns, sheet.position))
    whole_day = [i for i, sheet in enumerate(ordered) if sheet.daily is None and sheet.effective_from_ns <= at_ns]
    return ordered[whole_day[-1] if whole_day else 0 :]


def _from_now_on(sheets: Sequence[PriceSheet], at_ns: int) -> list[tuple[object, ...]]:
    return [
        (sheet.sale, sheet.cost, sheet.tiers, sheet.daily, max(sheet.effective_from_ns, at_ns))
        for sheet in _in_effect(sheets, at_ns)
    ]


def _sheet(row: Any) -> PriceSheet:
    rates = msgspec.convert(row["rates"], Rates)
    name = (row["id"], row["provider"], row["model"], row["effective_from_ns"])
    return make_sheet(*name, rates, row["source"], row["position"])


def _new_sheet(provider: str, model: str, at_ns: int, rates: Rates, source: str, position: int) -> PriceSheet:
    # From its content: two processes that apply the same configuration make the same row, not two.
    said = msgspec.json.encode((provider, model, at_ns, rates, source, position), order="sorted")
    price_id = "price_" + hashlib.sha256(said).hexdigest()[:24]
    return make_sheet(price_id, provider, model, at_ns, rates, source, position)


async def _append(db: AsyncConnection, sheets: Sequence[tuple[PriceSheet, Rates]], at_ns: int) -> None:
    if not sheets:
        return
    await db.execute(
        insert(schema.prices),
        [
            {
                "id": sheet.id,
                "provider": sheet.provider,
                "model": sheet.model,
                "effective_from_ns": sheet.effective_from_ns,
                "position": sheet.position,
                "rates": msgspec.to_builtins(rates),
                "source": sheet.source,
                "created_at_ns": at_ns,
            }
            for sheet, rates in sheets
        ],
    )


async def _replace_matches(db: AsyncConnection, seed: Seed) -> None:
    """Names are no prices: the newest reading of them replaces the older one."""
    providers = {model.provider for model in seed.models}
    await db.execute(
        delete(schema.price_models).where(
            schema.price_models.c.provider.in_(providers), schema.price_models.c.match.is_not(None)
        )
    )
    own = {
        (row.provider, row.model)
        for row in await db.execute(select(schema.price_models.c.provider, schema.price_models.c.model))
    }
    rows = [
        {"provider": model.provider, "model": model.model, "match": model.match, "position": position}
        for position, model in enumerate(seed.models)
        if model.match is not None and (model.provider, model.model) not in own
    ]
    if rows:
        await db.execute(insert(schema.price_models), rows)
