"""Nobody grants more than they hold: what a key may ask for and spend, beside what its maker may.

What a key spends is bounded by its project, team and organisation in any case; here a wish that they could never
fulfil is refused at once, and the models of a maker who may not grant all of them are checked, which nothing else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

from sqlalchemy import select

from billing import accounts
from billing.accounts import BudgetKind, Scope, Window
from billing.db import AsyncConnection
from billing.money import format_usd
from gateway.admin.auth.roles import ADMINS, MAKERS, Actor, Place
from gateway.admin.problems import invalid
from gateway.admission.principal import MINUTE_MS
from gateway.schema import rate_limits

_UNITS: Final = {"rpm": "requests", "tpm": "tokens", "parallel": "parallel"}


def models_of(actor: Actor, place: Place) -> tuple[str, ...] | None:
    """Globs of what a key made by this one in that place may ask for. None: everything."""
    if actor.role in MAKERS:
        return None
    allowed: list[str] = []
    for each in actor.held:
        if each.role in MAKERS and each.covers(place):
            if each.models is None:
                return None
            allowed += each.models
    return tuple(dict.fromkeys(allowed))


def bounded(actor: Actor, place: Place, wanted: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """What to write for a wish: the maker's own models where none are named. Raises: Problem for more than that."""
    allowed = models_of(actor, place)
    if allowed is None or wanted is None:
        return allowed if wanted is None else wanted
    for pattern in wanted:
        if not any(_covers(wide, pattern) for wide in allowed):
            raise invalid("models", f"{pattern!r} is more than you may grant",
                          f"Take of: {', '.join(allowed) or 'none'}.")  # fmt: skip
    return wanted


def _covers(wide: str, pattern: str) -> bool:
    """Whether every name that `pattern` matches is matched by `wide`; where that is hard to tell, no."""
    if wide in (pattern, "*"):
        return True
    if not set(pattern) & set("*?["):
        return fnmatchcase(pattern, wide)
    begin = wide.removesuffix("*")
    return wide.endswith("*") and not set(begin) & set("*?[") and pattern.startswith(begin)


async def check_bounds(
    db: AsyncConnection,
    actor: Actor,
    place: Place,
    *,
    limits: dict[str, int | None],
    budgets: Sequence[tuple[Window, int]] = (),
    now_ns: int,
) -> None:
    """limits: rpm, tpm, parallel as wished. Raises: Problem for one that is above its project's, team's or
    organisation's, unless an administrator of the whole installation wishes it."""
    if actor.role in ADMINS:
        return
    above = {"project": place.project_id, "team": place.team_id, "organisation": place.organisation_id}
    ids = [each for each in above.values() if each is not None]
    kept = [
        each
        for each in await accounts.budgets(db, ids)
        if above.get(each.scope.value) == each.scope_id and each.kind is BudgetKind.HARD
    ]
    for window, limit_pusd in budgets:
        for each in kept:
            if each.window is window and each.limit_at(now_ns) < limit_pusd:
                most = f"{format_usd(each.limit_at(now_ns))} USD"
                raise invalid("budgets", f"more than the {_named(each.scope)} may spend", f"It has {most}.")
    table = rate_limits.c
    query = select(rate_limits).where(table.scope_id.in_(ids), table.window_ms == MINUTE_MS)
    for row in (await db.execute(query)).mappings():
        for name, unit in _UNITS.items():
            wish = limits.get(name)
            if row["unit"] == unit and above.get(row["scope"]) == row["scope_id"] and (wish or 0) > row["amount"]:
                raise invalid(name, f"more than the {_named(Scope(row['scope']))} has", f"It has {row['amount']}.")


def _named(scope: Scope) -> str:
    return f"key's {scope.value}"
