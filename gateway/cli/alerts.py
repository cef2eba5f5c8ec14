"""`farebox alerts`: who is told when a budget is nearly used, a balance low, or a day's spending unusual."""

from __future__ import annotations

import secrets
import time
from decimal import Decimal, InvalidOperation
from typing import Literal

from cyclopts import App

from gateway.cli.common import (
    CHANGES,
    DEFAULTS,
    NOT_WELL,
    OK,
    WRONG_USAGE,
    Changes,
    Common,
    Problem,
    database,
    emit,
    make_table,
)

app = App(name="alerts")


@app.command
async def add(
    kind: Literal["budget", "balance", "anomaly", "outage"],
    threshold: str,
    channel: Literal["webhook", "slack", "email"],
    target: str,
    /,
    *,
    scope: Literal["organisation", "project", "key"] | None = None,
    id: str = "",  # noqa: A002 - the flag is called --id.
    common: Changes = CHANGES,
) -> int:
    """Tell somebody once for each crossing of a threshold.

    Parameters
    ----------
    kind:
        budget: so much of a budget is used. balance: an organisation has so little left. anomaly: a day costs so much
        more than the days before. outage: the store of limits (Redis) has been away so long.
    threshold:
        budget: 80%. balance: 10usd. anomaly: 300% of the daily average of the week before. outage: 30s.
    channel:
        webhook: JSON, signed if alerts.signing_secret is set. slack: an incoming webhook. email: through mail.host.
    target:
        An http(s) address, or an e-mail address.
    scope:
        Only budgets or spending of this kind. Default: every budget; of spending, organisations'.
    id:
        Only this organisation, project or key.
    """
    from billing import alerts
    from billing.accounts import Scope
    from billing.db import writing

    rule_kind = alerts.Kind(kind)
    rule = alerts.Rule(
        f"alert_{secrets.token_hex(6)}", rule_kind, threshold_of(rule_kind, threshold), alerts.Channel(channel),
        target, time.time_ns(), Scope(scope) if scope else None, id or None,
    )  # fmt: skip
    try:
        alerts.check(rule)
    except ValueError as error:
        raise Problem(str(error), fix="see `farebox alerts add --help`", code=WRONG_USAGE) from error
    async with database(common.settings(), dry=common.dry_run) as engine, writing(engine) as db:
        await alerts.add_rule(db, rule)
    emit(common, plain(rule), lambda: f"{rule.id}: {kind} at {threshold} goes to {target}")
    return OK


@app.command(name="list")
async def list_(*, common: Common = DEFAULTS) -> int:
    """Show the rules."""
    from billing import alerts
    from billing.db import reading

    async with database(common.settings()) as engine, reading(engine) as db:
        rows = [plain(rule) for rule in await alerts.rules(db)]
    columns = ["id", "kind", "threshold", "scope", "scope_id", "channel", "target"]
    emit(common, {"rules": rows}, lambda: make_table(columns, [[row[c] for c in columns] for row in rows]))
    return OK


@app.command
async def remove(rule_id: str, /, *, common: Changes = CHANGES) -> int:
    """Take a rule back. What it said stays in the list of what was sent."""
    from billing import alerts
    from billing.db import writing

    async with database(common.settings(), dry=common.dry_run) as engine, writing(engine) as db:
        if not await alerts.remove_rule(db, rule_id):
            raise Problem(f"no rule {rule_id!r}", fix="`farebox alerts list` shows them")
    emit(common, {"removed": rule_id}, lambda: f"{rule_id} is gone")
    return OK


@app.command
async def sent(*, limit: int = 50, common: Common = DEFAULTS) -> int:
    """Show what was said lately, and what could not be. Exit code 1 if something was given up."""
    from billing import alerts
    from billing.db import reading

    async with database(common.settings()) as engine, reading(engine) as db:
        found = await alerts.deliveries(db, limit=limit)
    rows = [
        {
            "at": each.message.at,
            "state": state(each),
            "channel": each.channel.value,
            "target": each.target,
            "text": each.message.text,
            "attempts": each.attempts,
            "problem": each.problem,
        }
        for each in found
    ]
    columns = ["at", "state", "channel", "target", "text", "problem"]
    emit(common, {"deliveries": rows}, lambda: make_table(columns, [[row[c] for c in columns] for row in rows]))
    return NOT_WELL if any(row["state"] == "given up" for row in rows) else OK


@app.command(name="test")
async def try_(rule_id: str, /, *, common: Common = DEFAULTS) -> int:
    """Send a test message where this rule's alerts go, now. Exit code 1 if nobody took it."""
    from billing import alerts
    from billing.db import reading
    from gateway.alerting import Messenger, NotDelivered

    settings = common.settings()
    async with database(settings) as engine, reading(engine) as db:
        rule = next((rule for rule in await alerts.rules(db) if rule.id == rule_id), None)
    if rule is None:
        raise Problem(f"no rule {rule_id!r}", fix="`farebox alerts list` shows them")
    now_ns = time.time_ns()
    messenger = Messenger(settings)
    try:
        await messenger.tell(rule.channel, rule.target, alerts.trial(rule, now_ns=now_ns), now_ns // 10**9)
    except NotDelivered as error:
        raise Problem(f"not delivered: {error}", fix=f"check {rule.target} and the settings") from error
    finally:
        await messenger.aclose()
    emit(common, {"delivered": True, "target": rule.target}, lambda: f"{rule.target} has taken it")
    return OK


def threshold_of(kind: object, text: str) -> int:
    """Basis points, pUSD for a balance, seconds for an outage. Raises: Problem."""
    from billing.alerts import Kind
    from billing.money import parse_usd

    try:
        if kind is Kind.BALANCE:
            return parse_usd(text)
        if kind is Kind.OUTAGE:
            return int(text.removesuffix("s"))
        percent = Decimal(text.removesuffix("%").strip())
        bps = int(percent * 100)
        if bps != percent * 100:
            raise ValueError(f"{text}: at most two decimals")
    except (ValueError, InvalidOperation) as error:
        fix = "10usd for a balance, 80% for a budget, 300% for an anomaly, 30s for an outage"
        raise Problem(f"{text!r} is no threshold", fix=fix, code=WRONG_USAGE) from error
    return bps


def plain(rule: object) -> dict[str, object]:
    from billing.alerts import Kind, Rule
    from billing.money import format_usd

    assert isinstance(rule, Rule)
    percent = f"{rule.threshold // 100}.{rule.threshold % 100:02d}".rstrip("0").rstrip(".")
    return {
        "id": rule.id,
        "kind": rule.kind.value,
        "threshold": {
            Kind.BALANCE: f"{format_usd(rule.threshold)} USD",
            Kind.OUTAGE: f"{rule.threshold} s",
        }.get(rule.kind, f"{percent} %"),
        "scope": rule.scope.value if rule.scope else None,
        "scope_id": rule.scope_id,
        "channel": rule.channel.value,
        "target": rule.target,
    }


def state(delivery: object) -> str:
    from billing.alerts import Delivery

    assert isinstance(delivery, Delivery)
    if delivery.sent_at_ns is not None:
        return "sent"
    return "given up" if delivery.due_ns is None else "waiting"
