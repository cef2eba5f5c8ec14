"""Alerts: somebody is told once when a budget is used so far, a balance is that low, or a day's spending unusual.

Decides what is to be said and keeps it; gateway.alerting says it. A crossing and its message are written in one
transaction, so a message is neither lost nor made twice; it may reach its target twice, under one id. Knows no HTTP.
"""

import datetime
import secrets
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, delete, insert, or_, select, update

from billing import accounts, schema, statements, sums
from billing.accounts import Budget, Scope, Window, upsert, window_start_ns
from billing.db import AsyncConnection
from billing.money import format_usd
from billing.sums import NS_PER_DAY, Dimension, Span

BPS: Final = 10_000
# A message that nobody took for so long is given up: the operator sees it in the list.
ATTEMPTS_MAX: Final = 14
_FIRST_RETRY_NS: Final = 30 * 10**9
_LAST_RETRY_NS: Final = 3600 * 10**9

# What "unusual" is measured against: so many whole days before today, of which at least so many had spending, and never
# less than that a day. A newcomer's second day is not an anomaly.
_DAYS_BEFORE: Final = 7
_DAYS_MIN: Final = 3
_AVERAGE_MIN_PUSD: Final = 10**12
_ALL_WELL: Final[Mapping[str, int | None]] = {}


class Kind(StrEnum):
    BUDGET = "budget"  # threshold: basis points of a budget that are used.
    BALANCE = "balance"  # threshold: pUSD that an organisation may still spend, or fewer.
    OUTAGE = "outage"  # threshold: seconds that something of the gateways' own has been away.
    ANOMALY = "anomaly"  # threshold: basis points of the daily average of the week before that today has cost.


class Channel(StrEnum):
    WEBHOOK = "webhook"
    SLACK = "slack"
    EMAIL = "email"


class Rule(msgspec.Struct, frozen=True):
    """scope, scope_id: None is every one. A balance is an organisation's."""

    id: str
    kind: Kind
    threshold: int
    channel: Channel
    target: str
    created_at_ns: int
    scope: Scope | None = None
    scope_id: str | None = None


class Message(msgspec.Struct, frozen=True):
    """What is said. Amounts are exact dollars as text. share_bps: value of bound, in basis points."""

    id: str
    rule_id: str
    kind: Kind
    subject: str
    text: str
    value_usd: str
    bound_usd: str
    share_bps: int | None
    at: str


class Delivery(msgspec.Struct, frozen=True):
    """due_ns: None once it was sent or given up."""

    id: str
    rule_id: str
    channel: Channel
    target: str
    message: Message
    created_at_ns: int
    due_ns: int | None
    attempts: int
    sent_at_ns: int | None
    problem: str | None


class _Reading(msgspec.Struct, frozen=True):
    """One thing that a rule looks at."""

    subject: str
    period_ns: int
    value_pusd: int
    bound_pusd: int
    crossed: bool
    text: str


def check(rule: Rule) -> Rule:
    """Raises: ValueError for one that could never be told, or never stop."""
    if rule.kind is Kind.BUDGET and not 0 < rule.threshold <= 10 * BPS:
        raise ValueError("a share of a budget is above 0 % and at most 1000 %")
    if rule.kind is Kind.ANOMALY and not BPS < rule.threshold <= 1000 * BPS:
        raise ValueError("unusual is more than the average and at most 1000 times it")
    if rule.kind is Kind.OUTAGE and (rule.threshold < 1 or rule.scope is not None):
        raise ValueError("an outage is everybody's, and told after a second at least")
    if rule.kind is Kind.BALANCE and (rule.threshold < 0 or rule.scope not in (None, Scope.ORGANISATION)):
        raise ValueError("a balance is an organisation's, and its threshold not negative")
    if rule.scope_id is not None and rule.scope is None:
        raise ValueError("an id of what: organisation, project or key?")
    if rule.channel is Channel.EMAIL:
        name, at, domain = rule.target.partition("@")
        if not (name and at and domain) or any(c.isspace() or c in ",;<>" for c in rule.target):
            raise ValueError(f"not an e-mail address: {rule.target!r}")
    elif not rule.target.startswith(("https://", "http://")):
        raise ValueError(f"not an http(s) address: {rule.target!r}")
    return rule


