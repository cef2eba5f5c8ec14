"""The price book in SQL: loading it, appending to it, and the prices that are shipped with us."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import delete, func, insert, select

from billing import schema
from billing.accounts import put
from billing.db import AsyncConnection
from billing.prices import (
    OPERATOR,
    STANDARD,
    ModelMatch,
    PriceBook,
    PriceSheet,
    Rates,
    Tier,
    check_margin,
    make_sheet,
    split_price_id,
)
from billing.usage import Meter

# Before the name of a list that the operator imported.
IMPORTED: Final = "import:"
_IDS_PER_QUERY: Final = 500  # Below the lowest limit on bound parameters of both databases.
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
    variant: str = STANDARD


class Seed(msgspec.Struct, frozen=True):
    """prices_seed.json, as billing.seed writes it. In each model the last price in force wins."""

    source: str
    models: tuple[SeedModel, ...]


async def load_prices(db: AsyncConnection) -> PriceBook:
    """Everything in the tables, as of now, margins included."""
    models = await db.execute(select(schema.price_models).order_by(schema.price_models.c.position))
    rows = await db.execute(select(schema.prices))
    return PriceBook(
        [_sheet(row) for row in rows.mappings()],
        [ModelMatch(row["provider"], row["model"], row["match"]) for row in models.mappings()],
        await load_margins(db),
    )


async def prices_version(db: AsyncConnection) -> str:
    """Another one whenever `load_prices` would read something else. Small tables: no index is worth its upkeep."""
    margins, members, models = schema.margins, schema.plan_members, schema.price_models
    counted = [select(func.count()).select_from(table).scalar_subquery() for table in (schema.prices, models)]
    row = (await db.execute(select(*counted))).one()
    # Prices are only ever appended; these are changed and deleted, and there are few.
    said = [tuple(row)]
    for table in (margins, members):
        said += [tuple(each) for each in await db.execute(select(table).order_by(*table.primary_key.columns))]
    return hashlib.sha256(msgspec.json.encode(said)).hexdigest()


async def load_sheet(db: AsyncConnection, price_id: str) -> PriceSheet | None:
    """One sheet, for a record that was priced after our snapshot was taken."""
    listed, margin_bps = split_price_id(price_id)
    row = (await db.execute(select(schema.prices).where(schema.prices.c.id == listed))).mappings().first()
    if row is None:
        return None
    return _sheet(row) if margin_bps is None else _sheet(row).with_margin(margin_bps)


async def load_margins(db: AsyncConnection) -> dict[str, int]:
    """Basis points by organisation: its own margin, else that of its plan."""
    rows = (await db.execute(select(schema.margins))).all()
    said = {(row.scope, row.scope_id): row.margin_bps for row in rows}
    members = await db.execute(select(schema.plan_members))
    plans = {row.organisation_id: said[("plan", row.plan)] for row in members if ("plan", row.plan) in said}
    return plans | {scope_id: bps for (scope, scope_id), bps in said.items() if scope == "organisation"}


async def set_margin(
    db: AsyncConnection, scope: Literal["organisation", "plan"], scope_id: str, margin_bps: int | None, *, at_ns: int
) -> None:
    """Sell at cost x margin from the next load of the prices on; None takes it back. Raises: ValueError."""
    if margin_bps is None:
        table = schema.margins
        await db.execute(delete(table).where(table.c.scope == scope, table.c.scope_id == scope_id))
        return
    check_margin(margin_bps)
    row = {"scope": scope, "scope_id": scope_id, "margin_bps": margin_bps, "changed_at_ns": at_ns}
    await put(db, schema.margins, row)


async def set_plan(db: AsyncConnection, organisation_id: str, plan: str | None) -> None:
    """Put an organisation on a plan, or on none."""
    table = schema.plan_members
    if plan is None:
        await db.execute(delete(table).where(table.c.organisation_id == organisation_id))
    else:
        await put(db, table, {"organisation_id": organisation_id, "plan": plan})


async def set_price(
    db: AsyncConnection,
    provider: str,
    model: str,
    sale: Mapping[Meter, int],
    cost: Mapping[Meter, int],
    *,
    at_ns: int,
    tiers: Sequence[Tier] = (),
    variant: str = STANDARD,
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
                .where(schema.prices.c.source == OPERATOR, schema.prices.c.variant == variant)
                .order_by(schema.prices.c.effective_from_ns, schema.prices.c.position)
            )
        ).mappings()
        if (sheet := _sheet(row)).in_force(at_ns)
    ]
    sheet = _new_sheet(provider, model, at_ns, rates, OPERATOR, position=len(said), variant=variant)
    if said and (said[-1].sale, said[-1].cost, said[-1].tiers) == (sheet.sale, sheet.cost, sheet.tiers):
        return said[-1]
    await _append(db, [(sheet, rates)], at_ns)
    return sheet


async def import_prices(
    db: AsyncConnection, listed: Iterable[tuple[str, str, str, Rates]], list_name: str, *, at_ns: int
) -> int:
    """Append prices (provider, model, variant, rates) of a list, in force from `at_ns` on. They outrank what is shipped
    until a release says something newer, and never what the operator has set. Returns: how many rows were new."""
    source = f"{IMPORTED}{list_name}"[:64]
    sheets = {}
    for provider, model, variant, rates in listed:
        sheet = _new_sheet(provider, model, at_ns, rates, source, 0, variant)
        sheets[sheet.id] = (sheet, rates)
    ids = list(sheets)
    for start in range(0, len(ids), _IDS_PER_QUERY):
        part = ids[start : start + _IDS_PER_QUERY]
        for (known,) in await db.execute(select(schema.prices.c.id).where(schema.prices.c.id.in_(part))):
            del sheets[known]
    await _append(db, list(sheets.values()), at_ns)
    return len(sheets)


def read_seed(path: Path = SEED_PATH) -> Seed:
    return msgspec.json.decode(path.read_bytes(), type=Seed)


async def seed_prices(db: AsyncConnection, seed: Seed, *, at_ns: int) -> int:
    """Bring the shipped prices into the tables. Returns: how many rows were new.

    A model that is not there yet comes with its history. For one that is, the seed is heard from `at_ns` on if it says
    something new: a release that corrects a price does not rewrite what has been charged."""
    listed = select(schema.prices).where(
        schema.prices.c.source != OPERATOR, schema.prices.c.source.not_like(f"{IMPORTED}%")
    )
    known: dict[tuple[str, str, str], list[PriceSheet]] = {}
    for row in (await db.execute(listed)).mappings():
        known.setdefault((row["provider"], row["model"], row["variant"]), []).append(_sheet(row))
    fresh: list[tuple[PriceSheet, Rates]] = []
    for model in seed.models:
        rows = known.get((model.provider, model.model, model.variant), [])
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
                model.provider,
                model.model,
                max(price.effective_from_ns, since_ns),
                price.rates,
                source,
                position,
                model.variant,
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
    return make_sheet(*name, rates, row["source"], row["position"], row["variant"])


def _new_sheet(
    provider: str, model: str, at_ns: int, rates: Rates, source: str, position: int, variant: str = STANDARD
) -> PriceSheet:
    # From its content: two processes that apply the same configuration make the same row, not two.
    content = (provider, model, at_ns, rates, source, position, *([variant] if variant else []))
    said = msgspec.json.encode(content, order="sorted")
    price_id = "price_" + hashlib.sha256(said).hexdigest()[:24]
    return make_sheet(price_id, provider, model, at_ns, rates, source, position, variant)


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
                "variant": sheet.variant,
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
