"""What is granted while Redis is away, by a gateway that holds a share of its budgets in advance."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import alerts, schema
from billing.alerts import Channel, Kind, Rule
from billing.db import reading, writing
from gateway.admission.gate import Gate
from gateway.admission.principal import Budget, Limit
from gateway.admission.shares import PAUSE_S, Shares
from gateway.alerting import outages
from gateway.errors import LimitsAway, QuotaExceeded, RateLimited, Unavailable
from gateway.schema import gateways
from tests.gateway.admission.support import NOW_NS, Relay, principal, relay_to, scopes, total, until
from tests.gateway.admission.test_gate import EMPTY, ROW, admit, left

HELD = EMPTY + 1_000
WITHIN_S = 60.0


@pytest.fixture
async def relay(redis_url: str, tmp_path: Path) -> AsyncIterator[Relay]:
    async with relay_to(redis_url, tmp_path) as relay:
        yield relay


@contextlib.asynccontextmanager
async def sharing(engine: AsyncEngine, relay: Relay, percent: int = 10) -> AsyncIterator[Gate]:
    async with Redis.from_url(relay.url) as through, Gate(engine, through, share_percent=percent) as gate:
        yield gate


async def holds_shares(gate: Gate, count: int) -> None:
    assert gate._shares is not None
    await until(lambda: len(list(gate._shares or ())) == count, WITHIN_S)


async def is_left(gate: Gate, who: object, pusd: int) -> bool:
    with contextlib.suppress(Unavailable):
        return await left(gate, who) == pusd  # type: ignore[arg-type]
    return False


async def test_requests_live_on_the_share_and_are_told_of_later(
    engine: AsyncEngine, relay: Relay, redis: Redis
) -> None:
    """10 % of 40 holds are four. What they cost is counted once when Redis is back, and the share is full again."""
    limit = 40 * HELD
    who = principal(Limit("key", "key_1", "parallel", 20), budgets=(total(limit), Budget("project", "prj_1", limit)))
    async with sharing(engine, relay) as gate, Gate(engine, redis) as other:
        await gate.settle(await admit(gate, who, "before"), 0, 100)
        await holds_shares(gate, 2)
        assert await is_told(other, who, limit - 100 - limit // 10), "the others cannot spend it"
        await relay.cut()
        first = await admit(gate, who, "a")
        await gate.settle(first, 5, 700)
        second = await admit(gate, who, "b")
        with pytest.raises(RateLimited, match="parallel"):  # 2 of 20
            await admit(gate, who, "c")
            await admit(gate, who, "d")
        await gate.settle(gate._open["c"][0], 5, 600)
        await gate.settle(await admit(gate, who, "e"), 5, HELD)
        with pytest.raises(LimitsAway, match="does not cover"):
            await admit(gate, who, "g")
        assert gate.pending_count >= 2
        await relay.open()
        await until(lambda: is_told(gate, who, limit - 100 - 700 - 600 - HELD - HELD - limit // 10), WITHIN_S)
        await gate.settle(second, 5, 300)
        await until(lambda: is_told(gate, who, limit - 1_700 - HELD - limit // 10), WITHIN_S)
    async with Gate(engine, redis) as last:
        await until(lambda: is_told(last, who, limit - 1_700 - HELD), WITHIN_S)


async def is_told(gate: Gate, who: object, pusd: int) -> bool:
    with contextlib.suppress(Unavailable):
        found = await gate.available_pusd(who, NOW_NS // 10**6)  # type: ignore[arg-type]
        return gate.pending_count == 0 and [available for _, available in found] == [pusd, pusd]
    return False


async def test_redis_that_comes_back_empty_learns_of_shares_and_grants(
    engine: AsyncEngine, relay: Relay, redis: Redis
) -> None:
    """The roll call has both: nobody can spend a share a second time."""
    limit = 30 * HELD
    who = principal(budgets=(total(limit),))
    rows: list[dict[str, object]] = []

    async def ship() -> None:
        async with writing(engine) as db:
            while rows:
                await db.execute(insert(schema.usage_records), [rows.pop()])

    async with (
        Redis.from_url(relay.url) as through,
        Gate(engine, through, shipped=ship, share_percent=10) as gate,
        Gate(engine, redis, shipped=ship) as other,
    ):
        await gate.settle(await admit(gate, who, "before"), 0, 0)
        await holds_shares(gate, 1)
        await relay.cut()
        await admit(gate, who, "a")
        ended = await admit(gate, who, "b")
        rows.append(ROW | {"id": "b", "charge_pusd": 800})
        await gate.settle(ended, 5, 800)
        await redis.flushall()
        with pytest.raises(Unavailable, match="added up"):
            await admit(other, who, "c")  # It waits for us.
        await relay.open()
        taken = 0

        async def all_taken() -> bool:
            nonlocal taken
            try:
                await admit(other, who, f"c{taken}")
            except QuotaExceeded:
                return True
            except Unavailable:
                return False
            taken += 1
            return False

        await until(all_taken, WITHIN_S)
        assert taken * HELD <= limit - 800 - HELD
        await until(lambda: gate.pending_count == 0, WITHIN_S)


async def test_a_share_yields_to_a_request_that_needs_it(engine: AsyncEngine, relay: Relay) -> None:
    who = principal(budgets=(total(2 * HELD),))
    async with sharing(engine, relay, 50) as gate:
        first = await admit(gate, who, "a")
        await holds_shares(gate, 1)
        await admit(gate, who, "b")
        await holds_shares(gate, 0)
        await gate.release(first)


async def test_rate_limits_are_shared_by_percent_and_soft_budgets_only_tell(engine: AsyncEngine, relay: Relay) -> None:
    who = principal(
        Limit("key", "key_1", "requests", 20, 86_400_000),
        Limit("key", "key_1", "tokens", 100, 86_400_000),
        budgets=(Budget("key", "key_1", 10 * HELD, "total", "soft"),),
    )
    async with sharing(engine, relay) as gate:
        await relay.cut()
        await admit(gate, who, "a")  # 10 of 100 tokens: one request at least.
        with pytest.raises(RateLimited, match="tokens"):
            await admit(gate, who, "b")


async def test_nobody_is_let_through_unless_it_was_chosen(engine: AsyncEngine, relay: Relay) -> None:
    who = principal(budgets=(total(30 * HELD),))
    async with Redis.from_url(relay.url) as through, Gate(engine, through) as gate:
        await gate.settle(await admit(gate, who, "a"), 0, 0)
        await relay.cut()
        with pytest.raises(LimitsAway):
            await admit(gate, who, "b")


async def test_an_outage_is_told(engine: AsyncEngine, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.admission.muster.BEAT_S", 0.01)
    now_ns = [NOW_NS]
    rule = Rule("alert_1", Kind.OUTAGE, 30, Channel.WEBHOOK, "https://example.com/", NOW_NS)
    async with writing(engine) as db:
        await alerts.add_rule(db, rule)

    async def said() -> int:
        async with writing(engine) as db:
            found = await outages(db, now_ns[0])
            return await alerts.evaluate(db, now_ns=now_ns[0], outages=found)

    async def noted(away: bool) -> bool:
        async with reading(engine) as db:
            since = (await db.execute(select(gateways.c.limits_away_since_ns))).scalar()
        return (since is not None) == away

    async with Redis.from_url(relay.url) as through, Gate(engine, through, clock=lambda: now_ns[0]):
        assert await said() == 0
        await relay.cut()
        await until(lambda: noted(True), WITHIN_S)
        assert await said() == 0, "not long enough"
        now_ns[0] += 30 * 10**9
        await until(lambda: seen(engine, now_ns[0]), WITHIN_S)
        assert [await said(), await said()] == [1, 0]
        async with reading(engine) as db:
            assert "away for 30 s" in (await alerts.deliveries(db))[0].message.text
        await relay.open()
        await until(lambda: noted(False), WITHIN_S)
        assert await said() == 0


async def seen(engine: AsyncEngine, at_ns: int) -> bool:
    async with reading(engine) as db:
        return bool((await db.execute(select(gateways.c.seen_at_ns))).scalar() == at_ns)


@pytest.mark.parametrize("threshold", [0, -5])
def test_an_outage_of_no_time_is_no_rule(threshold: int) -> None:
    with pytest.raises(ValueError, match="second"):
        alerts.check(Rule("alert_1", Kind.OUTAGE, threshold, Channel.WEBHOOK, "https://example.com/", NOW_NS))


def test_a_share_of_which_anything_is_granted_or_spent_is_not_given_up() -> None:
    """What the store has not been told of would be forgotten with it."""
    shares, where = Shares(10), scopes(budgets=(total(10_000),))
    assert shares.used(where, 0.0)
    (share,) = shares.wanted(0.0)
    shares.took(share)
    shares.grant("r1", where, 0, 400, 1.0)
    assert shares.give_up(where, 1.0) == []
    for _ in range(2):  # Settled twice it counts once.
        shares.settle("r1", 300)
    assert (share.amount_pusd, share.left_pusd) == (1_000, 700)
    assert shares.give_up(where, 1.0) == []
    with pytest.raises(LimitsAway, match="does not cover"):
        shares.grant("r2", where, 0, 701, 1.0)
    assert shares.start_over(2.0) == [share]
    assert not shares.touched
    shares.grant("free", where, 0, 0, 3.0)
    assert shares.touched


def test_a_share_is_wanted_once_and_not_again_at_once_where_it_did_not_fit() -> None:
    shares, where = Shares(10), scopes(budgets=(total(10_000), Budget("project", "prj_1", 10_000, kind="soft")))
    assert [shares.used(where, 0.0), shares.used(where, 0.0)] == [True, False]
    (share,) = shares.wanted(0.0)  # A soft budget refuses nothing: nothing is held of it in advance.
    shares.missed(share, 0.0)
    assert [shares.used(where, at_s) for at_s in (0.0, PAUSE_S - 0.1, PAUSE_S)] == [False, False, True]
