"""`farebox audit`: who changed what, when and why, and the proof that nobody has edited it since."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cyclopts import App

from gateway.cli.common import DEFAULTS, NOT_WELL, OK, Common, database, day_ns, emit, make_table, usd
from gateway.cli.site import Written, place

app = App(name="audit")

_WINDOWS = frozenset({"total", "month", "day", "hour"})
"""A budget's row has its amount under its window."""


@app.command(name="list")
async def list_(
    *,
    actor: str | None = None,
    action: str | None = None,
    subject: str | None = None,
    why: str | None = None,
    organisation: str | None = None,
    since: str = "",
    limit: int = 50,
    common: Common = DEFAULTS,
) -> int:
    """Show changes, the newest last.

    Parameters
    ----------
    actor:
        Only who is called exactly this.
    action:
        Only this, as key.revoke.
    subject:
        Only what was done to this id.
    why:
        Only where the reason that was given has these words in it.
    organisation:
        Only what belongs to this one, by its id.
    since:
        The first day, as 2026-11-01 (UTC).
    limit:
        The last so many.
    """
    from billing.db import reading
    from gateway import audit

    wanted = audit.Wanted(actor, action, subject, why, day_ns(since) if since else 0,
                          organisations=None if organisation is None else frozenset({organisation}))  # fmt: skip
    async with database(common.settings()) as engine, reading(engine) as db:
        found = await audit.newest(db, wanted, limit=limit)
    rows = [audit.plain(row) for row in found]
    columns = ["at", "actor", "action", "subject", "change", "why"]
    shown = [
        [_at(row["at_ns"]), row["actor"], row["action"], row["subject"], _change(row), row["note"]] for row in rows
    ]
    emit(common, {"audit": rows}, lambda: make_table(columns, shown))
    return OK


@app.command
async def verify(*, common: Common = DEFAULTS) -> int:
    """Go through the whole chain of hashes. Keep the head elsewhere: it shows later whether the end was cut off."""
    from billing.db import reading
    from gateway import audit

    async with database(common.settings()) as engine, reading(engine) as db:
        found = await audit.verify(db)
    value = {"intact": found.broken_at is None, "rows": found.rows, "head": found.head, "broken_at": found.broken_at}
    told = f"{found.rows} rows, every one follows from the one before\nhead {found.head}"
    if found.broken_at is not None:
        told = f"BROKEN at row {found.broken_at}: it was edited, or one before it was removed or put in"
    emit(common, value, lambda: told)
    return OK if found.broken_at is None else NOT_WELL


@app.command
async def export(file: Written, /, *, since: str = "", common: Common = DEFAULTS) -> int:
    """Write every change as JSON Lines, the oldest first, with the hashes that prove them.

    Parameters
    ----------
    file:
        Where to.
    since:
        The first day, as 2026-11-01 (UTC). Default: from the beginning.
    """
    from billing.db import reading
    from gateway import audit

    wanted, rows = audit.Wanted(since_ns=day_ns(since) if since else 0), 0
    async with database(common.settings()) as engine, reading(engine) as db:
        with place(file).open("wb") as out:
            async for line in audit.lines(db, wanted):
                out.write(line)
                rows += 1
    emit(common, {"rows": rows, "file": str(file)}, lambda: f"{rows} rows to {file}")
    return OK


def _at(at_ns: int) -> str:
    return f"{datetime.fromtimestamp(at_ns // 10**9, UTC):%Y-%m-%d %H:%M:%S}"


def _change(row: Mapping[str, Any]) -> str:
    before, after = row["before"] or {}, row["after"] or {}
    names = [*before, *(each for each in after if each not in before)]
    return ", ".join(
        f"{name}: {_said(name, before[name])} -> {_said(name, after.get(name))}" if name in before
        else f"{name}: {_said(name, after[name])}"
        for name in names
        if (before.get(name), after.get(name)) != (None, None)
    )[:200]  # fmt: skip


def _said(name: str, value: Any) -> str:
    """Stored as pUSD and nanoseconds; read as dollars and times."""
    if isinstance(value, int) and not isinstance(value, bool):
        if name.endswith("_pusd") or name in _WINDOWS:
            return f"{usd(value)} USD"
        if name.endswith("_ns"):
            return _at(value)
    return "none" if value is None else str(value)
