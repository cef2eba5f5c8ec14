"""Usage by the hour, kept up in the transaction that writes the rows: what reports and budgets read instead of them.

One row for each hour and each set of names in `NAMES`. End users and tags are not in it: there are too many
(billing.days). Amounts are whole dollars and the rest in pUSD, for sums that SQLite can not hold otherwise.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec
from sqlalchemy import bindparam, delete, text

from billing import schema
from billing.accounts import upsert
from billing.db import AsyncConnection
from billing.money import PUSD_PER_USD
from billing.rating import Charge

NS_PER_HOUR: Final = 3600 * 10**9

# A count above it is a provider's slip; it must not make a sum overflow, which would stop everybody's billing.
TOKENS_MAX: Final = 10**14

NAMES: Final = (
    "organisation_id", "project_id", "key_id", "alias", "model", "provider", "deployment", "outcome", "dialect",
)  # fmt: skip
_names: Final[Callable[[Mapping[str, Any]], tuple[str, ...]]] = itemgetter(*NAMES)
COUNTS: Final = ("requests", "input_tokens", "output_tokens", "estimated", "unpriced", "charge_usd", "cost_usd")


class _Total(msgspec.Struct):
    """Of one hour and one set of names."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    estimated: int = 0
    unpriced: int = 0
    charge_pusd: int = 0
    cost_pusd: int = 0

    def as_row(self, hour: int, names: tuple[str, ...]) -> dict[str, Any]:
        row = {"id": hour_id(hour, names), "hour": hour, **dict(zip(NAMES, names, strict=True))}
        row |= {name: getattr(self, name) for name in COUNTS[:-2]}
        row["charge_usd"], row["charge_rest_pusd"] = divmod(self.charge_pusd, PUSD_PER_USD)
        row["cost_usd"], row["cost_rest_pusd"] = divmod(self.cost_pusd, PUSD_PER_USD)
        return row


async def add(db: AsyncConnection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Count rows of usage_records that the caller has just inserted."""
    totals: defaultdict[tuple[int, tuple[str, ...]], _Total] = defaultdict(_Total)
    for row in rows:
        total = totals[row["at_ns"] // NS_PER_HOUR, _names(row)]
        total.requests += 1
        total.input_tokens += min(row["input_tokens"], TOKENS_MAX)
        total.output_tokens += min(row["output_tokens"], TOKENS_MAX)
        total.estimated += row["estimated"]
        if row["charge_pusd"] is None:
            total.unpriced += 1
        else:
            total.charge_pusd += row["charge_pusd"]
            total.cost_pusd += row["cost_pusd"]
    await _apply(db, totals)


async def price(db: AsyncConnection, priced: Iterable[tuple[Mapping[str, Any], Charge]]) -> None:
    """Rows that had been counted without a charge have one now."""
    totals: defaultdict[tuple[int, tuple[str, ...]], _Total] = defaultdict(_Total)
    for row, charge in priced:
        total = totals[row["at_ns"] // NS_PER_HOUR, _names(row)]
        total.unpriced -= 1
        total.charge_pusd += charge.sale_pusd
        total.cost_pusd += charge.cost_pusd
    await _apply(db, totals)


async def _apply(db: AsyncConnection, totals: Mapping[tuple[int, tuple[str, ...]], _Total]) -> None:
    if not totals:
        return
    rows = [total.as_row(hour, names) for (hour, names), total in totals.items()]
    if (adding := _adding.get(db.dialect.name)) is None:
        adding = _adding[db.dialect.name] = _added(db)
    # In the order of ids: two writers lock the same rows in the same order, so neither waits for the other for ever.
    await db.execute(adding, sorted(rows, key=lambda row: row["id"]))
    # After the hours: who seals a day waits for us there, or is seen here.
    # One by one and in their order, as the hours.
    await db.execute(_UNSEALED, [{"late": day} for day in sorted({hour // 24 for hour, _ in totals})])


# By dialect, made once: to make it anew for each batch of rows costs more than to run it. So with the next one.
_adding: Final[dict[str, Any]] = {}
_UNSEALED: Final = delete(schema.usage_sealed).where(
    schema.usage_sealed.c.day == bindparam("late"), schema.usage_sealed.c.pruned.is_(False)
)


def _added(db: AsyncConnection) -> Any:
    table = schema.usage_hours
    statement = upsert(db, table)
    new, old = statement.excluded, table.c
    changed = {name: old[name] + new[name] for name in COUNTS}
    for kind in ("charge", "cost"):
        rest = old[f"{kind}_rest_pusd"] + new[f"{kind}_rest_pusd"]
        changed[f"{kind}_rest_pusd"] = rest % PUSD_PER_USD
        changed[f"{kind}_usd"] = old[f"{kind}_usd"] + new[f"{kind}_usd"] + rest // PUSD_PER_USD
    return statement.on_conflict_do_update(index_elements=["id"], set_=changed)


async def hold(db: AsyncConnection) -> None:
    """Until this transaction ends nobody ships: who is at it is waited for, and waits here. On SQLite `writing` is that
    already. To be had before anything that shippers lock: theirs are rows of usage, hours, seals, accounts."""
    if db.dialect.name == "postgresql":
        await db.execute(text("LOCK TABLE usage_hours IN SHARE ROW EXCLUSIVE MODE"))


def hour_id(hour: int, names: Sequence[str]) -> str:
    """Names may be longer than an index takes, so the key is a digest of them."""
    return f"{hour}:{hashlib.blake2b(msgspec.json.encode(names), digest_size=16).hexdigest()}"