async def add_rule(db: AsyncConnection, rule: Rule) -> None:
    """Raises: ValueError as `check` does."""
    await db.execute(insert(schema.alert_rules).values(msgspec.structs.asdict(check(rule))))


async def remove_rule(db: AsyncConnection, rule_id: str) -> bool:
    """With what it remembers; what it said stays in the list. Returns: whether there was one."""
    states, rules = schema.alert_states, schema.alert_rules
    # The rule first: whoever evaluates it holds it until he has said what there is to say, and its states with it.
    found = bool((await db.execute(delete(rules).where(rules.c.id == rule_id))).rowcount)
    await db.execute(delete(states).where(states.c.rule_id == rule_id))
    return found


async def rules(db: AsyncConnection, *, hold: bool = False) -> list[Rule]:
    """hold: nobody removes one until this transaction ends."""
    query = select(schema.alert_rules).order_by(schema.alert_rules.c.created_at_ns, schema.alert_rules.c.id)
    rows = await db.execute(query.with_for_update(read=True) if hold else query)
    return [msgspec.convert({name: row[name] for name in Rule.__struct_fields__}, Rule) for row in rows.mappings()]


async def evaluate(db: AsyncConnection, *, now_ns: int, outages: Mapping[str, int | None] = _ALL_WELL) -> int:
    """Look at everything that a rule is about, in the caller's transaction. Returns: how many messages were made.

    outages: what the gateways cannot do without -> since when it has been away, None while it is there.

    Reads roll-ups and balances. What has no price yet is seen once it has one."""
    made = 0
    books = _Books(db, now_ns, outages)
    for rule in await rules(db, hold=True):
        for reading in await _READ[rule.kind](books, rule):
            if not await _turned(db, rule, reading):
                continue
            if reading.crossed:
                await _say(db, rule, reading, now_ns)
                made += 1
    return made


async def due(db: AsyncConnection, *, now_ns: int, most: int = 50) -> list[Delivery]:
    """What is to be sent now, the oldest first."""
    table = schema.alert_deliveries
    query = select(table).where(table.c.due_ns <= now_ns).order_by(table.c.due_ns).limit(most)
    return [_delivery(row) for row in (await db.execute(query)).mappings()]


async def deliveries(db: AsyncConnection, *, limit: int = 100) -> list[Delivery]:
    """The newest first."""
    table = schema.alert_deliveries
    query = select(table).order_by(table.c.created_at_ns.desc(), table.c.id).limit(limit)
    return [_delivery(row) for row in (await db.execute(query)).mappings()]


async def sent(db: AsyncConnection, delivery_id: str, *, now_ns: int) -> None:
    table = schema.alert_deliveries
    said = {"due_ns": None, "sent_at_ns": now_ns, "problem": None, "attempts": table.c.attempts + 1}
    await db.execute(update(table).where(table.c.id == delivery_id).values(**said))


async def failed(db: AsyncConnection, delivery: Delivery, problem: str, *, now_ns: int) -> None:
    """Later again, ever less often, until it is given up."""
    table, attempts = schema.alert_deliveries, delivery.attempts + 1
    wait_ns = min(_FIRST_RETRY_NS << min(attempts - 1, 20), _LAST_RETRY_NS)
    due_ns = None if attempts >= ATTEMPTS_MAX else now_ns + wait_ns
    said = {"due_ns": due_ns, "problem": problem[:500], "attempts": attempts}
    await db.execute(update(table).where(table.c.id == delivery.id).values(**said))


