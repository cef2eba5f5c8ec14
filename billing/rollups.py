"""Usage by the hour, kept up in the transaction that writes the rows: what reports and budgets read instead of them.

One row for each hour and each set of names in `NAMES`. End users and tags are not in it: there are too many
(billing.days). Amounts are whole dollars and the rest in pUSD, for sums that SQLite can not hold otherwise.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncConnection

from billing import schema
from billing.accounts import upsert
from billing.money import PUSD_PER_USD

NS_PER_HOUR: Final = 3600 * 10**9

# A count above it is a provider's slip; it must not make a sum overflow, which would stop everybody's billing.
TOKENS_MAX: Final = 10**14

NAMES: Final = (
    "organisation_id", "project_id", "key_id", "alias", "model", "provider", "deployment", "outcome", "dialect",
)  # fmt: skip
COUNTS: Final = ("requests", "input_tokens", "output_tokens", "estimated", "unpriced", "charge_usd", "cost_usd")


async def add(db: AsyncConnection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Count rows of usage_records that the caller has just inserted."""
    await _apply(
        db,
        (
            (
                row,
                {
                    "requests": 1,
                    "input_tokens": min(row["input_tokens"], TOKENS_MAX),
                    "output_tokens": min(row["output_tokens"], TOKENS_MAX),
                    "estimated": int(row["estimated"]),
                    "unpriced": int(row["charge_pusd"] is None),
                },
                row["charge_pusd"] or 0,
                row["cost_pusd"] or 0,
            )
            for row in rows
        ),
    )


async def price(db: AsyncConnection, row: Mapping[str, Any], charge_pusd: int, cost_pusd: int) -> None:
    """A row that had been counted without a charge has one now."""
    await _apply(db, [(row, {"unpriced": -1}, charge_pusd, cost_pusd)])


async def _apply(db: AsyncConnection, changes: Iterable[tuple[Mapping[str, Any], dict[str, int], int, int]]) -> None:
    table = schema.usage_hours
    sums: dict[str, dict[str, Any]] = {}
    for row, counts, charge_pusd, cost_pusd in changes:
        hour = row["at_ns"] // NS_PER_HOUR
        names = [row[name] for name in NAMES]
        row_id = hour_id(hour, names)
        total = sums.get(row_id)
        if total is None:
            total = sums[row_id] = {"id": row_id, "hour": hour, **dict(zip(NAMES, names, strict=True))}
            total |= dict.fromkeys((*COUNTS, "charge_rest_pusd", "cost_rest_pusd"), 0)
        for name, count in counts.items():
            total[name] += count
        for kind, amount in (("charge", charge_pusd), ("cost", cost_pusd)):
            carry, total[f"{kind}_rest_pusd"] = divmod(total[f"{kind}_rest_pusd"] + amount, PUSD_PER_USD)
            total[f"{kind}_usd"] += carry
    if not sums:
        return
    statement = upsert(db, table)
    new, old = statement.excluded, table.c
    changed = {name: old[name] + new[name] for name in COUNTS}
    for kind in ("charge", "cost"):
        rest = old[f"{kind}_rest_pusd"] + new[f"{kind}_rest_pusd"]
        changed[f"{kind}_rest_pusd"] = rest % PUSD_PER_USD
        changed[f"{kind}_usd"] = old[f"{kind}_usd"] + new[f"{kind}_usd"] + rest // PUSD_PER_USD
    # In the order of ids: two writers lock the same rows in the same order, so neither waits for the other for ever.
    await db.execute(
        statement.on_conflict_do_update(index_elements=["id"], set_=changed), [sums[row_id] for row_id in sorted(sums)]
    )
    # After the hours: who seals a day waits for us there, or is seen here.
    sealed, days = schema.usage_sealed, {total["hour"] // 24 for total in sums.values()}
    await db.execute(delete(sealed).where(sealed.c.day.in_(days), sealed.c.pruned.is_(False)))


def hour_id(hour: int, names: list[str]) -> str:
    """Names may be longer than an index takes, so the key is a digest of them."""
    return f"{hour}:{hashlib.blake2b(msgspec.json.encode(names), digest_size=16).hexdigest()}"
