"""Two gateways, one Valkey, one ledger: any interleaving of hold, settle, void, death, loss, correction, payment,
refund and expiry. What is charged and what is held never exceeds a budget, nobody is refused what it would cover, and
when all is settled the counters are what SQL says and the books balance."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from billing import accounts, ledger, payments, schema
from billing.db import reading, writing
from billing.journal import Journal
from billing.prices import PriceBook
from billing.usage import Intent, Meter, Outcome, UsageRecord
from billing.worker import Worker
from gateway.admission import spending
from gateway.admission.gate import Admission, Gate
from gateway.admission.owners import Owner
from gateway.admission.principal import CREDIT, Budget, Principal
from gateway.errors import QuotaExceeded
from gateway.tasks import cancel
from tests.gateway.admission.support import NOW_NS, ORGANISATION, PROJECT, principal, sheet, total, until
from tests.gateway.admission.test_gate import EMPTY, admit
from tests.machines import OnSqlite

SHEET = sheet()
BOOK = PriceBook([SHEET], [])
HELD = EMPTY + 1_000  # What `admit` asks for, at worst.
LIMIT = 12 * HELD
LEASE_MS = 300
WHICH = st.integers(0, 1)
AMOUNTS = st.integers(1, 6 * HELD)


class Process:
    """A gateway as far as money goes: its door and its journal."""

    def __init__(self, folder: Path, engine: AsyncEngine, redis: Redis) -> None:
        self.journal = Journal.open(folder, "gw")
        self.worker = Worker(folder, engine, BOOK)
        self.gate = Gate(
            engine, redis, shipped=self.worker.recover, lease_ms=LEASE_MS, owner=Owner.of(self.journal),
            clock=lambda: NOW_NS,
        )  # fmt: skip
        self.open: dict[str, Admission] = {}

    async def kill(self) -> None:
        """As kill -9: the lock of its journal is free, nobody renews, and nobody says goodbye."""
        assert self.gate._keeper is not None
        await cancel(self.gate._keeper, *self.gate._muster._tasks)
        await self.gate._link.aclose()
        await self.journal.close()


class Till(OnSqlite):
    redis_url: str

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.now_ns = NOW_NS
        self.charged: dict[str, int] = {}  # Whatever will be in SQL, once it is shipped.
        self.limbo: dict[str, int] = {}  # Held by the dead, who never wrote that they would send it.
        self.given_back = 0
        self.processes: list[Process] = []

    def next_id(self) -> str:
        self.number += 1
        return f"x{self.number}"

    @initialize()
    def begin(self) -> None:
        async def start() -> None:
            self.redis = Redis.from_url(self.redis_url, protocol=3)
            await self.redis.flushall()
            async with writing(self.engine) as db:
                await accounts.create_organisation(db, ORGANISATION, "Acme", at_ns=NOW_NS, credit_limit_pusd=0)
                await accounts.create_project(db, PROJECT, ORGANISATION, "demo", at_ns=NOW_NS)
                await ledger.top_up(db, ORGANISATION, 5 * HELD, "first", at_ns=NOW_NS)
            self.processes = [await self.born(), await self.born()]

        self.run(start())

    async def born(self) -> Process:
        process = Process(self.folder / "journal", self.engine, self.redis)
        await process.gate.__aenter__()
        return process

    async def who(self) -> Principal:
        """As the key store would read it now."""
        async with reading(self.engine) as db:
            paid_in, _ = await spending.credit(db, ORGANISATION)
        return principal(budgets=(total(LIMIT), Budget(CREDIT, ORGANISATION, paid_in)))

    def taken(self) -> int:
        held = sum(each.hold_pusd for process in self.processes for each in process.open.values())
        return sum(self.charged.values()) + held + sum(self.limbo.values())

    async def admitted(self, which: int) -> Admission | None:
        """None: refused, and rightly so."""
        who = await self.who()
        room = min(budget.limit_pusd for budget in who.budgets) - self.taken()
        try:
            admission = await admit(self.processes[which].gate, who, self.next_id())
        except QuotaExceeded:
            assert room < HELD, "refused what every budget would have covered"
            return None
        assert room >= admission.hold_pusd == HELD, "admitted beyond a budget"
        return admission

    @rule(which=WHICH)
    def hold(self, which: int) -> None:
        async def one() -> None:
            if (admission := await self.admitted(which)) is not None:
                self.processes[which].journal.intent(_intent(admission))
                self.processes[which].open[admission.request_id] = admission

        self.run(one())

    @rule(which=WHICH)
    def hold_at_both_at_once(self, which: int) -> None:
        """Where one more fits, one of them gets it."""

        async def both() -> None:
            who = await self.who()
            room = min(budget.limit_pusd for budget in who.budgets) - self.taken()
            order = (self.processes[which], self.processes[1 - which])
            asked = [admit(process.gate, who, self.next_id()) for process in order]
            results = await asyncio.gather(*asked, return_exceptions=True)
            fitted = 0
            for process, result in zip(order, results, strict=True):
                if isinstance(result, Admission):
                    fitted += 1
                    # Which of them got it is chance, and what a machine goes on from must not be.
                    await process.gate.release(result)
                else:
                    assert isinstance(result, QuotaExceeded), result
            assert fitted == max(0, min(2, room // HELD))

        self.run(both())

    @precondition(lambda self: any(process.open for process in self.processes))
    @rule(pick=st.integers(0, 11), used=st.integers(0, 100), outcome=st.sampled_from(Outcome), dies=st.booleans())
    def settle(self, pick: int, used: int, outcome: Outcome, dies: bool) -> None:
        """Or void: a rejected one has used nothing. dies: after its record was written, before Valkey heard of it."""
        held = [(which, name) for which, process in enumerate(self.processes) for name in process.open]
        which, request_id = held[pick % len(held)]
        process = self.processes[which]
        tokens = 0 if outcome is Outcome.REJECTED else used

        async def end() -> None:
            admission = process.open.pop(request_id)
            await process.journal.settle(_record(admission, tokens, outcome))
            self.charged[request_id] = tokens * SHEET.sale[Meter.OUTPUT_TOKENS]
            if dies:
                await self.dies(which)
            elif outcome is Outcome.REJECTED:
                await process.gate.release(admission)
            else:
                await process.gate.settle(admission, tokens, self.charged[request_id], output_tokens=tokens)

        self.run(end())

    @rule(which=WHICH, between=st.booleans())
    def die(self, which: int, between: bool) -> None:
        """between: after it was admitted, before that was written down: then it was never sent."""

        async def end() -> None:
            if between and (admission := await self.admitted(which)) is not None:
                self.limbo[admission.request_id] = admission.hold_pusd
            await self.dies(which)

        self.run(end())

    async def dies(self, which: int) -> None:
        """What it had sent costs its whole estimate, which is what was held."""
        self.charged |= {name: admission.hold_pusd for name, admission in self.processes[which].open.items()}
        await self.processes[which].kill()
        self.processes[which] = await self.born()

    @rule(which=WHICH)
    def ship(self, which: int) -> None:
        self.run(self.processes[which].worker.ship_once())

    @rule()
    def lose(self) -> None:
        """All that Valkey knew. Of what nobody wrote down nobody knows."""
        self.limbo.clear()
        self.run(self.redis.flushall())

    @rule(which=WHICH)
    def correct(self, which: int) -> None:
        self.run(self.corrected(which))

    async def corrected(self, which: int) -> None:
        """The chore of every gateway, once the dead's leases have run out: what they held is what it cost."""
        gate = self.processes[which].gate
        living = {name for process in self.processes for name in process.open}

        async def done() -> bool:
            await self.processes[which].worker.recover()
            await gate.correct_expired([ORGANISATION])
            return not {name.decode() for name in await self.redis.zrange(LEASES, 0, -1)} - living

        await until(done)
        self.limbo.clear()

    @rule(kind=st.sampled_from(("top_up", "grant", "refund")), amount=AMOUNTS)
    def pay(self, kind: str, amount: int) -> None:
        async def post() -> None:
            async with writing(self.engine) as db:
                await getattr(ledger, kind)(db, ORGANISATION, amount, self.next_id(), at_ns=self.now_ns, note="why")

        self.run(post())
        self.given_back += amount if kind == "refund" else 0

    @rule(amount=AMOUNTS, expires=st.booleans())
    def grant_for_a_day(self, amount: int, expires: bool) -> None:
        """expires: all that were given so far, after a day. What open requests hold of it, it does not wait for."""

        async def post() -> None:
            async with writing(self.engine) as db:
                until_ns = self.now_ns + 86_400 * 10**9
                await payments.grant_until(db, ORGANISATION, amount, self.next_id(), until_ns, at_ns=self.now_ns)
                if expires:
                    self.now_ns = until_ns
                    await payments.expire_grants(db, at_ns=self.now_ns)

        self.run(post())

    @invariant()
    def never_beyond(self) -> None:
        assert self.taken() <= LIMIT

    def teardown(self) -> None:
        if self.processes:
            self.run(self.audit())
        super().teardown()

    async def audit(self) -> None:
        """Whatever order it came in."""
        for process in self.processes:
            for name, admission in list(process.open.items()):
                await process.journal.settle(_record(admission, 7, Outcome.COMPLETED))
                self.charged[name] = 7 * SHEET.sale[Meter.OUTPUT_TOKENS]
                await process.gate.settle(admission, 7, self.charged[name], output_tokens=7)
                del process.open[name]
        await self.corrected(0)
        if (last := await self.admitted(1)) is not None:  # Counters hear of payments with the next request.
            await self.processes[1].gate.release(last)
        who = await self.who()
        for budget, left in await self.processes[1].gate.available_pusd(who, NOW_NS // 10**6):
            assert left in (None, budget.limit_pusd - sum(self.charged.values())), budget
        async with reading(self.engine) as db:
            assert (await ledger.trial_balance(db)).sound
            rows = schema.usage_records.c
            sold = await db.execute(select(func.count(), func.coalesce(func.sum(rows.charge_pusd), 0)))
            assert tuple(sold.one()) == (len(self.charged), sum(self.charged.values()))
            balances = {each.account: each.normal_pusd for each in await ledger.balances(db)}
            assert balances.get(accounts.REVENUE, 0) == sum(self.charged.values()) - self.given_back
        for process in self.processes:
            await process.gate.__aexit__(None, None, None)
            await process.journal.close()
        await self.redis.aclose()


LEASES = f"fb:{{{ORGANISATION}}}:leases"


def _said(admission: Admission) -> dict[str, Any]:
    return {
        "id": admission.request_id, "at_ns": NOW_NS, "organisation_id": ORGANISATION, "project_id": PROJECT,
        "key_id": "key_1", "end_user": None, "alias": "small", "provider": "local", "model": "small",
        "deployment": "local/small", "price_id": SHEET.id, "hold_pusd": admission.hold_pusd,
    }  # fmt: skip


def _intent(admission: Admission) -> Intent:
    return Intent(**_said(admission), estimate=dict(admission.estimate))


def _record(admission: Admission, tokens: int, outcome: Outcome) -> UsageRecord:
    quantities = {Meter.OUTPUT_TOKENS: tokens} if tokens else {}
    return UsageRecord(**_said(admission), quantities=quantities, estimated=False, outcome=outcome)


def test_the_till_of_two_gateways(sqlite_template: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Corrections are a rule here: those that come by the clock would be one more interleaving than the model knows.
    monkeypatch.setattr("gateway.admission.gate.CORRECT_S", 3600.0)
    Till.template, Till.redis_url = sqlite_template, redis_url
    many = settings(
        max_examples=12,
        phases=(Phase.generate,),  # What failed is shown as it was: making it smaller takes minutes of servers.
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    run_state_machine_as_test(Till, settings=many)  # type: ignore[no-untyped-call]