def trial(rule: Rule, *, now_ns: int) -> Message:
    """What `farebox alerts test` sends."""
    text = "A test: this is where alerts of this rule will come."
    return Message(secrets.token_hex(12), rule.id, rule.kind, "test", text, "0.00", "0.00", None, _stamp(now_ns))


async def _turned(db: AsyncConnection, rule: Rule, reading: _Reading) -> bool:
    """Note on which side it is now. Returns: whether that is news; to one of two that note it at once."""
    table = schema.alert_states
    row = {"rule_id": rule.id, "subject": reading.subject, "period_ns": reading.period_ns, "crossed": reading.crossed}
    statement = upsert(db, table).values(row)
    other: ColumnElement[bool] = table.c.crossed.is_not(reading.crossed)
    if reading.crossed:
        other = or_(other, table.c.period_ns != reading.period_ns)
    changed = {name: row[name] for name in ("period_ns", "crossed")}
    noted = await db.execute(
        statement.on_conflict_do_update(index_elements=["rule_id", "subject"], set_=changed, where=other)
    )
    return bool(noted.rowcount)


async def _say(db: AsyncConnection, rule: Rule, reading: _Reading, now_ns: int) -> None:
    share = reading.value_pusd * BPS // reading.bound_pusd if reading.bound_pusd else None
    message = Message(
        secrets.token_hex(12), rule.id, rule.kind, reading.subject, reading.text,
        format_usd(reading.value_pusd), format_usd(reading.bound_pusd), share, _stamp(now_ns),
    )  # fmt: skip
    row: dict[str, Any] = {"id": message.id, "rule_id": rule.id, "channel": rule.channel, "target": rule.target}
    row |= {"message": msgspec.to_builtins(message), "created_at_ns": now_ns, "due_ns": now_ns, "attempts": 0}
    await db.execute(insert(schema.alert_deliveries).values(row))


class _Books:
    """What has been spent and is left, asked once for all rules."""

    def __init__(self, db: AsyncConnection, now_ns: int, outages: Mapping[str, int | None]) -> None:
        self.db = db
        self.outages = outages
        self.now_ns = now_ns
        self._spent: dict[tuple[Scope, int, int], dict[str, int]] = {}

    async def spent(self, scope: Scope, since_ns: int, until_ns: int) -> dict[str, int]:
        key = (scope, since_ns, until_ns)
        if key not in self._spent:
            found = await sums.groups(self.db, Dimension(scope.value), Span(since_ns, until_ns), {})
            self._spent[key] = {name or "": line.charge_pusd for name, line in found}
        return self._spent[key]

    async def used(self, budget: Budget, since_ns: int) -> int:
        if budget.scope not in (Scope.ORGANISATION, Scope.PROJECT, Scope.KEY):  # No column of the kept sums.
            return await statements.spent(self.db, budget.scope, budget.scope_id, since_ns=since_ns)
        return (await self.spent(budget.scope, since_ns, self.now_ns)).get(budget.scope_id, 0)


async def used_of(db: AsyncConnection, budgets: Sequence[Budget], *, now_ns: int) -> list[int]:
    """What has been spent of each in its present window, in pUSD, by the kept sums: for warnings, not for refusals."""
    books = _Books(db, now_ns, {})
    return [await books.used(each, window_start_ns(each.window, now_ns)) for each in budgets]


async def _budgets(books: _Books, rule: Rule) -> list[_Reading]:
    readings = []
    for budget in await accounts.budgets(books.db):
        if not _about(rule, budget.scope, budget.scope_id):
            continue
        since_ns = window_start_ns(budget.window, books.now_ns)
        used, limit_pusd = await books.used(budget, since_ns), budget.limit_at(books.now_ns)
        crossed = used * BPS >= limit_pusd * rule.threshold
        per = "in all" if budget.window is Window.TOTAL else f"this {budget.window.value}"
        text = (
            f"{budget.scope.value} {budget.scope_id} has used {_dollars(used)} of its budget of "
            f"{_dollars(limit_pusd)} {per}: {rule.threshold // 100} % and more"
        )
        subject = f"{budget.scope.value} {budget.scope_id} {budget.window.value}"
        readings.append(_Reading(subject, since_ns, used, limit_pusd, crossed, text))
    return readings


