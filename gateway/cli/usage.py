"""`farebox usage`: what was used and charged, exactly as the ledger has it."""

from __future__ import annotations

import re
import time
from typing import Any, Literal

from cyclopts import App

from gateway.cli.common import DEFAULTS, OK, WRONG_USAGE, Common, Problem, database, emit, make_table, usd

app = App(name="usage")

By = Literal[
    "key", "project", "team", "organisation", "model", "alias", "provider", "deployment", "outcome", "dialect",
    "end_user", "tag", "day",
]  # fmt: skip
_SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}


@app.default
async def usage(*, by: By = "key", since: str | None = None, common: Common = DEFAULTS) -> int:
    """Show usage and charges. Amounts are exact, in US dollars.

    Parameters
    ----------
    by:
        One line for each of these.
    since:
        Only the last so long: 24h, 7d, 4w. Default: everything.
    """
    from billing.db import reading
    from billing.statements import Dimension, usage_by

    since_ns = time.time_ns() - _span_ns(since) if since else 0
    async with database(common.settings()) as engine, reading(engine) as db:
        lines = await usage_by(db, Dimension(by), since_ns=since_ns)
        names = await names_of(db, by)
    rows: list[dict[str, Any]] = [
        {
            by: line.name,
            "name": names.get(line.name),
            "requests": line.requests,
            "input_tokens": line.input_tokens,
            "output_tokens": line.output_tokens,
            "charge_usd": usd(line.charge_pusd),
            "charge_pusd": line.charge_pusd,
            "cost_usd": usd(line.cost_pusd),
            "estimated": line.estimated,
            "unpriced": line.unpriced,
        }
        for line in lines
    ]
    total = sum(line.charge_pusd for line in lines)
    value = {"by": by, "lines": rows, "total_charge_usd": usd(total), "total_charge_pusd": total}

    def table() -> object:
        numbers = ["requests", "input_tokens", "output_tokens", "charge_usd", "cost_usd"]
        cells = [[row["name"] or row[by], *(row[number] for number in numbers)] for row in rows]
        totals = ["total", *(sum(row[n] for row in rows) for n in numbers[:3]), usd(total), ""]
        return make_table([by, *numbers], [*cells, totals], right=numbers)

    emit(common, value, table)
    return OK


@app.command
async def rebuild(*, common: Common = DEFAULTS) -> int:
    """Make the sums of every day anew from its rows and hours. Reports stay right meanwhile; they are only slower."""
    from billing.days import rebuild as rebuild_days

    async with database(common.settings()) as engine:
        days = await rebuild_days(engine, now_ns=time.time_ns())
    emit(common, {"days": days}, lambda: f"{days} days made anew")
    return OK


async def names_of(db: object, by: str) -> dict[str, str]:
    """What people call the ids. Returns: id -> name."""
    from sqlalchemy import select

    from billing import accounts
    from billing.db import AsyncConnection
    from gateway.schema import virtual_keys

    assert isinstance(db, AsyncConnection)
    if by == "project":
        return {project.id: project.name for project in await accounts.projects(db)}
    if by == "team":
        return {team.id: team.name for team in await accounts.teams(db)}
    if by == "organisation":
        return {organisation.id: organisation.name for organisation in await accounts.organisations(db)}
    if by == "key":
        rows = await db.execute(select(virtual_keys.c.id, virtual_keys.c.name, virtual_keys.c.public_id))
        return {row.id: f"{row.name or 'key'} (fbx-{row.public_id})" for row in rows}
    return {}


def _span_ns(text: str) -> int:
    found = re.fullmatch(r"([0-9]+)([hdw])", text)
    if found is None:
        raise Problem(f"--since: {text!r} is no span of time", fix="write it as 24h, 7d or 4w", code=WRONG_USAGE)
    return int(found[1]) * _SECONDS[found[2]] * 10**9
