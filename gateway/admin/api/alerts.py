"""Alerts: rules, and what they said. A target is where an administrator wants to be told, never a secret of ours."""

from __future__ import annotations

import secrets
from typing import Annotated

from litestar import delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import Meta, Struct

from billing import alerts
from billing.accounts import Scope
from billing.alerts import Channel, Kind
from billing.db import writing
from billing.money import format_usd, parse_usd
from gateway.admin.auth.routes import record
from gateway.admin.problems import invalid, not_found
from gateway.admin.times import Stamp, stamp
from gateway.admin.wants import Caller, Office
from gateway.alerting import Messenger, NotDelivered


class AlertRule(Struct, frozen=True):
    """threshold: for a balance dollars, for an outage seconds, else percent, as text. scope, scope_id: null is every
    one."""

    id: str
    kind: Kind
    threshold: str
    channel: Channel
    target: str
    scope: Scope | None
    scope_id: str | None
    created_at: Stamp


class NewAlertRule(Struct, frozen=True, forbid_unknown_fields=True):
    """budget: percent of a budget that are used. balance: dollars left to spend. anomaly: percent of the daily average
    of the week before. outage: seconds that the store of limits has been away."""

    kind: Kind
    threshold: Annotated[str, Meta(max_length=40)]
    channel: Channel
    target: Annotated[str, Meta(min_length=3, max_length=2000)]
    scope: Scope | None = None
    scope_id: Annotated[str, Meta(max_length=128)] | None = None


class AlertDelivery(Struct, frozen=True):
    """state: waiting, sent, or given up."""

    id: str
    rule_id: str
    channel: Channel
    target: str
    text: str
    at: Stamp
    state: str
    attempts: int
    problem: str | None


class AlertTrial(Struct, frozen=True):
    """problem: why nobody took it."""

    delivered: bool
    problem: str | None


@get("/alerts", name="alerts.list")
async def list_rules(services: Office) -> list[AlertRule]:
    async with services.reader.reading() as db:
        return [_view(rule) for rule in await alerts.rules(db)]


@post("/alerts", name="alerts.create")
async def create_rule(data: JSONBody[NewAlertRule], actor: Caller, services: Office) -> AlertRule:
    """Whoever is named is told once for each crossing, within a minute of it."""
    now_ns = services.clock()
    rule = alerts.Rule(
        f"alert_{secrets.token_hex(6)}", data.kind, _threshold(data), data.channel, data.target, now_ns, data.scope,
        data.scope_id,
    )  # fmt: skip
    try:
        alerts.check(rule)
    except ValueError as error:
        raise invalid("threshold", str(error), "Mend the rule; nothing was stored.") from error
    async with writing(services.engine) as db:
        await alerts.add_rule(db, rule)
        after = {"kind": rule.kind.value, "channel": rule.channel.value, "threshold": data.threshold}
        await record(db, actor, "alerts.create", rule.id, now_ns, after=after, of=rule.scope_id)
    return _view(rule)


@delete("/alerts/{rule_id:str}", name="alerts.remove")
async def remove_rule(rule_id: FromPath[str], actor: Caller, services: Office) -> None:
    async with writing(services.engine) as db:
        if not await alerts.remove_rule(db, rule_id):
            raise not_found("alert", rule_id, "Take an id from /alerts.")
        await record(db, actor, "alerts.remove", rule_id, services.clock())


@post("/alerts/{rule_id:str}/test", name="alerts.test", status_code=200)
async def try_rule(rule_id: FromPath[str], actor: Caller, services: Office) -> AlertTrial:
    """Send a test message where this rule's alerts go, now."""
    now_ns = services.clock()
    async with services.reader.reading() as db:
        rule = next((rule for rule in await alerts.rules(db) if rule.id == rule_id), None)
    if rule is None:
        raise not_found("alert", rule_id, "Take an id from /alerts.")
    messenger, problem = Messenger(services.settings), None
    try:
        await messenger.tell(rule.channel, rule.target, alerts.trial(rule, now_ns=now_ns), now_ns // 10**9)
    except NotDelivered as error:
        problem = str(error)
    finally:
        await messenger.aclose()
    async with writing(services.engine) as db:
        await record(db, actor, "alerts.test", rule_id, now_ns, after={"delivered": problem is None})
    return AlertTrial(problem is None, problem)


@get("/alerts/deliveries", name="alerts.deliveries")
async def list_deliveries(
    services: Office, limit: Annotated[int, QueryParameter(ge=1, le=500)] = 100
) -> list[AlertDelivery]:
    """What was said, the newest first, and what nobody took yet."""
    async with services.reader.reading() as db:
        found = await alerts.deliveries(db, limit=limit)
    return [
        AlertDelivery(
            each.id, each.rule_id, each.channel, each.target, each.message.text, stamp(each.created_at_ns),
            "sent" if each.sent_at_ns is not None else "waiting" if each.due_ns is not None else "given up",
            each.attempts, each.problem,
        )
        for each in found
    ]  # fmt: skip


alert_handlers: list[HTTPRouteHandler] = [list_rules, create_rule, remove_rule, try_rule, list_deliveries]


def _threshold(data: NewAlertRule) -> int:
    text = data.threshold.removesuffix("%").strip()
    try:
        if data.kind is Kind.BALANCE:
            return parse_usd(text)
        if data.kind is Kind.OUTAGE:
            return int(text.removesuffix("s"))
        # A percent is a hundred basis points, and a dollar has the digits to say so without a float.
        bps, rest = divmod(parse_usd(text), 10**10)
        if rest:
            raise ValueError(f"{data.threshold}: at most two decimals")
    except ValueError as error:
        fix = "Write percent, as 80, for a balance dollars, as 10, for an outage seconds, as 30."
        raise invalid("threshold", str(error), fix) from error
    return bps


def _view(rule: alerts.Rule) -> AlertRule:
    match rule.kind:
        case Kind.BALANCE:
            threshold = format_usd(rule.threshold)
        case Kind.OUTAGE:
            threshold = str(rule.threshold)
        case _:
            threshold = format_usd(rule.threshold * 10**10)
    return AlertRule(
        rule.id, rule.kind, threshold, rule.channel, rule.target, rule.scope, rule.scope_id, stamp(rule.created_at_ns)
    )
