"""Any order of reserving, settling, renewing, losing and correcting, against a model in plain Python.

Two gateways share the counters. SQL learns of a charge at once, before its settlement, or some time later; a counter
that is made anew has everything once, whatever SQL has.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from gateway.admission.limits import Limiter, Scopes, Spending
from gateway.admission.link import Link
from gateway.admission.principal import Budget, Limit
from gateway.errors import GatewayError, QuotaExceeded, RateLimited
from tests.gateway.admission.support import DAY_MS, evict_budgets, scopes

REQUESTS, TOKENS, SLOTS = 25, 10_000, 4
# So slow that no whole unit comes back while the test runs.
LIMITS = (
    Limit("key", "key_1", "requests", REQUESTS, 1_000 * DAY_MS),
    Limit("project", "prj_1", "tokens", TOKENS, 1_000 * DAY_MS),
    Limit("key", "key_1", "parallel", SLOTS),
)
MONEY = (2**55 + 1, 2**54 + 12_345)
BUDGETS = (Budget("key", "key_1", MONEY[0]), Budget("organisation", "org_1", MONEY[1], "month"))
WHERE = scopes(*LIMITS, budgets=BUDGETS)

amounts = st.one_of(st.integers(0, 2_000), st.integers(0, 2**54), st.just(2**53 + 1))


class Machine(RuleBasedStateMachine):
    url: str
    loop: asyncio.AbstractEventLoop

    @initialize()
    def begin(self) -> None:
        self.count = 0
        self.open: dict[str, tuple[int, int]] = {}  # id -> tokens, hold
        self.settled: list[str] = []
        self.expired: set[str] = set()  # whose slot is free although they are open
        self.lost: set[str] = set()  # whom Redis has forgotten
        self.requests = self.tokens = 0
        self.charged = 0
        self.client = Redis.from_url(self.url)
        self.run(self.client.flushall())
        self.link = Link(self.client)
        self.limits = Limiter(self.link, self._spent, "one", self._assemble)
        self.shipped: dict[str, int] = {}  # What SQL has charged.
        self.unshipped: dict[str, int] = {}
        self.early: dict[str, int] = {}  # Of that, what Redis has not heard of yet.
        self.counted: set[str] = set()  # Of those, whom the counters were made with.
        self.made = False

    async def _spent(self, budget: Budget, start_ns: int, asked: Sequence[str]) -> Spending:
        self.made, self.counted = True, set(self.early)
        return Spending(sum(self.shipped.values()), frozenset(self.shipped) & frozenset(asked))

    async def _assemble(self, where: Scopes) -> Sequence[str]:
        """As `Gate` and `Muster` do it: renew all that is open, ship what was settled, be there."""
        token, there = await self.limits.called(where)
        if not there:
            for name, (tokens, hold) in self.open.items():
                await self.limits.renew(name, WHERE, tokens=tokens, hold_pusd=hold)
            self.lost.clear()
            self.expired.clear()
            self.shipped |= self.unshipped
            self.unshipped.clear()
            assert await self.limits.present(where, token)
        return ["one"]

    def run(self, work: object) -> object:
        return self.loop.run_until_complete(work)  # type: ignore[arg-type]

    def held(self) -> int:
        return sum(hold for _, hold in self.open.values())

    def room(self) -> list[int]:
        """What the counters say, or would if they were made now."""
        early = sum(self.early[name] for name in (self.counted if self.made else self.early))
        return [limit - self.charged - self.held() - early for limit in MONEY]

    def slots(self) -> int:
        return len([name for name in self.open if name not in self.expired | self.lost])

    @rule(
        tokens=st.integers(0, TOKENS + 1),
        hold=amounts,
        near=st.sampled_from((None, None, -1, 0, 1)),
        expires=st.booleans(),
    )
    def reserve(self, tokens: int, hold: int, near: int | None, expires: bool) -> None:
        self.count += 1
        name = f"r{self.count}"
        if not self.made:
            self.run(self.limits.load_budget(WHERE, 0))
            self.run(self.limits.load_budget(WHERE, 1))
        room = self.room()
        if near is not None:  # The border itself, where a double would round.
            hold = max(0, min(room) + near)
        refusal: str | None = None
        if hold and min(room) < hold:
            refusal = "money"
        elif self.requests + 1 > REQUESTS:
            refusal = "requests"
        elif self.tokens + tokens > TOKENS and tokens:
            refusal = "tokens"
        elif self.slots() >= SLOTS:
            refusal = "parallel"
        lease_ms = -1 if expires else 3_600_000
        refused: GatewayError | None = None
        windows: Any = ()
        try:
            windows = self.run(self.limits.reserve(name, WHERE, tokens=tokens, hold_pusd=hold, lease_ms=lease_ms))
        except (QuotaExceeded, RateLimited) as error:
            refused = error
        if isinstance(refused, QuotaExceeded):
            assert refusal == "money"
            assert refused.remaining_pusd == min(room)
        elif isinstance(refused, RateLimited):
            # Two buckets may both be full; then the one that takes longer to drain is named.
            assert refused.unit == refusal or {refused.unit, refusal} == {"requests", "tokens"}
        else:
            assert refusal is None
            self.open[name] = (tokens, hold)
            self.requests += 1
            self.tokens += tokens
            if expires:
                self.expired.add(name)
            assert [w.remaining for w in windows.windows] == [
                max(0, REQUESTS - self.requests), max(0, TOKENS - self.tokens),
            ]  # fmt: skip

    @precondition(lambda self: self.open)
    @rule(data=st.data(), tokens=st.integers(0, TOKENS), charge=amounts, sent=st.integers(1, 3))
    def settle(self, data: st.DataObject, tokens: int, charge: int, sent: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        charge = self._ship_or_owe(name, charge)
        for i in range(sent):
            did = self.run(self.limits.settle(name, WHERE, tokens=tokens, charge_pusd=charge))
            assert did == (i == 0)
        reserved, _ = self.open.pop(name)
        if name in self.lost:
            self.requests, self.tokens = self.requests + 1, self.tokens + tokens
        else:
            self.tokens = max(0, self.tokens + tokens - reserved)
        self.charged += charge
        self._close(name)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(set(self.open) - set(self.early)) or [""]))
        if not name:  # Who has a usage row is not released.
            return
        self.run(self.limits.settle(name, WHERE, tokens=0, charge_pusd=0, requests=0))
        reserved, _ = self.open.pop(name)
        if name not in self.lost:
            self.requests, self.tokens = max(0, self.requests - 1), max(0, self.tokens - reserved)
        self._close(name)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        tokens, hold = self.open[name]
        assert self.run(self.limits.renew(name, WHERE, tokens=tokens, hold_pusd=hold, lease_ms=3_600_000))
        self.expired.discard(name)
        # The rate buckets it took from may be gone; settling puts them right as if it had taken from the new ones.
        self.lost.discard(name)

    @precondition(lambda self: self.open.keys() - self.early.keys())
    @rule(data=st.data(), charge=amounts)
    def ship_before_redis_hears_of_it(self, data: st.DataObject, charge: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.open.keys() - self.early.keys())))
        self.early[name] = self.shipped[name] = charge

    @rule()
    def ship(self) -> None:
        self.shipped |= self.unshipped
        self.unshipped.clear()

    @precondition(lambda self: self.expired)
    @rule(data=st.data(), charge=amounts)
    def correct(self, data: st.DataObject, charge: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.expired)))
        charge = self.shipped.setdefault(name, charge)
        did = self.run(self.limits.correct("org_1", {name: charge}))
        assert did == (name not in self.lost)
        if did:
            self.open.pop(name)
            self.charged += charge
            self._close(name)
        else:
            self.early[name] = charge

    @precondition(lambda self: self.settled)
    @rule(data=st.data())
    def settle_late(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.settled))
        assert not self.run(self.limits.settle(name, WHERE, tokens=9, charge_pusd=9))
        assert not self.run(self.limits.renew(name, WHERE, tokens=9, hold_pusd=9))

    @rule()
    def forget_everything(self) -> None:
        self.run(self.client.flushall())
        self.requests = self.tokens = 0
        self.lost = set(self.open)
        self.made = False
        self.settled.clear()

    @rule()
    def evict_budgets(self) -> None:
        self.run(evict_budgets(self.client, WHERE))
        self.made = False

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "limits"):
            return
        found = self.run(self.limits.available_pusd(WHERE))
        assert found == (tuple(self.room()) if self.made else (None, None)), (found, self.charged, self.held())

    def _ship_or_owe(self, name: str, charge: int) -> int:
        if name in self.early:
            return self.early[name]
        self.unshipped[name] = charge
        return charge

    def _close(self, name: str) -> None:
        self.expired.discard(name)
        self.lost.discard(name)
        self.early.pop(name, None)
        self.counted.discard(name)
        self.settled.append(name)

    def teardown(self) -> None:
        if hasattr(self, "link"):
            self.run(self.link.aclose())
            self.run(self.client.aclose())


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_any_interleaving(redis_url: str, loop: asyncio.AbstractEventLoop) -> None:
    Machine.url, Machine.loop = redis_url, loop
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
