"""The whole door: estimate, reserve, settle, with SQL behind it and everything that can go wrong between them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import ledger, schema
from billing.db import create_engine, writing
from billing.usage import Meter
from gateway.admission import spending
from gateway.admission.gate import Admission, Gate
from gateway.admission.headers import duration, limit_headers, refusal_headers
from gateway.admission.limits import Spending
from gateway.admission.link import Link
from gateway.admission.principal import Budget, Limit, Principal
from gateway.errors import QuotaExceeded, RateLimited, Unavailable
from tests.gateway.admission.support import (
    DAY_MS,
    NOW_MS,
    NOW_NS,
    ORGANISATION,
    PROJECT,
    principal,
    relay_to,
    sheet,
    total,
    until,
)

ROW: dict[str, Any] = {
    "at_ns": NOW_NS, "organisation_id": ORGANISATION, "project_id": PROJECT, "key_id": "key_1", "end_user": None,
    "alias": "small", "provider": "local", "model": "small", "deployment": "d", "price_id": "p", "quantities": {},
    "input_tokens": 1, "output_tokens": 1, "cost_pusd": 0, "hold_pusd": 0, "estimated": False,
    "outcome": "completed", "dialect": "openai_chat", "tags": [], "attempts": 1,
}  # fmt: skip


@pytest.fixture
async def gate(engine: AsyncEngine, redis: Redis) -> AsyncIterator[Gate]:
    async with Gate(engine, redis) as gate:
        yield gate


async def admit(gate: Gate, who: Principal, name: str = "r1", **more: Any) -> Admission:
    facts: dict[str, Any] = {
        "input_bytes": 0, "images": 0, "max_output_tokens": 100, "candidates": 1, "deployment_max_output": 1_000,
        "context_window": 8_192, "sheets": [sheet()], "end_user": None, "now_ms": NOW_MS,
    }  # fmt: skip
    return await gate.admit(who, name, "small", **{**facts, **more})


async def left(gate: Gate, who: Principal) -> int | None:
    ((_, available),) = await gate.available_pusd(who, NOW_MS)
    return available


# An empty prompt: 64 tokens of overhead at 2 pUSD; 10 pUSD a token of output.
EMPTY = 64 * 2


async def test_the_whole_way(gate: Gate) -> None:
    limits = (Limit("key", "key_1", "requests", 60), Limit("key", "key_1", "tokens", 10_000))
    who = principal(*limits, budgets=(total(5_000),))
    admission = await admit(gate, who)
    assert admission.hold_pusd == EMPTY + 1_000
    assert admission.max_output_tokens is None
    assert admission.estimate == {Meter.INPUT_TOKENS: 64, Meter.REQUESTS: 1, Meter.OUTPUT_TOKENS: 100}
    assert dict(admission.limit_headers("openai_chat", NOW_NS)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "10000",
        "x-ratelimit-remaining-tokens": "9900",
        "x-ratelimit-reset-tokens": "600ms",
    }
    assert await left(gate, who) == 5_000 - EMPTY - 1_000
    assert gate.open_count == 1
    assert await gate.settle(admission, 70, 300) == EMPTY + 700
    assert await gate.settle(admission, 70, 300) == EMPTY + 700
    assert (await left(gate, who), gate.open_count) == (4_700, 0)


async def test_a_release_gives_all_of_it_back(gate: Gate) -> None:
    who = principal(Limit("key", "key_1", "requests", 2, DAY_MS), budgets=(total(5_000),))
    for i in range(4):
        await gate.release(await admit(gate, who, f"r{i}"))
    assert await left(gate, who) == 5_000
    for name in ("used", "used too"):
        await gate.settle(await admit(gate, who, name), 0, 0)
    with pytest.raises(RateLimited):
        await admit(gate, who, "one too many")


@pytest.mark.parametrize(
    ("budget", "stated", "candidates", "granted"),
    [
        (EMPTY + 10_000, None, 1, None),  # the model's longest answer fits
        (EMPTY + 9_999, None, 1, 999),
        (EMPTY + 160, None, 1, 16),
        (EMPTY + 159, None, 1, "refused"),  # 15 tokens are no answer
        (EMPTY + 4_321, None, 2, 216),
        (EMPTY + 1_000, 100, 1, None),
        (EMPTY + 999, 100, 1, "refused"),  # the client's own words are not cut
        (EMPTY + 10_000, 10**9, 1, None),  # no model says more than it can
        (0, None, 1, "refused"),
    ],
)
async def test_what_is_affordable(
    gate: Gate, budget: int, stated: int | None, candidates: int, granted: int | str | None
) -> None:
    who = principal(budgets=(total(budget), total(10**9, "project", PROJECT)))
    work = admit(gate, who, max_output_tokens=stated, candidates=candidates)
    if granted == "refused":
        with pytest.raises(QuotaExceeded) as refused:
            await work
        assert refused.value.remaining_pusd == budget
        return
    admission = await work
    assert admission.max_output_tokens == granted
    assert admission.hold_pusd <= budget
    if isinstance(granted, int):
        assert admission.estimate[Meter.OUTPUT_TOKENS] == granted * candidates


async def test_the_last_cent_is_shared_by_those_who_say_no_maximum(gate: Gate) -> None:
    """Each gets what the others left; nobody overdraws."""
    who = principal(budgets=(total(EMPTY * 3 + 15_000),))
    crowd = [admit(gate, who, f"r{i}", max_output_tokens=None) for i in range(8)]
    got = await asyncio.gather(*crowd, return_exceptions=True)
    admitted = [a for a in got if isinstance(a, Admission)]
    assert all(isinstance(a, Admission | QuotaExceeded) for a in got)
    assert len(admitted) >= 2
    assert sum(a.hold_pusd for a in admitted) <= EMPTY * 3 + 15_000
    assert await left(gate, who) == EMPTY * 3 + 15_000 - sum(a.hold_pusd for a in admitted)


async def test_a_guess_at_the_answer_makes_no_request_larger_than_its_limit(gate: Gate) -> None:
    who = principal(Limit("key", "key_1", "tokens", 200, DAY_MS))
    admission = await admit(gate, who, input_bytes=400, max_output_tokens=None)
    assert admission.tokens == 200
    await gate.settle(admission, 1_100, 0)
    with pytest.raises(RateLimited, match="is reached"):  # What it really used is waited for.
        await admit(gate, who, "r2", input_bytes=40, max_output_tokens=None)
    with pytest.raises(RateLimited, match="alone asks for 300"):
        await admit(gate, principal(Limit("key", "k2", "tokens", 200), key_id="k2"), "r3", max_output_tokens=300)


async def test_a_guess_at_the_prompt_makes_no_request_larger_than_its_limit(gate: Gate) -> None:
    """1,200 bytes may be 150 tokens or 300: with 50 of an answer they may fit a limit of 210, so they go on."""
    who = principal(Limit("key", "key_1", "tokens", 210, DAY_MS))
    admission = await admit(gate, who, input_bytes=1_200, max_output_tokens=50)
    assert admission.tokens == 210
    await gate.release(admission)
    with pytest.raises(RateLimited, match="alone asks for 250"):
        await admit(gate, who, "r2", input_bytes=1_600, max_output_tokens=50)


async def test_a_key_without_limits_needs_no_redis(engine: AsyncEngine) -> None:
    async with Redis.from_url("unix:///nowhere/valkey.sock") as nobody, Gate(engine, nobody) as gate:
        admission = await admit(gate, principal())
        assert admission.limit_headers("openai_chat", NOW_NS) == []
        await gate.settle(admission, 5, 5)
        with pytest.raises(Unavailable):
            await admit(gate, principal(budgets=(total(1),)))


async def test_what_is_used_teaches_the_next_estimate(gate: Gate) -> None:
    who = principal(budgets=(total(10**9),))
    first = await admit(gate, who, "a", input_bytes=8_000)
    for i in range(100):
        admission = await admit(gate, who, f"r{i}", input_bytes=8_000)
        await gate.settle(admission, 1_650, 0, input_tokens=1_600, output_tokens=50)
    assert (await admit(gate, who, "z", input_bytes=8_000)).hold_pusd < 0.6 * first.hold_pusd


async def test_counters_begin_with_what_sql_knows(gate: Gate, engine: AsyncEngine) -> None:
    """Each budget counts its own scope in its own time."""
    day, month = 86_400 * 10**9, 30 * 86_400 * 10**9
    rows = [
        ROW | {"id": "today", "charge_pusd": 1, "at_ns": NOW_NS + 5},
        ROW | {"id": "yesterday", "charge_pusd": 10, "at_ns": NOW_NS - day},
        ROW | {"id": "long ago", "charge_pusd": 100, "at_ns": NOW_NS - 2 * month},
        ROW | {"id": "other key", "charge_pusd": 1_000, "key_id": "key_2"},
        ROW | {"id": "other project", "charge_pusd": 10_000, "key_id": "key_3", "project_id": "prj_2"},
        ROW | {"id": "large", "charge_pusd": 2**61, "key_id": "key_4", "project_id": "prj_4", "organisation_id": "o_4"},
    ]
    async with writing(engine) as db:
        await db.execute(insert(schema.usage_records), rows)
    budgets = (
        Budget("key", "key_1", 10**6, "day"),
        Budget("key", "key_1", 10**6, "month"),
        Budget("key", "key_1", 10**6, "total"),
        Budget("project", PROJECT, 10**6, "total"),
        Budget("organisation", ORGANISATION, 10**6, "total"),
        Budget("organisation", "o_4", 2**62, "total"),
    )
    who = principal(budgets=budgets)
    admission = await admit(gate, who)
    found = [available for _, available in await gate.available_pusd(who, NOW_MS)]
    spent = [1, 11, 111, 1_111, 11_111, 2**61]
    limits = [budget.limit_pusd for budget in budgets]
    assert found == [x - s - admission.hold_pusd for x, s in zip(limits, spent, strict=True)]
    tomorrow = await admit(gate, who, "r2", now_ms=NOW_MS + DAY_MS)
    found = [available for _, available in await gate.available_pusd(who, NOW_MS + DAY_MS)]
    assert found[0] == 10**6 - tomorrow.hold_pusd
    assert found[1] == 10**6 - 11 - admission.hold_pusd - tomorrow.hold_pusd


async def test_a_sum_tells_which_of_the_requests_asked_about_are_in_it(engine: AsyncEngine) -> None:
    """Else a counter would take the same request from the sum and from the gateway that settles it. More of them than
    one statement asks for."""
    names = [f"r{number}" for number in range(1_001)]
    rows = [ROW | {"id": names[at], "charge_pusd": charge, "hold_pusd": 7} for at, charge in ((0, 5), (700, None))]
    async with writing(engine) as db:
        await db.execute(insert(schema.usage_records), rows)
    found = await spending.spending(engine, Budget("key", "key_1", 10**6), 0, names)
    assert found == Spending(5 + 7, frozenset({"r0", "r700"}))
    assert await spending.charges_of(engine, names) == {"r0": 5, "r700": None}


async def test_prepaid_credit(gate: Gate, engine: AsyncEngine) -> None:
    async with writing(engine) as db:
        await ledger.top_up(db, ORGANISATION, 5_000, "first", at_ns=NOW_NS)
        await db.execute(insert(schema.accounts), [{"id": "revenue", "kind": "income", "balance_pusd": 0}])
        spent = ledger.Transfer(
            id="r0:charge", debit=f"customer:{ORGANISATION}", credit="revenue", amount_pusd=700, at_ns=NOW_NS,
            kind="charge", record_id="r0",
        )  # fmt: skip
        await ledger.post(db, [spent])
        assert await spending.credit(db, ORGANISATION) == (5_000, 4_300)
    who = principal(budgets=(Budget("credit", ORGANISATION, 5_000),))
    held = (await admit(gate, who)).hold_pusd
    assert await left(gate, who) == 4_300 - held
    async with writing(engine) as db:
        await ledger.top_up(db, ORGANISATION, 1_000, "second", at_ns=NOW_NS)
    who = principal(budgets=(Budget("credit", ORGANISATION, 6_000),))
    held += (await admit(gate, who, "r2")).hold_pusd
    assert await left(gate, who) == 5_300 - held
    # What is paid out again, or taken back, can not be spent, however long the counter has been there.
    async with writing(engine) as db:
        assert await ledger.pay_out(db, ORGANISATION, 2_000, "back", at_ns=NOW_NS)
        assert await ledger.adjust(db, ORGANISATION, -1_000, "wrong", at_ns=NOW_NS, note="booked twice")
        assert await spending.credit(db, ORGANISATION) == (3_000, 2_300)
    who = principal(budgets=(Budget("credit", ORGANISATION, 3_000),))
    with pytest.raises(QuotaExceeded):
        await admit(gate, who, "r3")
    assert await left(gate, who) == 2_300 - held


async def test_sql_away_while_a_counter_is_missing(gate: Gate, tmp_path: Path) -> None:
    empty = create_engine(f"sqlite:///{tmp_path / 'empty.db'}")
    gate._engine = empty
    with pytest.raises(Unavailable):
        await admit(gate, principal(budgets=(total(10**6),)))
    await empty.dispose()


async def test_a_settlement_waits_for_redis_to_come_back(engine: AsyncEngine, redis_url: str, tmp_path: Path) -> None:
    who = principal(budgets=(total(5_000),))
    async with (
        relay_to(redis_url, tmp_path) as relay,
        Redis.from_url(relay.url) as through,
        Gate(engine, through) as gate,
    ):
        admission = await admit(gate, who)
        await relay.cut()
        with pytest.raises(Unavailable):
            await admit(gate, who, "r2")
        await gate.settle(admission, 10, 42)
        assert gate.pending_count == 2  # The refused one as well: nobody knows whether it got through.
        await relay.open()
        await until(lambda: gate.pending_count == 0)
        assert await left(gate, who) == 5_000 - 42


async def test_leases_are_renewed_and_holds_survive_the_loss_of_redis(engine: AsyncEngine, redis: Redis) -> None:
    who = principal(Limit("key", "key_1", "parallel", 1), budgets=(total(5_000),))
    async with Gate(engine, redis, lease_ms=900) as gate:
        admission = await admit(gate, who)
        began = await leases(redis)
        await until(lambda: later(redis, began + 900))  # Longer than a lease.
        with pytest.raises(RateLimited):
            await admit(gate, who, "second")
        async with writing(engine) as db:
            await db.execute(insert(schema.usage_records), [ROW | {"id": "shipped", "charge_pusd": 111}])
        await redis.flushall()
        with pytest.raises(RateLimited):
            await admit(gate, who, "third")
        assert await left(gate, who) == 5_000 - 111 - admission.hold_pusd
        await gate.settle(admission, 10, 42)
        assert await left(gate, who) == 5_000 - 111 - 42


async def leases(redis: Redis) -> float:
    found = await redis.zrange(f"fb:{{{ORGANISATION}}}:leases", 0, -1, withscores=True)
    return float(found[0][1]) if found else 0.0


async def later(redis: Redis, than: float) -> bool:
    return await leases(redis) > than


async def is_left(gate: Gate, who: Principal, wanted: int) -> bool:
    return await left(gate, who) == wanted


async def test_sql_tells_what_a_killed_gateway_owes(engine: AsyncEngine, redis: Redis) -> None:
    who = principal(budgets=(total(50_000),))
    dead = Gate(engine, redis, lease_ms=-3_600_000)  # Never entered: renews nothing, as if it were gone.
    for name in ("answered", "orphan", "unpriced"):
        await admit(dead, who, name)
    async with writing(engine) as db:
        rows = [ROW | {"id": "answered", "charge_pusd": 30}, ROW | {"id": "unpriced", "charge_pusd": None}]
        await db.execute(insert(schema.usage_records), rows)
    async with Gate(engine, redis) as gate:
        held = EMPTY + 1_000
        assert await left(gate, who) == 50_000 - 3 * held
        assert await gate.correct_expired([ORGANISATION, "org_2"]) == 1
        assert await gate.correct_expired([ORGANISATION]) == 0
        assert await left(gate, who) == 50_000 - 30 - 2 * held
        async with writing(engine) as db:
            await db.execute(update(schema.usage_records).values(charge_pusd=5))
            await db.execute(insert(schema.usage_records), [ROW | {"id": "orphan", "charge_pusd": 1_128}])
        assert await gate.correct_expired([ORGANISATION]) == 2
        assert await left(gate, who) == 50_000 - 30 - 5 - 1_128


async def test_the_dead_are_found_without_being_asked_for(
    engine: AsyncEngine, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.admission.gate.CORRECT_S", 0.0)
    who = principal(budgets=(total(50_000),))
    await admit(Gate(engine, redis, lease_ms=-3_600_000), who, "answered")
    async with writing(engine) as db:
        await db.execute(insert(schema.usage_records), [ROW | {"id": "answered", "charge_pusd": 30}])
    async with Gate(engine, redis) as gate:
        await until(lambda: is_left(gate, who, 50_000 - 30))


async def test_an_absurd_charge_does_not_stop_the_till(gate: Gate) -> None:
    who = principal(budgets=(total(5_000),))
    await gate.settle(await admit(gate, who), 1, 2**70)
    assert gate.pending_count == 0
    assert await left(gate, who) == 5_000 - (2**63 - 1)


class Faulty(Link):
    """Fails the n-th call, before it is sent or after it was done."""

    def __init__(self, redis: Redis, fail_at: int, after: bool) -> None:
        super().__init__(redis)
        self.left = fail_at
        self.after = after

    async def call_booted(self, command: Any, **more: Any) -> Any:
        """All calls come by here."""
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Unavailable("not sent")
        reply = await super().call_booted(command, **more)
        if self.left == 0:
            raise Unavailable("done, and its reply lost")
        return reply


@pytest.mark.parametrize("after", [False, True])
async def test_every_redis_call_may_fail_once(engine: AsyncEngine, redis: Redis, after: bool) -> None:
    """For n = 1, 2, 3, ...: fail the n-th call of one request's life. No money or slot is lost or kept."""
    fail_at, went_through = 0, False
    while not went_through:
        fail_at += 1
        await redis.flushall()
        gate = Gate(engine, redis)
        link = Faulty(redis, fail_at, after)
        gate._link = gate._limiter._link = gate._muster._link = link
        who = principal(Limit("key", "key_1", "parallel", 1), budgets=(total(5_000),), key_id=f"k{fail_at}")
        charged = 0
        try:
            admission = await admit(gate, who)
        except Unavailable:
            went_through = False
        else:
            charged = 77
            await gate.settle(admission, 10, charged)
            went_through = link.left > 0
        link.left = -1  # Fails no more.
        async with gate:
            await gate._send_pending()
            assert gate.pending_count == 0
            follower = await admit(gate, who, "r2")
            assert await left(gate, who) == 5_000 - charged - follower.hold_pusd, fail_at
            await gate.settle(follower, 0, 0)
    assert fail_at > 3


