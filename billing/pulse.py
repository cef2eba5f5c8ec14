"""What happens now: the last minute's usage by model, key or provider, for `farebox top`. Reports are billing.sums'.

It reads rows, not roll-ups: a minute is small, and the index on the time leads to it.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct
from sqlalchemy import case, func, select

from billing.db import AsyncConnection, add_up, parts
from billing.schema import usage_records
from billing.sums import FAILED

COLUMNS: Final = {
    "model": usage_records.c.model,
    "alias": usage_records.c.alias,
    "key": usage_records.c.key_id,
    "provider": usage_records.c.provider,
    "project": usage_records.c.project_id,
    "deployment": usage_records.c.deployment,
}


class Pulse(Struct, frozen=True):
    """first_token: of those that were streamed, milliseconds -> requests."""

    name: str
    requests: int
    failed: int
    input_tokens: int
    output_tokens: int
    charge_pusd: int
    first_token: dict[int, int]

    def quantile_ms(self, share: float) -> int | None:
        """The time within which so great a share had its first token. None where nothing was measured."""
        left = share * sum(self.first_token.values())
        for at_ms, count in sorted(self.first_token.items()):
            left -= count
            if left <= 0:
                return at_ms
        return None

    def __add__(self, other: Pulse) -> Pulse:
        waits = dict(self.first_token)
        for at_ms, count in other.first_token.items():
            waits[at_ms] = waits.get(at_ms, 0) + count
        return Pulse(
            self.name,
            self.requests + other.requests,
            self.failed + other.failed,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.charge_pusd + other.charge_pusd,
            waits,
        )


def nothing(name: str) -> Pulse:
    return Pulse(name, 0, 0, 0, 0, 0, {})


async def pulse(db: AsyncConnection, by: str, since_ns: int, until_ns: int) -> list[Pulse]:
    """by: a name of COLUMNS. Requests that began in [since, until), as far as they have ended."""
    column, row = COLUMNS[by], usage_records.c
    above, below = parts(func.coalesce(row.charge_pusd, 0))
    failed = case((row.outcome.in_([outcome.value for outcome in FAILED]), 1), else_=0)
    query = (
        select(
            column.label("name"),
            row.first_token_ms,
            func.count().label("requests"),
            func.sum(failed).label("failed"),
            func.sum(row.input_tokens).label("input_tokens"),
            func.sum(row.output_tokens).label("output_tokens"),
            func.sum(above).label("above"),
            func.sum(below).label("below"),
        )
        .where(row.at_ns >= since_ns, row.at_ns < until_ns)
        .group_by(column, row.first_token_ms)
    )
    found: dict[str, Pulse] = {}
    for line in await db.execute(query):
        waits = {} if line.first_token_ms is None else {int(line.first_token_ms): int(line.requests)}
        counts = (int(line.requests), int(line.failed), int(line.input_tokens), int(line.output_tokens))
        piece = Pulse(line.name, *counts, add_up(line.above, line.below), waits)
        found[line.name] = found.get(line.name, nothing(line.name)) + piece
    return list(found.values())
