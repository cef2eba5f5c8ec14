"""How long reports take over many rows: `python -m tests.bench.reports --rows 5000000 --json [--database postgresql]`.

On PostgreSQL each day is a table; with `--migrated` the rows are made as the release before days kept them, and
migrated, which is timed as well: then all of them lie in one table.

Rows are made by SQL: of 90 days, 50 organisations, 100 keys with an alias each, 20 models, 4 outcomes, 500 end users,
10 tags. Hours are made by the migration's own query, days by the worker's chore. The reports are asked for through the
admin API's own functions, over the last 30 days before a time in mid-hour, and over everything. With `--keep FOLDER`
the SQLite file stays there, and the next run only asks: rows take minutes to make, a quiet machine is had for less.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import func, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import days, partitions, schema
from billing.accounts import Scope
from billing.db import create_engine, reading, writing
from billing.migrate import configuration, migrations, upgrade
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
    """Milliseconds by the clock, of our CPU (with SQLite that is all there is) and of the server's, whose clock ticks
    every ten: medians of transactions."""
    took: list[tuple[float, ...]] = []
    for _ in range(times):
        async with reading(engine) as db:
            server = await postmaster(db)
            there, begun, worked = worked_s(server), time.perf_counter(), time.process_time()
            await ask(db)
            spent_s = (time.perf_counter() - begun, time.process_time() - worked)
            took.append(tuple(s * 1e3 for s in (*spent_s, *([worked_s(server) - there] if server else []))))
    return [round(statistics.median(column), 1) for column in zip(*took, strict=True)]


async def postmaster(db: Any) -> int | None:
    """The process whose children serve connections, and parallel plans."""
    if db.dialect.name != "postgresql":
        return None
    backend = (await db.execute(text("SELECT pg_backend_pid()"))).scalar_one()
    return int(Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[1])


def worked_s(server: int | None) -> float:
    """CPU of all its processes, of those that have ended as well."""
    if server is None:
        return 0.0
    ticks = 0
    for pid in (server, *map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split())):
        with contextlib.suppress(FileNotFoundError):  # It has ended meanwhile.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11 : 15 if pid == server else 13]))
    return ticks / os.sysconf("SC_CLK_TCK")


async def explorer(db: Any, by: str, period: Period, filters: dict[str, list[str]]) -> None:
    """What GET /usage asks."""
    await reports.explore(db, by, BUCKETS["day"], period, filters, limit=50, top=TOP)


async def one_request(db: Any) -> None:
    since_ns, until_ns = await partitions.span_of(db, ["req_77777"])
    rows = schema.usage_records
    query = select(rows).where(rows.c.id == "req_77777", rows.c.at_ns >= since_ns, rows.c.at_ns < until_ns)
    assert (await db.execute(query)).one()


async def overview(db: Any, period: Period) -> None:
    """What GET /overview asks, but for its budgets."""
    await reports.explore(db, "alias", BUCKETS["day"], period, {}, limit=TOP, top=TOP)
    await reports.groups(db, "key", period, {}, limit=TOP)
    await reports.groups(db, "outcome", period, {}, limit=TOP)
    await reports.totals(db, period.before, {})
    for each in (period, period.before):
        await reports.first_token(db, each)


async def fill(engine: AsyncEngine, count: int, *, migrated: bool) -> dict[str, float]:
    made_by_day = engine.dialect.name == "postgresql" and not migrated
    if made_by_day:
        await _begin_days(engine)
    begun = time.perf_counter()
    step = SPAN_NS // count
    for first in range(0, count, CHUNK):
        async with writing(engine) as db:
            last = min(first + CHUNK, count) - 1
            values = {"begin": BEGIN_NS, "step": step, "first": first, "last": last}
            await db.execute(text(INSERT[engine.dialect.name]), values)
    made = time.perf_counter()
    moved = {}
    if migrated:
        async with writing(engine) as db:
            await db.execute(text("ANALYZE"))
        await upgrade(engine.url.render_as_string(hide_password=False))
        moved = {"days_begun_by_migration_s": round(time.perf_counter() - made, 1)}
        made = time.perf_counter()
    async with writing(engine) as db:
        if made_by_day:
            await db.execute(text("INSERT INTO usage_ids SELECT id, at_ns FROM usage_records ORDER BY at_ns"))
    claimed = time.perf_counter()
    async with writing(engine) as db:
        await db.run_sync(_make_hours)
    hours = time.perf_counter()
    await days.seal_due(engine, now_ns=AT_NS)
    sealed = time.perf_counter()
    async with writing(engine) as db:
        await db.execute(text("ANALYZE"))
    return {
        "rows_made_s": round(made - begun, 1),
        **moved,
        "ids_s": round(claimed - made, 1),
        "hours_by_migration_s": round(hours - claimed, 1),
        "days_sealed_s": round(sealed - hours, 1),
    }


async def _begin_days(engine: AsyncEngine) -> None:
    """As an installation has them that was there before the rows: a fresh one begins today."""
    async with writing(engine) as db:
        await db.execute(text("ALTER TABLE usage_records DETACH PARTITION usage_records_before"))
        first = BEGIN_NS // DAY_NS * DAY_NS
        bounds = f"FOR VALUES FROM (MINVALUE) TO ({first})"
        await db.execute(text(f"ALTER TABLE usage_records ATTACH PARTITION usage_records_before {bounds}"))
    await partitions.make_days(engine, now_ns=BEGIN_NS, ahead=SPAN_NS // DAY_NS + 1)


async def sizes(engine: AsyncEngine) -> dict[str, int]:
    """Bytes on the disk, indexes included, of what grows with requests."""
    query = text(
        "SELECT CASE WHEN c.relname LIKE 'usage_records%' THEN 'usage_records' ELSE c.relname END AS name, "
        "sum(pg_total_relation_size(c.oid)), sum(pg_indexes_size(c.oid)) FROM pg_class AS c "
        "WHERE c.relkind = 'r' AND c.relname LIKE 'usage%' GROUP BY 1 ORDER BY 1"
    )
    if engine.dialect.name != "postgresql":
        return {}
    async with reading(engine) as db:
        found: dict[str, int] = {}
        for name, whole, indexes in await db.execute(query):
            found |= {f"{name}_bytes": int(whole), f"{name}_index_bytes": int(indexes)}
        return found


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


async def measure(url: str, count: int, *, migrated: bool = False) -> dict[str, Any]:
    engine = create_engine(url)
    if migrated:
        script = ScriptDirectory.from_config(configuration())
        async with writing(engine) as db:
            before = str(script.get_revision("usage_partitions").down_revision)
            await db.run_sync(lambda connection: command.upgrade(configuration(connection), before))
        known = 0
    else:
        async with reading(engine) as db:
            known = (await db.execute(select(func.count()).select_from(schema.usage_hours))).scalar_one()
    result: dict[str, Any] = {"rows": count, "database": engine.dialect.name}
    if not known:
        result |= await fill(engine, count, migrated=migrated)
    result |= await sizes(engine)
    async with reading(engine) as db:
        for table in (schema.usage_hours, schema.usage_days, schema.usage_day_facets, schema.usage_day_waits):
            result[table.name] = (await db.execute(select(func.count()).select_from(table))).scalar_one()
    end_ns = AT_NS
    month, all_of_it = Period(end_ns - 30 * DAY_NS, end_ns), Period(0, end_ns)
    ms: dict[str, list[float]] = {}
    for by in ("alias", "key", "organisation", "deployment", "end_user", "tag"):
        ms[f"explorer by {by}, 30 days"] = await timed(engine, lambda db, b=by: explorer(db, b, month, {}))
        ms[f"explorer by {by}, 90 days"] = await timed(engine, lambda db, b=by: explorer(db, b, all_of_it, {}))
    # As the dashboard asks: today, and the 29 whole days before it.
    page = Period((end_ns // DAY_NS - 29) * DAY_NS, end_ns)
    for by in reports.GROUPS:
        ms[f"the page by {by}, 30 days"] = await timed(engine, lambda db, b=by: explorer(db, b, page, {}), times=5)
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
    ms["one request by its id"] = await timed(engine, one_request)
    ms["saved by caches, 7 days, from rows"] = await timed(engine, lambda db: saved(db, week, {}), times=1)
    result["ms"] = ms
    begun = time.perf_counter()
    if await partitions.drop_day(engine, BEGIN_NS // DAY_NS + 1):
        result["day_dropped_ms"] = round((time.perf_counter() - begun) * 1e3, 1)
    await engine.dispose()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--keep", type=Path, help="a folder for the SQLite file; filled only if it is not there")
    parser.add_argument("--migrated", action="store_true", help="PostgreSQL: rows from before there were days")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.database == "postgresql":
        with services.postgres() as databases, databases.clone(migrated=not asked.migrated) as url:
            result = asyncio.run(measure(url, asked.rows, migrated=asked.migrated))
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
