"""How long reports take over many rows: `python -m tests.billing.bench_reports [ROWS]`, on PostgreSQL of its own.

Rows are made by SQL, of 90 days, 50 organisations, 100 keys, 20 models; hours are filled by the migration's own query.
"""

import asyncio
import sys
import time
from typing import Any

from alembic import command
from sqlalchemy import func, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import schema, statements
from billing.accounts import Scope
from billing.db import create_engine, reading, writing
from billing.migrate import configuration
from billing.statements import Dimension, spent, usage_by
from tests import services
from tests.billing.make import AT_NS

CHUNK = 500_000
SPAN_NS = 90 * 86_400 * 10**9
BEGIN_NS = AT_NS - SPAN_NS
INSERT = """
INSERT INTO usage_records (id, at_ns, organisation_id, project_id, key_id, alias, provider, model, deployment,
  price_id, quantities, input_tokens, output_tokens, charge_pusd, cost_pusd, hold_pusd, estimated, outcome, dialect,
  tags, attempts)
SELECT 'req_' || i, :begin + (i::numeric * :step)::bigint, 'org_' || i % 50, 'proj_' || i % 50, 'key_' || i % 100,
  'alias_' || i % 20, 'prov_' || i % 4, 'model_' || i % 20, 'd', 'p', '{"input_tokens": 900, "output_tokens": 200}',
  900 + i % 100, 200 + i % 50, 10000000 + i, 8000000 + i, 20000000, i % 100 = 0, 'completed', 'openai_chat', '[]', 1
FROM generate_series(cast(:first AS bigint), cast(:last AS bigint)) AS i
"""


async def timed(name: str, engine: AsyncEngine, ask: Any) -> None:
    """The better of two, each in a transaction of its own."""
    best = float("inf")
    for _ in range(2):
        async with reading(engine) as db:
            begun = time.perf_counter()
            await ask(db)
            best = min(best, time.perf_counter() - begun)
    print(f"{name}: {best * 1e3:.1f} ms", flush=True)


async def from_rows(db: Any) -> None:
    """Usage by key as it would be without the roll-up."""
    rows = statements._rows(0, None)
    name = rows.table.c.key_id
    (await db.execute(select(name, *rows.counts, *rows.charge, *rows.cost).group_by(name))).all()


def refill(connection: Connection) -> None:
    command.downgrade(configuration(connection), "billing_2")
    command.upgrade(configuration(connection), "heads")


async def measure(url: str, count: int) -> None:
    engine = create_engine(url)
    begun = time.perf_counter()
    step = SPAN_NS // count
    for first in range(0, count, CHUNK):
        async with writing(engine) as db:
            last = min(first + CHUNK, count) - 1
            await db.execute(text(INSERT), {"begin": BEGIN_NS, "step": step, "first": first, "last": last})
    print(f"{count} rows made in {time.perf_counter() - begun:.0f} s", flush=True)
    begun = time.perf_counter()
    async with writing(engine) as db:
        await db.run_sync(refill)
    print(f"hours filled by the migration in {time.perf_counter() - begun:.0f} s", flush=True)
    async with writing(engine) as db:
        await db.execute(text("ANALYZE"))
        hours = (await db.execute(select(func.count()).select_from(schema.usage_hours))).scalar_one()
    print(f"{hours} hours", flush=True)
    month_ns = AT_NS - 30 * 86_400 * 10**9
    for dimension in (Dimension.KEY, Dimension.MODEL, Dimension.DAY):
        await timed(f"usage by {dimension}, everything", engine, lambda db, d=dimension: usage_by(db, d))
        await timed(
            f"usage by {dimension}, 30 days", engine, lambda db, d=dimension: usage_by(db, d, since_ns=month_ns)
        )
    await timed("usage by key, everything, from the rows", engine, from_rows)
    await timed("spent of one key in 30 days", engine, lambda db: spent(db, Scope.KEY, "key_7", since_ns=month_ns))
    await timed("spent of one key in all", engine, lambda db: spent(db, Scope.KEY, "key_7"))
    await timed("spent of one organisation in all", engine, lambda db: spent(db, Scope.ORGANISATION, "org_7"))
    await engine.dispose()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000
    with services.postgres() as databases, databases.clone() as url:
        asyncio.run(measure(url, count))


if __name__ == "__main__":
    main()
