"""Several gateways, and a Redis that loses what it knew: who holds what is asked before anybody is let in."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import schema
from billing.db import reading, writing
from billing.journal import Journal, remove_run, segments
from gateway.admission import Gate
from gateway.admission.key_admin import KeyAdmin
from gateway.admission.limits import Spending
from gateway.admission.muster import DEAD_S, recount_late
from gateway.admission.owners import Owner
from gateway.errors import QuotaExceeded, Unavailable
from gateway.schema import gateways
from tests import services
from tests.gateway.admission.support import NOW_NS, ORGANISATION, principal, total, until
from tests.gateway.admission.test_gate import EMPTY, ROW, admit, is_left, left

HELD = EMPTY + 1_000


async def test_what_other_gateways_hold_is_known_before_anybody_is_admitted(engine: AsyncEngine, redis: Redis) -> None:
    """A budget for three requests, two of them running elsewhere when Redis loses everything: one fits, never two."""
    who = principal(budgets=(total(3 * HELD),))
    async with Gate(engine, redis) as one, Gate(engine, redis) as other, Gate(engine, redis) as third:
        running = [await admit(one, who, "a"), await admit(other, who, "b")]
        for round_ in range(3):
            await redis.flushall()
            names = [f"{round_}-{n}" for n in range(9)]
            gates = (one, other, third) * 3
            asked = [admit(gate, who, name) for gate, name in zip(gates, names, strict=True)]
            results = await asyncio.gather(*asked, return_exceptions=True)
            (fitted,) = [r for r in results if not isinstance(r, BaseException)]
            assert sum(isinstance(r, QuotaExceeded) for r in results) == 8
            await gates[names.index(fitted.request_id)].release(fitted)
        await other.settle(running[1], 5, 77)
        async with writing(engine) as db:
            await db.execute(insert(schema.usage_records), [ROW | {"id": "b", "charge_pusd": 77}])
        await redis.flushall()
        last = await admit(third, who, "last")
        assert await left(third, who) == 3 * HELD - 77 - running[0].hold_pusd - last.hold_pusd


async def test_a_gateway_that_does_not_answer_is_waited_for_until_it_is_taken_for_dead(
    engine: AsyncEngine, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.admission.muster.WAIT_S", 0.2)
    now_ns = [NOW_NS]
    who = principal(budgets=(total(10**6),))
    async with writing(engine) as db:
        await db.execute(insert(gateways).values(id="elsewhere.1", seen_at_ns=NOW_NS))
    async with Gate(engine, redis, clock=lambda: now_ns[0]) as gate:
        with pytest.raises(Unavailable, match="added up again"):
            await admit(gate, who)
        now_ns[0] += int((DEAD_S + 1) * 10**9)
        await admit(gate, who, "r2")
        # While SQL was away nobody could tell it that he lives, so silence means nothing.
        await redis.flushall()
        async with writing(engine) as db:
            await db.execute(update(gateways).where(gateways.c.id == "elsewhere.1").values(seen_at_ns=NOW_NS))
        gate._muster._failed_s = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable, match="has been away"):
            await admit(gate, who, "r3")
    async with reading(engine) as db:
        assert list((await db.execute(select(gateways.c.id))).scalars()) == ["elsewhere.1"], "we took our leave"


async def test_a_price_that_comes_late_reaches_the_counters(engine: AsyncEngine, redis: Redis) -> None:
    """Settled at what was held for it, then charged less in SQL alone: its budget gets the rest back, and what runs
    stays held."""
    who = principal(budgets=(total(5 * HELD),))
    async with Gate(engine, redis) as one, Gate(engine, redis) as other:
        late = await admit(one, who, "late")
        await one.settle(late, 5, late.hold_pusd)
        async with writing(engine) as db:
            row = ROW | {"id": "late", "charge_pusd": None, "hold_pusd": late.hold_pusd}
            await db.execute(insert(schema.usage_records), [row])
        running = await admit(one, who, "running")
        assert await left(other, who) == 5 * HELD - late.hold_pusd - running.hold_pusd
        await charge_late(engine, ORGANISATION, "org_of_nobody")
        await recount_late(engine, one._link)
        async with reading(engine) as db:
            assert not (await db.execute(select(schema.late_charges))).all()
        last = await admit(other, who, "last")
        assert await left(one, who) == 5 * HELD - 7 - running.hold_pusd - last.hold_pusd
        await one.settle(running, 5, 50)
        assert await left(one, who) == 5 * HELD - 7 - 50 - last.hold_pusd


async def test_a_price_that_came_while_redis_was_away_reaches_the_counters_when_it_is_back(
    engine: AsyncEngine, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.admission.muster.LATE_S", 0.05)
    who = principal(budgets=(total(5 * HELD),))
    async with writing(engine) as db:
        await db.execute(insert(schema.usage_records), [ROW | {"id": "a", "charge_pusd": None, "hold_pusd": 500}])
    async with Gate(engine, redis) as gate:
        await gate.release(await admit(gate, who))
        assert await left(gate, who) == 5 * HELD - 500
        await charge_late(engine, ORGANISATION)
        async with Redis(host="127.0.0.1", port=services.free_ports(1)[0]) as gone:
            await KeyAdmin(engine, gone, b"pepper").recount_late()

        async def told() -> bool:
            async with reading(engine) as db:
                return not (await db.execute(select(schema.late_charges))).all()

        await until(told)
        await gate.release(await admit(gate, who, "next"))
        assert await left(gate, who) == 5 * HELD - 7


async def charge_late(engine: AsyncEngine, *organisations: str) -> None:
    """As `post_unpriced` does, as far as counters look at it."""
    async with writing(engine) as db:
        await db.execute(update(schema.usage_records).values(charge_pusd=7))
        await db.execute(insert(schema.late_charges), [{"organisation_id": each} for each in organisations])


async def test_a_counter_made_of_what_was_before_a_late_price_is_refused(engine: AsyncEngine, redis: Redis) -> None:
    who = principal(budgets=(total(5 * HELD),))
    async with Gate(engine, redis) as gate:
        async with writing(engine) as db:
            await db.execute(insert(schema.usage_records), [ROW | {"id": "a", "charge_pusd": None, "hold_pusd": 500}])
        spent, asked = gate._limiter._spent, []

        async def between(*of: Any) -> Spending:
            found = await spent(*of)
            if not asked:  # The price comes when SQL has said what it knew, and the counter is not made yet.
                await charge_late(engine, ORGANISATION)
                await recount_late(engine, gate._link)
            asked.append(found.pusd)
            return found

        gate._limiter._spent = between
        admission = await admit(gate, who)
        assert asked == [500, 7]
        assert await left(gate, who) == 5 * HELD - 7 - admission.hold_pusd


async def test_what_was_settled_and_not_shipped_is_shipped_first(engine: AsyncEngine, redis: Redis) -> None:
    """Its hold is gone with Redis and its charge not in SQL yet: no sum would have it."""
    who = principal(budgets=(total(3 * HELD),))
    rows: list[dict[str, Any]] = []

    async def ship() -> None:
        async with writing(engine) as db:
            if rows:
                await db.execute(insert(schema.usage_records), [rows.pop()])

    async with Gate(engine, redis, shipped=ship) as busy, Gate(engine, redis) as loader:
        await busy.settle(await admit(busy, who, "a"), 5, 500)
        rows.append(ROW | {"id": "a", "charge_pusd": 500})
        await redis.flushall()
        admission = await admit(loader, who, "b")
        assert await left(loader, who) == 3 * HELD - 500 - admission.hold_pusd


async def journalled(folder: Path, owner: str) -> tuple[Journal, Owner]:
    journal = Journal.open(folder, owner)
    return journal, Owner.of(journal)


async def bury(journal: Journal) -> None:
    """As the worker does once it has read everything."""
    for segment in segments(journal.run):
        segment.unlink()
    remove_run(journal.run)


async def test_a_reservation_that_no_journal_knows_is_given_back(
    engine: AsyncEngine, redis: Redis, tmp_path: Path
) -> None:
    """Killed between the reservation and the intent: nothing was sent, nothing is owed, nothing may stay held."""
    who = principal(budgets=(total(50_000),))
    theirs, owner = await journalled(tmp_path, "theirs")
    ours, me = await journalled(tmp_path, "ours")
    stranger = Owner("00000000", "111111111111")
    dead = Gate(engine, redis, lease_ms=-1, owner=owner)
    await admit(dead, who, "unsent")
    await admit(dead, who, "sent")
    await admit(Gate(engine, redis, lease_ms=-1, owner=stranger), who, "elsewhere")
    await admit(Gate(engine, redis, lease_ms=-7 * 86_400_000, owner=stranger), who, "long gone")
    async with Gate(engine, redis, owner=me) as gate:
        assert await gate.correct_expired([ORGANISATION]) == 1, "its host does not come back"
        assert await left(gate, who) == 50_000 - 3 * HELD
        await theirs.close()
        assert await gate.correct_expired([ORGANISATION]) == 0, "dead, and its journal not read yet"
        async with writing(engine) as db:
            await db.execute(insert(schema.usage_records), [ROW | {"id": "sent", "charge_pusd": 300}])
        await bury(theirs)
        assert await gate.correct_expired([ORGANISATION]) == 2
        assert await left(gate, who) == 50_000 - 300 - HELD
        assert await gate.correct_expired([ORGANISATION]) == 0
    await ours.close()


async def test_ones_own_reservation_without_a_request_is_given_back(
    engine: AsyncEngine, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than could be remembered while Redis was away: the rest is found by its lease, and what its journal knows
    of it is asked of SQL first."""
    monkeypatch.setattr("gateway.admission.gate.CORRECT_S", 0.0)
    who = principal(budgets=(total(50_000),))
    journalled = [ROW | {"id": "charged", "charge_pusd": 300}]

    async def ship() -> None:
        if journalled and "charged" in admitted:
            async with writing(engine) as db:
                await db.execute(insert(schema.usage_records), journalled)
            journalled.clear()

    admitted: set[str] = set()
    async with Gate(engine, redis, lease_ms=30, shipped=ship) as gate:
        forgotten = [await admit(gate, who, name) for name in ("forgotten", "charged")]
        kept = await admit(gate, who, "kept")
        admitted.add("charged")
        for each in forgotten:
            gate._open.pop(each.request_id)
        await until(lambda: is_left(gate, who, 50_000 - kept.hold_pusd - 300))