async def _balances(books: _Books, rule: Rule) -> list[_Reading]:
    kept = schema.accounts.c
    rows = await books.db.execute(select(kept.id, kept.balance_pusd).where(kept.id.like("customer:%")))
    credit = {row.id: -row.balance_pusd for row in rows}
    readings = []
    for each in await accounts.organisations(books.db):
        if each.credit_limit_pusd is None or not _about(rule, Scope.ORGANISATION, each.id):
            continue  # Billed afterwards, without limit: there is nothing to run out of.
        left = credit.get(accounts.customer(each.id), 0) + each.credit_limit_pusd
        text = f"{each.name} ({each.id}) has {_dollars(left)} left to spend: {_dollars(rule.threshold)} or less"
        readings.append(_Reading(f"balance {each.id}", 0, left, rule.threshold, left <= rule.threshold, text))
    return readings


async def _anomalies(books: _Books, rule: Rule) -> list[_Reading]:
    today_ns = books.now_ns // NS_PER_DAY * NS_PER_DAY
    readings = []
    for scope in [rule.scope] if rule.scope is not None else [Scope.ORGANISATION]:
        today = await books.spent(scope, today_ns, books.now_ns)
        before: dict[str, list[int]] = {}
        for back in range(1, _DAYS_BEFORE + 1):
            start_ns = today_ns - back * NS_PER_DAY
            for name, spent in (await books.spent(scope, start_ns, start_ns + NS_PER_DAY)).items():
                before.setdefault(name, []).append(spent)
        for name, used in today.items():
            days = [spent for spent in before.get(name, []) if spent]
            if not _about(rule, scope, name) or len(days) < _DAYS_MIN:
                continue
            average = max(sum(days) // _DAYS_BEFORE, _AVERAGE_MIN_PUSD)
            text = (
                f"{scope.value} {name} has spent {_dollars(used)} today, {used // average} times its "
                f"daily average of {_dollars(average)}"
            )
            crossed = used * BPS >= average * rule.threshold
            readings.append(_Reading(f"day of {scope.value} {name}", today_ns, used, average, crossed, text))
    return readings


async def _outages(books: _Books, rule: Rule) -> list[_Reading]:
    readings = []
    for name, since_ns in books.outages.items():
        away_s = 0 if since_ns is None else max(0, books.now_ns - since_ns) // 10**9
        text = f"{name} has been away for {away_s} s: {rule.threshold} s and more"
        crossed = since_ns is not None and away_s >= rule.threshold
        readings.append(_Reading(f"outage of {name}", 0, 0, 0, crossed, text))
    return readings


_READ: Final = {
    Kind.BUDGET: _budgets, Kind.BALANCE: _balances, Kind.ANOMALY: _anomalies, Kind.OUTAGE: _outages,
}  # fmt: skip


def _about(rule: Rule, scope: Scope, scope_id: str) -> bool:
    return rule.scope in (None, scope) and rule.scope_id in (None, scope_id)


def _dollars(pusd: int) -> str:
    """For people: cents, or what is there when it is less."""
    if abs(pusd) < 10**10:
        return f"{format_usd(pusd)} USD"
    return f"{format_usd(pusd // 10**10 * 10**10)} USD"


def _stamp(at_ns: int) -> str:
    return datetime.datetime.fromtimestamp(at_ns // 10**9, datetime.UTC).isoformat().replace("+00:00", "Z")


def _delivery(row: Any) -> Delivery:
    return msgspec.convert({name: row[name] for name in Delivery.__struct_fields__}, Delivery)
