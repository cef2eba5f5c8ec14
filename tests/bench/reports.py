"""How long reports take over many rows: `python -m tests.bench.reports --rows 5000000 --json [--database postgresql]`.

Rows are made by SQL: of 90 days, 50 organisations, 100 keys with an alias each, 20 models, 4 outcomes, 500 end users,
10 tags. Hours are made by the migration's own query, days by the worker's chore. The reports are asked for through the
admin API's own functions, over the last 30 days before a time in mid-hour, and over everything. With `--keep FOLDER`
the SQLite file stays there, and the next run only asks: rows take minutes to make, a quiet machine is had for less.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import days, schema
from billing.accounts import Scope
from billing.db import create_engine, reading, writing
from billing.migrate import migrations, upgrade
from billing.statements import Dimension, spent, usage_by
from gateway.admin import reports
from gateway.admin.api.savings import saved
from gateway.admin.api.usage import TOP
from gateway.admin.times import BUCKETS, DAY_NS, Period
from tests import services
from tests.billing.make import AT_NS

CHUNK = 500_000
SPAN_NS = 90 * DAY_NS
BEGIN_NS = AT_NS - SPAN_NS
COLUMNS = """id, at_ns, organisation_id, project_id, key_id, end_user, alias, provider, model, deployment, price_id,
  quantities, input_tokens, output_tokens, charge_pusd, cost_pusd, hold_pusd, estimated, outcome, first_token_ms,
  dialect, tags, attempts"""
VALUES = """'req_' || i, {at}, 'org_' || (i % 50), 'proj_' || (i % 50), 'key_' || (i % 100), 'user_' || (i % 500),
  'alias_' || (i % 20), 'prov_' || (i % 4), 'model_' || (i % 20), 'dep_' || (i % 20), 'p',
  '{{"input_tokens": 900, "output_tokens": 200}}', 900 + i % 100, 200 + i % 50, 10000000 + i, 8000000 + i, 20000000,
  i % 100 = 0, CASE i % 97 WHEN 0 THEN 'upstream_failed' WHEN 1 THEN 'client_gone' WHEN 2 THEN 'timed_out'
  ELSE 'completed' END, 80 + i * 7919 % 3000, 'openai_chat', {tags}, 1"""
INSERT = {
    "postgresql": f"INSERT INTO usage_records ({COLUMNS}) SELECT "
    + VALUES.format(at=":begin + (i::numeric * :step)::bigint", tags="jsonb_build_array('tag_' || (i % 10))")
    + " FROM generate_series(cast(:first AS bigint), cast(:last AS bigint)) AS i",
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM n WHERE i < :last) "
    f"INSERT INTO usage_records ({COLUMNS}) SELECT "
    + VALUES.format(at=":begin + i * :step", tags="'[\"tag_' || (i % 10) || '\"]'")
    + " FROM n",
}


async def timed(engine: AsyncEngine, ask: Callable[[Any], Awaitable[object]], times: int = 3) -> list[float]:
    """Milliseconds by the clock and of our CPU (with SQLite that is all there is): medians of transactions."""
    took: list[tuple[float, float]] = []
    for _ in range(times):
        async with reading(engine) as db:
            begun, worked = time.perf_counter(), time.process_time()
            await ask(db)
            took.append(((time.perf_counter() - begun) * 1e3, (time.process_time() - worked) * 1e3))
    return [round(statistics.median(column), 1) for column in zip(*took, strict=True)]


async def explorer(db: Any, by: str, period: Period, filters: dict[str, list[str]]) -> None:
    """What GET /usage asks."""
    await reports.explore(db, by, BUCKETS["day"], period, filters, limit=50, top=TOP)


async def overview(db: Any, period: Period) -> None:
    """What GET /overview asks, but for its budgets."""
    await reports.explore(db, "alias", BUCKETS["day"], period, {}, limit=TOP, top=TOP)
    await reports.groups(db, "key", period, {}, limit=TOP)
    await reports.groups(db, "outcome", period, {}, limit=TOP)
    await reports.totals(db, period.before, {})
    for each in (period, period.before):
        await reports.first_token(db, each)


async def fill(engine: AsyncEngine, count: int) -> dict[str, float]:
    begun = time.perf_counter()
    step = SPAN_NS // count
    for first in range(0, count, CHUNK):
        async with writing(engine) as db:
            last = min(first + CHUNK, count) - 1
            values = {"begin": BEGIN_NS, "step": step, "first": first, "last": last}
            await db.execute(text(INSERT[engine.dialect.name]), values)
    made = time.perf_counter()
    async with writing(engine) as db:
        await db.run_sync(_make_hours)
    hours = time.perf_counter()
    await days.seal_due(engine, now_ns=AT_NS)
    sealed = time.perf_counter()
    async with writing(engine) as db:
        await db.execute(text("ANALYZE"))
    return {
        "rows_made_s": round(made - begun, 1),
        "hours_by_migration_s": round(hours - made, 1),
        "days_sealed_s": round(sealed - hours, 1),
    }


def _make_hours(connection: Connection) -> None:
    import importlib.util

    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    path = next((migrations() / "versions").glob("*_usage_days.py"))
    spec = importlib.util.spec_from_file_location("usage_days", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with Operations.context(MigrationContext.configure(connection)):
        module._make_hours(module.NAMES)


async def measure(url: str, count: int) -> dict[str, Any]:
    engine = create_engine(url)
    async with reading(engine) as db:
        known = (await db.execute(select(func.count()).select_from(schema.usage_hours))).scalar_one()
    result: dict[str, Any] = {"rows": count, "database": engine.dialect.name}
    if not known:
        result |= await fill(engine, count)
    async with reading(engine) as db:
        for table in (schema.usage_hours, schema.usage_days, schema.usage_day_facets, schema.usage_day_waits):
            result[table.name] = (await db.execute(select(func.count()).select_from(table))).scalar_one()
    end_ns = AT_NS
    month, all_of_it = Period(end_ns - 30 * DAY_NS, end_ns), Period(0, end_ns)
    ms: dict[str, list[float]] = {}
    for by in ("alias", "key", "organisation", "deployment", "end_user", "tag"):
        ms[f"explorer by {by}, 30 days"] = await timed(engine, lambda db, b=by: explorer(db, b, month, {}))
        ms[f"explorer by {by}, 90 days"] = await timed(engine, lambda db, b=by: explorer(db, b, all_of_it, {}))
    one = {"key": ["key_7"], "outcome": ["completed"]}
    ms["explorer by model of one key, 30 days"] = await timed(engine, lambda db: explorer(db, "model", month, one))
    ms["overview, 30 days against 30 days"] = await timed(engine, lambda db: overview(db, month))
    ms["usage by key, everything"] = await timed(engine, lambda db: usage_by(db, Dimension.KEY))
    ms["spent of one key in 30 days, from rows"] = await timed(
        engine, lambda db: spent(db, Scope.KEY, "key_7", since_ns=month.start_ns)
    )
    one = {"key": ["key_7"]}
    ms["end users of one key, 30 days, from rows"] = await timed(
        engine, lambda db: explorer(db, "end_user", month, one), times=1
    )
    week = Period(end_ns - 7 * DAY_NS, end_ns)
    ms["saved by caches, 7 days, from rows"] = await timed(engine, lambda db: saved(db, week, {}), times=1)
    result["ms"] = ms
    await engine.dispose()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--keep", type=Path, help="a folder for the SQLite file; filled only if it is not there")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.database == "postgresql":
        with services.postgres() as databases, databases.clone() as url:
            result = asyncio.run(measure(url, asked.rows))
    else:
        folder = asked.keep or Path(tempfile.mkdtemp(prefix="fbx-reports-"))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            url = f"sqlite:///{folder}/farebox.db"
            asyncio.run(upgrade(url))
            result = asyncio.run(measure(url, asked.rows))
        finally:
            if asked.keep is None:
                shutil.rmtree(folder, ignore_errors=True)
    if asked.json:
        print(json.dumps(result))
        return
    for name, value in {**result.pop("ms"), **result}.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