async def test_whose_is_a_journal(tmp_path: Path) -> None:
    mine, me = await journalled(tmp_path, "a-host-1")
    other, him = await journalled(tmp_path, "a-host-2")
    assert me.folder == him.folder
    assert me.name != him.name
    assert me.is_dead(him.name) is False
    assert not me.is_read_out(him.name)
    await other.close()
    assert me.is_dead(him.name) is True
    assert not me.is_read_out(him.name)
    await bury(other)
    assert me.is_dead(him.name) is True
    assert me.is_read_out(him.name)
    assert me.is_dead(Owner.of(None).name) is None
    assert not me.is_read_out(Owner.of(None).name)
    await mine.close()
    (tmp_path / "folder.id").write_text("")
    with pytest.raises(OSError, match="hexadecimal"):
        Owner.of(mine)


async def test_a_backlog_of_usage_refuses_instead_of_keeping_clients_waiting(
    engine: AsyncEngine, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.admission.gate.SHIP_S", 0.05)
    forever = asyncio.Event()
    async with Gate(engine, redis, shipped=forever.wait) as gate:
        with pytest.raises(Unavailable, match="on its way"):
            await admit(gate, principal(budgets=(total(10**6),)))
        forever.set()
        await admit(gate, principal(budgets=(total(10**6),)), "r2")
