"""Any interleaving of holds, settlements, deaths, shipping, payments, refunds, corrections and expiries leaves sound
books: a model in plain Python says what each customer has, and every kind of posting may be said twice."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from billing import accounts, alerts, days, ledger, payments, schema, statements, sums
from billing.accounts import Budget, Scope, Window
from billing.alerts import Channel, Kind, Rule
from billing.db import reading, writing
from billing.errors import InsufficientFunds
from billing.journal import Journal
from billing.sums import NS_PER_DAY, Span
from billing.usage import Meter, Outcome
from billing.worker import Worker
from tests.billing.make import AT_NS, BOOK, COST, SALE, intent, record
from tests.machines import OnSqlite

ORGANISATIONS = ("org_1", "org_2")
ESTIMATE = 100 * SALE[Meter.INPUT_TOKENS] + 1000 * SALE[Meter.OUTPUT_TOKENS]
# Small enough to be short at times.
AMOUNTS = st.integers(1, 40 * ESTIMATE)
WHO = st.sampled_from(ORGANISATIONS)


class Till(OnSqlite):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.now_ns = AT_NS
        self.open: dict[str, str] = {}  # Request -> organisation, of the journal that is alive.
        self.unshipped: dict[str, tuple[str, int, int]] = {}  # Request -> organisation, sale, cost.
        self.shipped: dict[str, tuple[str, int, int]] = {}
        self.paid = dict.fromkeys(ORGANISATIONS, 0)  # All that is not usage.
        self.given_back = 0

    def teardown(self) -> None:
        self.run(self.journal.close())
        super().teardown()

    def left(self, who: str) -> int:
        return self.paid[who] - sum(sale for owner, sale, _ in self.shipped.values() if owner == who)

    def next_id(self) -> str:
        self.number += 1
        self.now_ns += 10**9
        return f"x{self.number}"

    @initialize()
    def begin(self) -> None:
        async def declare() -> None:
            async with writing(self.engine) as db:
                for who in ORGANISATIONS:
                    await accounts.create_organisation(db, who, who, at_ns=0, credit_limit_pusd=0)
                await accounts.set_budget(db, Budget(Scope.KEY, "key_1", Window.TOTAL, 10 * ESTIMATE), at_ns=0)
                await alerts.add_rule(db, Rule("r", Kind.BUDGET, 5000, Channel.WEBHOOK, "https://example.com", 1))

        self.run(declare())
        self.open_journal()

    def open_journal(self) -> None:
        async def begin() -> Journal:
            return Journal.open(self.folder / "journal", "gw")

        self.journal = self.run(begin())

    @rule(who=WHO)
    def hold(self, who: str) -> None:
        request = self.next_id()
        self.journal.intent(intent(request, organisation_id=who, at_ns=self.now_ns, hold_pusd=ESTIMATE))
        self.open[request] = who

    @precondition(lambda self: self.open)
    @rule(data=st.data(), used=st.integers(0, 2000), outcome=st.sampled_from(Outcome), twice=st.booleans())
    def settle(self, data: st.DataObject, used: int, outcome: Outcome, twice: bool) -> None:
        """Or void: a rejected one has used nothing. More than was held is an overrun."""
        request = data.draw(st.sampled_from(sorted(self.open)))
        who, tokens = self.open.pop(request), 0 if outcome is Outcome.REJECTED else used
        quantities = {Meter.OUTPUT_TOKENS: tokens} if tokens else {}
        said = record(request, organisation_id=who, at_ns=self.now_ns, quantities=quantities, outcome=outcome,
                      hold_pusd=ESTIMATE)  # fmt: skip

        async def write() -> None:
            for _ in range(1 + twice):
                await self.journal.settle(said)

        self.run(write())
        self.unshipped[request] = (who, tokens * SALE[Meter.OUTPUT_TOKENS], tokens * COST[Meter.OUTPUT_TOKENS])

    @rule(workers=st.integers(1, 3))
    def ship(self, workers: int) -> None:
        async def several() -> None:
            shippers = [Worker(self.folder / "journal", self.engine, BOOK) for _ in range(workers)]
            await asyncio.gather(*(shipper.ship_once() for shipper in shippers))

        self.run(several())
        self.shipped |= self.unshipped
        self.unshipped = {}

    @rule()
    def die(self) -> None:
        """The gateway goes, as by kill -9: what it held costs its estimate once somebody ships what it left."""
        cost = 100 * COST[Meter.INPUT_TOKENS] + 1000 * COST[Meter.OUTPUT_TOKENS]
        self.unshipped |= {request: (who, ESTIMATE, cost) for request, who in self.open.items()}
        self.open = {}
        self.run(self.journal.close())
        self.open_journal()

    @rule(who=WHO, amount=AMOUNTS, kind=st.sampled_from(("top_up", "grant", "refund", "adjust")), twice=st.booleans(),
          against=st.booleans())  # fmt: skip
    def move(self, who: str, amount: int, kind: str, twice: bool, against: bool) -> None:
        name = self.next_id()
        signed = -amount if kind == "adjust" and against else amount

        async def post() -> list[bool]:
            news = []
            for _ in range(1 + twice):
                async with writing(self.engine) as db:
                    post_one = getattr(ledger, kind)
                    news.append(await post_one(db, who, signed, name, at_ns=self.now_ns, note="why"))
            return news

        assert self.run(post()) == [True, False][: 1 + twice]
        self.paid[who] += signed
        self.given_back += amount if kind == "refund" else 0

    @rule(who=WHO, amount=AMOUNTS)
    def pay_out(self, who: str, amount: int) -> None:
        name = self.next_id()

        async def post() -> bool:
            async with writing(self.engine) as db:
                return await ledger.pay_out(db, who, amount, name, at_ns=self.now_ns)

        if amount > self.left(who):
            with pytest.raises(InsufficientFunds):
                self.run(post())
        else:
            assert self.run(post())
            self.paid[who] -= amount

    @rule(who=WHO, amount=AMOUNTS, days_more=st.integers(1, 3))
    def grant_until(self, who: str, amount: int, days_more: int) -> None:
        name, until_ns = self.next_id(), self.now_ns + days_more * NS_PER_DAY

        async def post() -> bool:
            async with writing(self.engine) as db:
                return await payments.grant_until(db, who, amount, name, until_ns, at_ns=self.now_ns)

        assert self.run(post())
        self.paid[who] += amount

    @rule(days_more=st.integers(0, 2))
    def chores(self, days_more: int) -> None:
        """Time passes; grants end, days are sealed, alerts are made."""
        self.now_ns += days_more * NS_PER_DAY

        async def do() -> int:
            async with writing(self.engine) as db:
                taken = await payments.expire_grants(db, at_ns=self.now_ns)
                await alerts.evaluate(db, now_ns=self.now_ns)
            await days.seal_due(self.engine, now_ns=self.now_ns)
            return taken

        before = {who: max(0, self.left(who)) for who in ORGANISATIONS}
        taken = self.run(do())
        assert taken <= sum(before.values())

        async def expired() -> dict[str, int]:
            moved = dict.fromkeys(ORGANISATIONS, 0)
            async with reading(self.engine) as db:
                table = schema.transfers
                for row in await db.execute(select(table).where(table.c.kind == "expiry")):
                    moved[row.debit.removeprefix("customer:")] += row.amount_pusd
            return moved

        now = self.run(expired())
        for who in ORGANISATIONS:
            self.paid[who] -= now[who] - getattr(self, "expired", {}).get(who, 0)
        self.expired = now

    @invariant()
    def books(self) -> None:
        async def look() -> None:
            async with reading(self.engine) as db:
                assert (await ledger.trial_balance(db)).sound
                for who in ORGANISATIONS:
                    assert await ledger.credit_left(db, who) == self.left(who)
                balances = {each.account: each.normal_pusd for each in await ledger.balances(db)}
                sale = sum(sale for _, sale, _ in self.shipped.values())
                cost = sum(cost for _, _, cost in self.shipped.values())
                assert balances.get(accounts.REVENUE, 0) == sale - self.given_back
                assert balances.get(accounts.INFERENCE_COST, 0) == cost
                rows = set((await db.execute(select(schema.usage_records.c.id))).scalars())
                assert rows == self.shipped.keys()
                total = await sums.totals(db, Span(), {})
                assert (total.requests, total.charge_pusd, total.cost_pusd) == (len(self.shipped), sale, cost)
                assert await statements.spent(db, Scope.KEY, "key_1") == sale

        if hasattr(self, "journal"):
            self.run(look())


def test_the_till(sqlite_template: Path) -> None:
    Till.template = sqlite_template
    many = settings(
        max_examples=12,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    run_state_machine_as_test(Till, settings=many)  # type: ignore[no-untyped-call]
