"""Alerts are made once for each crossing, by whichever worker sees it, and kept until somebody has taken them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts, alerts, ledger
from billing.accounts import Budget, Scope, Window
from billing.alerts import ATTEMPTS_MAX, Channel, Kind, Rule
from billing.db import reading, writing
from billing.journal import Journal
from billing.sums import NS_PER_DAY
from billing.usage import Meter
from billing.worker import Worker
from tests.billing.make import AT_NS, BOOK, SALE, record

USD = 10**12
TODAY_NS = AT_NS // NS_PER_DAY * NS_PER_DAY
DOLLAR = {Meter.INPUT_TOKENS: USD // SALE[Meter.INPUT_TOKENS] + 1}  # A little more than one.


def rule(kind: Kind, threshold: int, **changes: Any) -> Rule:
    said = {"id": f"rule_{kind}", "channel": Channel.WEBHOOK, "target": "https://example.com/x", "created_at_ns": 1}
    return Rule(**{**said, "kind": kind, "threshold": threshold, **changes})


async def spend(engine: AsyncEngine, folder: Path, count: int, **changes: Any) -> None:
    journal = Journal.open(folder, "gw")
    for _ in range(count):
        spend.number += 1  # type: ignore[attr-defined]
        await journal.settle(record(f"r{spend.number}", quantities=DOLLAR, **changes))  # type: ignore[attr-defined]
    await journal.close()
    await Worker(folder, engine, BOOK).ship_once()


spend.number = 0  # type: ignore[attr-defined]


async def add(engine: AsyncEngine, *rules: Rule) -> None:
    async with writing(engine) as db:
        for each in rules:
            await alerts.add_rule(db, each)


async def look(engine: AsyncEngine, now_ns: int) -> list[str]:
    """What is said now, in words."""
    async with reading(engine) as db:
        before = {each.id for each in await alerts.deliveries(db, limit=1000)}
    async with writing(engine) as db:
        made = await alerts.evaluate(db, now_ns=now_ns)
    async with reading(engine) as db:
        said = [each.message.text for each in await alerts.deliveries(db, limit=1000) if each.id not in before]
    assert len(said) == made
    return said


async def test_a_budget_is_told_once_for_each_crossing(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    async with writing(fresh_engine) as db:
        await accounts.set_budget(db, Budget(Scope.PROJECT, "project_1", Window.DAY, 10 * USD), at_ns=1)
        await accounts.set_budget(db, Budget(Scope.KEY, "key_2", Window.TOTAL, 2 * USD), at_ns=1)
    await add(fresh_engine, rule(Kind.BUDGET, 8000), rule(Kind.BUDGET, 10_000, id="full", scope=Scope.PROJECT))
    now_ns = TODAY_NS + 1000
    await spend(fresh_engine, tmp_path / "a", 7, at_ns=TODAY_NS)
    assert await look(fresh_engine, now_ns) == []
    await spend(fresh_engine, tmp_path / "b", 1, at_ns=TODAY_NS)
    assert await look(fresh_engine, now_ns) == [
        "project project_1 has used 8.00 USD of its budget of 10.00 USD this day: 80 % and more"
    ]
    assert await look(fresh_engine, now_ns) == []
    await spend(fresh_engine, tmp_path / "c", 2, at_ns=TODAY_NS, key_id="key_2")
    assert sorted(await look(fresh_engine, now_ns)) == [
        "key key_2 has used 2.00 USD of its budget of 2.00 USD in all: 80 % and more",
        "project project_1 has used 10.00 USD of its budget of 10.00 USD this day: 100 % and more",
    ]
    # Raised, and used up anew: that is another crossing.
    for limit, crossed in ((100 * USD, 0), (10 * USD, 2)):
        async with writing(fresh_engine) as db:
            await accounts.set_budget(db, Budget(Scope.PROJECT, "project_1", Window.DAY, limit), at_ns=2)
        assert len(await look(fresh_engine, now_ns)) == crossed
    # So is the next day's, though nobody looked in between.
    await spend(fresh_engine, tmp_path / "d", 9, at_ns=TODAY_NS + NS_PER_DAY)
    assert len(await look(fresh_engine, now_ns + NS_PER_DAY)) == 1


async def test_workers_that_look_at_once_tell_once(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    async with writing(fresh_engine) as db:
        await accounts.set_budget(db, Budget(Scope.KEY, "key_1", Window.TOTAL, USD), at_ns=1)
    await add(fresh_engine, rule(Kind.BUDGET, 5000))
    await spend(fresh_engine, tmp_path, 1)

    async def one() -> int:
        async with writing(fresh_engine) as db:
            return await alerts.evaluate(db, now_ns=AT_NS + 1)

    assert sum(await asyncio.gather(*(one() for _ in range(6)))) == 1
    async with reading(fresh_engine) as db:
        assert len(await alerts.deliveries(db)) == 1


async def test_a_low_balance_is_told_again_after_it_was_filled(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    async with writing(fresh_engine) as db:
        await accounts.create_organisation(db, "org_1", "One", at_ns=1, credit_limit_pusd=0)
        await accounts.create_organisation(db, "org_2", "Two", at_ns=1, credit_limit_pusd=None)
        await ledger.top_up(db, "org_1", 12 * USD, "p1", at_ns=1)
    await add(fresh_engine, rule(Kind.BALANCE, 10 * USD))
    assert await look(fresh_engine, AT_NS) == []
    await spend(fresh_engine, tmp_path / "a", 3)
    said = await look(fresh_engine, AT_NS)
    assert said == ["One (org_1) has 8.99 USD left to spend: 10.00 USD or less"]
    async with writing(fresh_engine) as db:
        await ledger.top_up(db, "org_1", 5 * USD, "p2", at_ns=2)
    assert await look(fresh_engine, AT_NS) == []
    await spend(fresh_engine, tmp_path / "b", 5)
    assert len(await look(fresh_engine, AT_NS)) == 1


async def test_an_unusual_day_needs_usual_ones_before_it(fresh_engine: AsyncEngine, tmp_path: Path) -> None:
    await add(fresh_engine, rule(Kind.ANOMALY, 30_000), rule(Kind.ANOMALY, 30_000, id="keys", scope=Scope.KEY))
    await spend(fresh_engine, tmp_path / "a", 40, at_ns=TODAY_NS + 5)
    assert await look(fresh_engine, TODAY_NS + 10) == []  # Nothing to compare with.
    for back in range(1, 8):
        await spend(fresh_engine, tmp_path / f"day{back}", 12, at_ns=TODAY_NS - back * NS_PER_DAY + 5)
    assert sorted(await look(fresh_engine, TODAY_NS + 10)) == [
        "key key_1 has spent 40.00 USD today, 3 times its daily average of 12.00 USD",
        "organisation org_1 has spent 40.00 USD today, 3 times its daily average of 12.00 USD",
    ]
    assert await look(fresh_engine, TODAY_NS + 20) == []


async def test_what_nobody_takes_is_tried_ever_less_often_and_then_given_up(
    fresh_engine: AsyncEngine, tmp_path: Path
) -> None:
    async with writing(fresh_engine) as db:
        await accounts.set_budget(db, Budget(Scope.KEY, "key_1", Window.TOTAL, USD), at_ns=1)
    await add(fresh_engine, rule(Kind.BUDGET, 5000))
    await spend(fresh_engine, tmp_path, 1)
    assert len(await look(fresh_engine, AT_NS + 1)) == 1
    now_ns, waits = AT_NS + 1, []
    while True:
        async with writing(fresh_engine) as db:
            waiting = await alerts.due(db, now_ns=now_ns)
            if not waiting:
                break
            await alerts.failed(db, waiting[0], "answered 503", now_ns=now_ns)
            after = (await alerts.deliveries(db))[0]
        if after.due_ns is None:
            break
        waits.append((after.due_ns - now_ns) // 10**9)
        now_ns = after.due_ns
    assert waits[:4] == [30, 60, 120, 240]
    assert len(waits) == ATTEMPTS_MAX - 1
    assert waits[-1] == 3600
    assert (after.problem, after.sent_at_ns, after.attempts) == ("answered 503", None, ATTEMPTS_MAX)


@pytest.mark.parametrize(
    "bad",
    [
        rule(Kind.BUDGET, 0),
        rule(Kind.BUDGET, 200_000),
        rule(Kind.ANOMALY, 10_000),
        rule(Kind.BALANCE, -1),
        rule(Kind.BALANCE, 1, scope=Scope.KEY),
        rule(Kind.BUDGET, 5, scope_id="x"),
        rule(Kind.BUDGET, 5, target="ftp://example.com"),
        rule(Kind.BUDGET, 5, channel=Channel.EMAIL, target="nobody"),
        rule(Kind.BUDGET, 5, channel=Channel.EMAIL, target="a@b, c@d"),
        rule(Kind.BUDGET, 5, channel=Channel.EMAIL, target="a@b\nBcc: c@d"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(bad: Rule) -> None:
    with pytest.raises(ValueError):
        alerts.check(bad)