async def test_a_cancelled_admission_leaves_nothing(gate: Gate, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its slot is wanted: whoever waited for the slow retry, a third of a lease, would wait in vain.
    monkeypatch.setattr("gateway.admission.gate.RETRY_S", 3600.0)
    who = principal(Limit("key", "key_1", "parallel", 1), budgets=(total(5_000),))
    await gate.release(await admit(gate, who, "warm"))
    for turns in range(6):
        task = asyncio.create_task(admit(gate, who, f"gone{turns}"))
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.done():
            await gate.release(task.result())
            continue
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: gate.pending_count == 0, within_s=15)
    assert await left(gate, who) == 5_000
    await gate.release(await admit(gate, who, "next"))


@pytest.mark.parametrize(
    ("ms", "text_"),
    [
        (0, "0ms"),
        (12, "12ms"),
        (1_000, "1s"),
        (1_500, "1.5s"),
        (360_000, "6m0s"),
        (3_600_000, "1h0m0s"),
        (86_399_010, "23h59m59.01s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(ms: int, text_: str) -> None:
    assert duration(ms) == text_


async def test_what_is_left_is_told_as_each_dialect_tells_it(gate: Gate) -> None:
    who = principal(Limit("key", "key_1", "requests", 2), Limit("project", "prj_1", "requests", 60))
    admission = await admit(gate, who)
    assert admission.limit_headers("gemini", NOW_NS)[1] == ("x-ratelimit-remaining-requests", "1")
    said = dict(limit_headers(admission.windows, "anthropic_messages", NOW_NS))
    assert set(said) == {f"anthropic-ratelimit-requests-{name}" for name in ("limit", "remaining", "reset")}
    assert said["anthropic-ratelimit-requests-remaining"] == "1"
    assert said["anthropic-ratelimit-requests-reset"].startswith("2026-11-23T00:00:") or NOW_NS % (86_400 * 10**9)
    await admit(gate, who, "r2")
    with pytest.raises(RateLimited) as refused:
        await admit(gate, who, "r3")
    told = dict(refusal_headers(refused.value, "openai_chat", NOW_NS))
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("2", "0")
    assert dict(refusal_headers(refused.value, "anthropic_messages", NOW_NS)).keys() == said.keys()
