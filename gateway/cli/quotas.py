"""`farebox quotas`: budgets and rate limits of any scope, and the teams that some of them are for."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App

from gateway.cli.common import (
    CHANGES,
    DEFAULTS,
    OK,
    WRONG_USAGE,
    Changes,
    Common,
    Problem,
    database,
    emit,
    make_table,
    organisation_of,
    usd,
)
from gateway.cli.keys import id_of, key_admin, project_named, span_ns
from gateway.cli.site import acting
from gateway.cli.usage import names_of

if TYPE_CHECKING:
    from billing.accounts import Budget
    from billing.db import AsyncConnection, AsyncEngine
    from gateway.admission.key_admin import KeyAdmin

app = App(name="quotas")

ACTOR = "farebox quotas"

ScopeName = Literal["organisation", "team", "project", "key", "end_user", "model", "provider", "tag"]
WindowName = Literal["total", "month", "day", "hour"]
_WINDOWS_MS = {"minute": 60_000, "hour": 3_600_000, "day": 86_400_000}


@app.command(name="list")
async def list_(*, of: str | None = None, common: Common = DEFAULTS) -> int:
    """Every budget with what has been spent of it, and every rate limit that is not a key's own.

    Parameters
    ----------
    of:
        Only those of this organisation, team, project or key, by id, and of what it owns.
    """
    from sqlalchemy import select

    from billing import accounts
    from billing.db import reading
    from gateway.schema import rate_limits

    async with database(common.settings()) as engine, reading(engine) as db:
        found = await accounts.budgets(db, None if of is None else [of])
        budgets = [await _plain(db, budget, time.time_ns()) for budget in found]
        limits = [dict(row) for row in (await db.execute(select(rate_limits))).mappings()]
        names: dict[str, str] = {}
        for kind in ("organisation", "team", "project", "key"):
            names |= await names_of(db, kind)
    for row in (*budgets, *limits):
        owner, slash, rest = row["scope_id"].partition("/")
        row["name"] = names.get(owner, owner) + slash + rest
    if of is not None:
        limits = [row for row in limits if row["scope_id"].partition("/")[0] == of]
    emit(common, {"budgets": budgets, "limits": limits}, lambda: _tables(budgets, limits))
    return OK


@app.command
async def budget(
    scope: ScopeName,
    scope_id: str,
    amount: str,
    /,
    *,
    window: WindowName = "total",
    kind: Literal["hard", "soft", "throttle"] = "hard",
    slow_rpm: int = 0,
    slow_from: int = 100,
    common: Changes = CHANGES,
) -> int:
    """Set what a scope may spend, for example: quotas budget model org_1/gpt-* 25usd --window day.

    Parameters
    ----------
    scope:
        Whose: an organisation, a team, a project, a key; each end user of a project; a model, a provider, a tag.
    scope_id:
        Its id; of an end user the project's; of the last three ORGANISATION/NAME or PROJECT/NAME. A model's name may be
        a glob of aliases, which are then counted together.
    amount:
        As 0.01usd or $5, or `none` to take the budget away.
    window:
        In what time: ever, a month, a day or an hour (UTC).
    kind:
        What happens to a request that it does not cover. hard: refused; soft: let through and told; throttle: only
        --slow-rpm of them a minute are let through.
    slow_rpm:
        Of a throttle: requests a minute.
    slow_from:
        Of a throttle: from how many per cent of the amount on.
    """
    from billing.accounts import BudgetKind, Scope, Window

    settings = common.settings()
    limit_pusd = None if amount == "none" else _amount(amount)
    async with database(settings, dry=common.dry_run) as engine, key_admin(settings, engine) as keys:
        if limit_pusd is not None:
            scope_id = await _existing(engine, keys, scope, scope_id)
        await keys.set_budget(
            Scope(scope),
            scope_id,
            Window(window),
            limit_pusd,
            actor=acting(ACTOR),
            now_ns=time.time_ns(),
            kind=BudgetKind(kind),
            slow_rpm=slow_rpm,
            slow_from_percent=slow_from,
        )
    value = {"scope": scope, "scope_id": scope_id, "window": window, "limit_pusd": limit_pusd, "kind": kind}
    emit(common, value, lambda: f"{scope} {scope_id}: {amount} {window}, {kind}" if limit_pusd is not None else "gone")
    return OK


@app.command(name="raise")
async def raise_(
    scope: ScopeName,
    scope_id: str,
    amount: str,
    /,
    *,
    window: WindowName = "total",
    lasts: str = "1d",
    common: Changes = CHANGES,
) -> int:
    """Add to a budget for a time; 0usd ends it now.

    Parameters
    ----------
    amount:
        What is added, as $5.
    lasts:
        How long: 30m, 12h, 7d, or until 2027-01-31 (UTC).
    """
    from billing.accounts import Scope, Window

    settings, now_ns = common.settings(), time.time_ns()
    until_ns = span_ns(lasts, now_ns, "--lasts")
    async with database(settings, dry=common.dry_run) as engine, key_admin(settings, engine) as keys:
        await keys.raise_budget(
            Scope(scope), scope_id, Window(window), _amount(amount), until_ns, actor=acting(ACTOR), now_ns=now_ns
        )
    emit(
        common,
        {"scope": scope, "scope_id": scope_id, "window": window, "raise_pusd": _amount(amount), "until_ns": until_ns},
        lambda: f"{scope} {scope_id}: {amount} more for {lasts}",
    )
    return OK


@app.command
async def limit(
    scope: ScopeName,
    scope_id: str,
    unit: Literal["requests", "tokens", "parallel"],
    amount: str,
    /,
    *,
    per: Literal["minute", "hour", "day"] = "minute",
    common: Changes = CHANGES,
) -> int:
    """Set how many requests or tokens a scope has in a time, or how many requests at once.

    Parameters
    ----------
    scope_id:
        As of `quotas budget`.
    amount:
        A number, or `none` to take the limit away.
    per:
        Of requests and tokens.
    """
    from billing.accounts import Scope

    settings = common.settings()
    if amount != "none" and not amount.isdecimal():
        raise Problem(f"{amount!r} is no number", fix="write digits, or none", code=WRONG_USAGE)
    number = None if amount == "none" else int(amount)
    async with database(settings, dry=common.dry_run) as engine, key_admin(settings, engine) as keys:
        if number is not None:
            scope_id = await _existing(engine, keys, scope, scope_id)
        await keys.set_rate_limit(
            Scope(scope),
            scope_id,
            unit,
            number,
            actor=acting(ACTOR),
            now_ns=time.time_ns(),
            window_ms=_WINDOWS_MS["minute" if unit == "parallel" else per],
        )
    value = {"scope": scope, "scope_id": scope_id, "unit": unit, "per": per, "amount": number}
    emit(common, value, lambda: f"{scope} {scope_id}: {amount} {unit}" + ("" if unit == "parallel" else f" a {per}"))
    return OK


@app.command
async def team(name: str, /, *, organisation: str, projects: list[str] | None = None, common: Changes = CHANGES) -> int:
    """Make a team, or have projects join one that is there.

    Parameters
    ----------
    organisation:
        Whose, by id.
    projects:
        Ids of projects that join it; each is of one team at most.
    """
    from billing import accounts
    from billing.db import writing

    settings = common.settings()
    async with database(settings, dry=common.dry_run) as engine, key_admin(settings, engine) as keys:
        async with writing(engine) as db:
            organisation = await organisation_of(db, organisation)
            found = next((each for each in await accounts.teams(db, organisation) if each.name == name), None)
            if found is None:
                found = await accounts.create_team(
                    db, f"team_{secrets.token_hex(8)}", organisation, name, at_ns=time.time_ns()
                )
            for project in projects or ():
                try:
                    await accounts.join_team(db, project, found.id)
                except ValueError as error:
                    raise Problem(str(error), fix="take ids of projects of the team's organisation") from error
        await keys.changed()
    emit(common, {"id": found.id, "name": name, "projects": projects or []}, lambda: f"{found.id} {name}")
    return OK


async def _existing(engine: AsyncEngine, keys: KeyAdmin, scope: str, scope_id: str) -> str:
    """Its id: keys may be named as shown, projects by name. Raises: NotFound; a limit on what is not there is none."""
    from billing.db import reading
    from gateway.admin.auth.places import place_of

    if scope == "key":
        return (await keys.key(id_of(scope_id))).id
    if scope in ("project", "end_user"):
        return (await project_named(engine, scope_id)).id
    owner = scope_id.partition("/")[0]
    async with reading(engine) as db:
        if await place_of(db, scope, owner) is None:
            kind = "organisation or project" if scope in ("model", "provider", "tag") else scope
            fix = "`farebox ledger organisations` and `farebox projects list` show ids"
            raise Problem(f"no {kind} {owner!r}", fix=fix)
    return scope_id


async def _plain(db: AsyncConnection, budget: Budget, now_ns: int) -> dict[str, Any]:
    from billing.accounts import window_start_ns
    from billing.statements import spent

    used = await spent(db, budget.scope, budget.scope_id, since_ns=window_start_ns(budget.window, now_ns))
    return {
        "scope": budget.scope.value,
        "scope_id": budget.scope_id,
        "window": budget.window.value,
        "limit_usd": usd(budget.limit_at(now_ns)),
        "limit_pusd": budget.limit_at(now_ns),
        "spent_usd": usd(used),
        "spent_pusd": used,
        "kind": budget.kind.value,
        "slow_rpm": budget.slow_rpm,
        "slow_from_percent": budget.slow_from_percent,
        "raised_until_ns": budget.raise_until_ns,
    }


def _tables(budgets: list[dict[str, Any]], limits: list[dict[str, Any]]) -> Any:
    from rich.console import Group

    columns = ["scope", "name", "scope_id", "window", "limit_usd", "spent_usd", "kind"]
    rates = ["scope", "name", "scope_id", "unit", "amount", "window_ms"]
    shown = [
        make_table(names, [[row[name] for name in names] for row in rows], right=right)
        for names, right, rows in ((columns, columns[4:6], budgets), (rates, rates[4:], limits))
        if rows
    ]
    return Group(*shown) if shown else "no budgets and no limits: `farebox quotas budget`, `farebox quotas limit`"


def _amount(text: str) -> int:
    from billing.money import parse_usd

    try:
        amount = parse_usd(text)
    except ValueError as error:
        raise Problem(str(error), fix="write it as 0.01usd, $5 or none", code=WRONG_USAGE) from error
    if amount < 0:
        raise Problem("an amount below zero", fix="write it as 0.01usd, $5 or none", code=WRONG_USAGE)
    return amount
