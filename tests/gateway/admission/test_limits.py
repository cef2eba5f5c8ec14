"""Reservations against a real Valkey: all or nothing, exact at any size, right under any crowd."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from redis.asyncio import Redis

from billing.money import MAX_AMOUNT_PUSD
from gateway.admission.limits import Limiter, Scopes, Spending
from gateway.admission.link import Link
from gateway.admission.principal import Budget, Limit
from gateway.errors import QuotaExceeded, RateLimited, Unavailable
from tests.gateway.admission.support import DAY_MS, books, evict_budgets, limiter, relay_to, scopes, total, until


def key_limit(unit: str, amount: int, window_ms: int = DAY_MS) -> Limit:
    return Limit("key", "key_1", unit, amount, window_ms)  # type: ignore[arg-type]


async def available(limits: Limiter, where: Scopes) -> list[int | None]:
    return list(await limits.available_pusd(where))


async def test_takes_and_gives_back(redis: Redis) -> None:
    where = scopes(key_limit("requests", 3), key_limit("tokens", 1000), budgets=(total(500),))
    async with limiter(redis) as limits:
        windows = (await limits.reserve("r1", where, tokens=400, hold_pusd=300)).windows
        assert [(w.limit.unit, w.remaining) for w in windows] == [("requests", 2), ("tokens", 600)]
        assert 0 < windows[0].reset_ms <= DAY_MS / 3
        assert await available(limits, where) == [200]
        assert await limits.settle("r1", where, tokens=100, charge_pusd=120)
        assert await available(limits, where) == [380]
        windows = (await limits.reserve("r2", where, tokens=0, hold_pusd=0)).windows
        assert [w.remaining for w in windows] == [1, 900]


async def test_all_or_nothing(redis: Redis) -> None:
    """Whatever refuses, nothing else was taken: not in another scope, not in another unit."""
    tight = {
        "money": scopes(key_limit("requests", 9), budgets=(total(500), total(99, "project", "prj_1"))),
        "rate": scopes(key_limit("requests", 9), key_limit("tokens", 50), budgets=(total(500),)),
        "slots": scopes(key_limit("requests", 9), key_limit("parallel", 0), budgets=(total(500),)),
    }
    async with limiter(redis) as limits:
        for name, where in tight.items():
            with pytest.raises((QuotaExceeded, RateLimited)):
                await limits.reserve(name, where, tokens=100, hold_pusd=100)
        free = scopes(key_limit("requests", 9), key_limit("tokens", 50), budgets=(total(500),))
        windows = (await limits.reserve("probe", free, tokens=0, hold_pusd=0)).windows
        assert [w.remaining for w in windows] == [8, 50]
        assert await available(limits, free) == [500]


async def test_what_a_refusal_says(redis: Redis) -> None:
    async with limiter(redis) as limits:
        per_minute = scopes(key_limit("requests", 2, 60_000))
        for i in range(2):
            await limits.reserve(f"a{i}", per_minute, tokens=0, hold_pusd=0)
        with pytest.raises(RateLimited) as rate:
            await limits.reserve("a2", per_minute, tokens=0, hold_pusd=0)
        assert (rate.value.scope, rate.value.unit) == ("key", "requests")
        assert 29 < rate.value.retry_after_s <= 30
        with pytest.raises(RateLimited, match="alone asks for 51 tokens") as never:
            await limits.reserve("b", scopes(key_limit("tokens", 50)), tokens=51, hold_pusd=0)
        assert never.value.unit == "tokens"
        slots = scopes(key_limit("parallel", 1))
        await limits.reserve("c", slots, tokens=0, hold_pusd=0)
        with pytest.raises(RateLimited) as parallel:
            await limits.reserve("d", slots, tokens=0, hold_pusd=0)
        assert parallel.value.unit == "parallel"
        two = scopes(budgets=(total(500), Budget("project", "prj_1", 70, "month")))
        with pytest.raises(QuotaExceeded, match="project's budget of this month") as money:
            await limits.reserve("e", two, tokens=0, hold_pusd=600)
        assert (money.value.scope, money.value.remaining_pusd, money.value.limit_pusd) == ("project", 70, 70)


async def test_amounts_beyond_a_double_are_exact(redis: Redis) -> None:
    """2^53 pUSD are 9,007 USD. A float in the way would lose the last digits."""
    odd = 2**60 + 1
    where = scopes(budgets=(total(odd),))
    async with limiter(redis) as limits:
        with pytest.raises(QuotaExceeded) as refused:
            await limits.reserve("over", where, tokens=0, hold_pusd=odd + 1)
        assert refused.value.remaining_pusd == odd
        await limits.reserve("all", where, tokens=0, hold_pusd=odd)
        assert await available(limits, where) == [0]
        await limits.settle("all", where, tokens=0, charge_pusd=odd - 3)
        assert await available(limits, where) == [3]
    largest = scopes(budgets=(total(MAX_AMOUNT_PUSD, scope_id="rich"),))
    async with limiter(redis) as limits:
        await limits.reserve("rich", largest, tokens=0, hold_pusd=MAX_AMOUNT_PUSD)
        await limits.settle("rich", largest, tokens=0, charge_pusd=MAX_AMOUNT_PUSD)
        assert await available(limits, largest) == [0]
        with pytest.raises(ValueError):
            await limits.settle("x", largest, tokens=0, charge_pusd=MAX_AMOUNT_PUSD + 1)


async def test_an_overrun_is_owed_and_stops_the_next(redis: Redis) -> None:
    where = scopes(budgets=(total(100),))
    async with limiter(redis) as limits:
        await limits.reserve("r", where, tokens=0, hold_pusd=100)
        await limits.settle("r", where, tokens=0, charge_pusd=130)
        assert await available(limits, where) == [-30]
        with pytest.raises(QuotaExceeded) as refused:
            await limits.reserve("s", where, tokens=0, hold_pusd=1)
        assert refused.value.remaining_pusd == -30
        await limits.reserve("free", where, tokens=0, hold_pusd=0)  # What costs nothing needs no money.


async def test_settling_twice_counts_once(redis: Redis) -> None:
    where = scopes(key_limit("tokens", 1000), budgets=(total(500),))
    async with limiter(redis) as limits:
        await limits.reserve("r", where, tokens=100, hold_pusd=100)
        first = await limits.settle("r", where, tokens=10, charge_pusd=10)
        again = await asyncio.gather(*(limits.settle("r", where, tokens=10, charge_pusd=10) for _ in range(20)))
        assert first
        assert not any(again)
        assert await available(limits, where) == [490]
        with pytest.raises(ValueError, match="twice"):
            await limits.reserve("r", where, tokens=0, hold_pusd=0)


async def test_a_changed_limit_keeps_what_was_spent(redis: Redis) -> None:
    async with limiter(redis) as limits:
        await limits.reserve("r", scopes(budgets=(total(100),)), tokens=0, hold_pusd=80)
        with pytest.raises(QuotaExceeded) as refused:
            await limits.reserve("s", scopes(budgets=(total(90),)), tokens=0, hold_pusd=20)
        assert refused.value.remaining_pusd == 10
        await limits.reserve("t", scopes(budgets=(total(2**62),)), tokens=0, hold_pusd=20)
        assert await available(limits, scopes(budgets=(total(2**62),))) == [2**62 - 100]
        with pytest.raises(QuotaExceeded) as refused:
            await limits.reserve("u", scopes(budgets=(total(50),)), tokens=0, hold_pusd=1)
        assert refused.value.remaining_pusd == -50


async def test_an_expired_lease_frees_the_slot_and_not_the_money(redis: Redis) -> None:
    where = scopes(key_limit("parallel", 1), budgets=(total(100),))
    async with limiter(redis) as limits:
        await limits.reserve("crashed", where, tokens=0, hold_pusd=60, lease_ms=-1)
        await limits.reserve("next", where, tokens=0, hold_pusd=40)
        assert await available(limits, where) == [0]
        # Renewed by an owner that was only slow, it counts again, though the slot has another holder by now.
        assert await limits.renew("crashed", where, tokens=0, hold_pusd=60)
        await limits.settle("next", where, tokens=0, charge_pusd=40)
        with pytest.raises(RateLimited):
            await limits.reserve("third", where, tokens=0, hold_pusd=0)


async def test_sql_corrects_what_a_crashed_process_held(redis: Redis) -> None:
    where = scopes(budgets=(total(1000), total(1000, "project", "prj_1")))
    async with limiter(redis) as limits:
        for name in ("known", "unknown"):
            await limits.reserve(name, where, tokens=0, hold_pusd=300, lease_ms=-600_000)
        await limits.reserve("alive", where, tokens=0, hold_pusd=100)
        assert sorted(name for name, _, _ in await limits.expired("org_1")) == ["known", "unknown"]
        assert await limits.correct("org_1", {"known": 25}) == 1
        assert await available(limits, where) == [575, 575]
        assert [name for name, _, _ in await limits.expired("org_1")] == ["unknown"]
        assert await limits.correct("org_1", {"known": 25}) == 0
        assert await available(limits, where) == [575, 575]


async def test_a_missing_counter_is_made_from_sql_once(redis: Redis) -> None:
    asked: list[Budget] = []

    async def spent(budget: Budget, start_ns: int, _: Sequence[str]) -> Spending:
        asked.append(budget)
        await asyncio.sleep(0)
        return Spending(400)

    where = scopes(budgets=(total(1000),))
    async with limiter(redis, spent) as limits:
        results = await asyncio.gather(
            *(limits.reserve(f"r{i}", where, tokens=0, hold_pusd=100) for i in range(20)), return_exceptions=True
        )
        assert sum(not isinstance(r, Exception) for r in results) == 6
        assert len(asked) == 1
        assert await available(limits, where) == [0]


async def test_of_two_loaders_the_first_wins(redis: Redis) -> None:
    where = scopes(budgets=(total(1000),))
    async with limiter(redis) as limits, limiter(redis) as slow:
        await limits.reserve("r", where, tokens=0, hold_pusd=100)
        assert await slow.load_budget(where, 0)
        assert await available(limits, where) == [900]


async def test_redis_forgets_everything_in_mid_run(redis: Redis) -> None:
    """After FLUSHALL: what runs is announced, then the counter comes from SQL, and settlements still count once."""
    where = scopes(key_limit("parallel", 5), budgets=(total(1000),))
    async with limiter(redis, books(0, 50)) as limits:
        for name in ("long", "short"):
            await limits.reserve(name, where, tokens=0, hold_pusd=300)
        await limits.reserve("done", where, tokens=0, hold_pusd=100)
        await limits.settle("done", where, tokens=0, charge_pusd=50)
        await redis.flushall()
        await redis.script_flush()
        for _ in range(2):
            for name in ("long", "short"):
                assert await limits.renew(name, where, tokens=0, hold_pusd=300)
            assert await available(limits, where) == [None], "nothing is known before SQL was asked"
        # Settled before: whose hold is in no counter, and SQL knows the charge.
        await limits.settle("late", where, tokens=0, charge_pusd=99)
        await limits.reserve("next", where, tokens=0, hold_pusd=1)
        assert await available(limits, where) == [1000 - 50 - 600 - 1]
        await limits.settle("late2", where, tokens=0, charge_pusd=99)
        await limits.settle("short", where, tokens=0, charge_pusd=200)
        await limits.settle("long", where, tokens=0, charge_pusd=10)
        assert await available(limits, where) == [1000 - 50 - 1 - 210]


async def test_a_counter_is_made_while_requests_end(redis: Redis) -> None:
    """Whatever of three running requests SQL has by then, each is counted once: before its settlement and after."""
    where = scopes(budgets=(total(1000),))
    rows: dict[str, int] = {}

    async def spent(budget: Budget, start_ns: int, asked: Sequence[str]) -> Spending:
        found = Spending(sum(rows.values()), frozenset(rows) & frozenset(asked))
        if rows:  # And it goes on while the answer is on its way.
            await limits.settle("c", where, tokens=0, charge_pusd=7)
        return found

    async with limiter(redis, spent) as limits:
        for name in "abc":
            await limits.reserve(name, where, tokens=0, hold_pusd=100)
        await redis.flushall()
        for name in "abc":
            await limits.renew(name, where, tokens=0, hold_pusd=100)
        await limits.settle("a", where, tokens=0, charge_pusd=30)
        rows |= {"a": 30, "b": 40}  # b: shipped, and its settlement has not come here yet.
        await limits.reserve("next", where, tokens=0, hold_pusd=1)
        assert await available(limits, where) == [1000 - 30 - 40 - 7 - 100 - 1], "b's hold is still out"
        await limits.settle("b", where, tokens=0, charge_pusd=40)
        assert await available(limits, where) == [1000 - 30 - 40 - 7 - 1]
        assert sorted(await redis.hkeys(where.budget_keys[0])) == [b"a", b"g", b"l"]


async def test_a_gateway_that_could_not_be_waited_for_still_pays(redis: Redis) -> None:
    where = scopes(budgets=(total(1000),))
    async with limiter(redis) as limits, limiter(redis, owner="cut.off") as other:
        await other.reserve("r", where, tokens=0, hold_pusd=300)
        await evict_budgets(redis, where)
        await limits.reserve("s", where, tokens=0, hold_pusd=50)
        await other.settle("r", where, tokens=0, charge_pusd=100)
        assert await available(limits, where) == [850]


async def test_a_counter_is_made_only_when_everybody_is_there(redis: Redis) -> None:
    where = scopes(budgets=(total(1000),))

    async def both(_: Scopes) -> Sequence[str]:
        await present(first)
        return "first", "second"

    async def present(limits: Limiter) -> None:
        token, there = await limits.called(where)
        assert there or await limits.present(where, token)

    async with limiter(redis, owner="first", assemble=both) as first, limiter(redis, owner="second") as second:
        with pytest.raises(Unavailable):
            await first.reserve("r", where, tokens=0, hold_pusd=1)
        token, _ = await second.called(where)
        await redis.flushall()
        assert not await second.present(where, token), "what was announced has been lost"
        await present(second)
        await first.reserve("r", where, tokens=0, hold_pusd=1)
        await redis.delete(where.budget_keys[0])
        await redis.flushall()
        with pytest.raises(Unavailable):
            await first.reserve("s", where, tokens=0, hold_pusd=1)


async def test_a_counter_of_the_servers_earlier_life_is_made_anew(redis: Redis) -> None:
    """A server that comes back from its file may lack the last second, or the last hour."""
    where = scopes(budgets=(total(1000),))
    async with limiter(redis, books(0, 200)) as limits:
        await limits.reserve("r", where, tokens=0, hold_pusd=300)
        wire = limits._link._wire
        assert wire is not None
        assert wire.boot != "untold00"
        wire.boot = "restart1"
        await limits.reserve("s", where, tokens=0, hold_pusd=1)
        assert await available(limits, where) == [799]
        await limits.settle("r", where, tokens=0, charge_pusd=200)
        assert await available(limits, where) == [799], "SQL knew it"


async def test_end_users_have_limits_each(redis: Redis) -> None:
    each = Limit("end_user", "prj_1", "requests", 1, DAY_MS)
    async with limiter(redis) as limits:
        for i, user in enumerate(("ann", "ben", "a name {with} spaces\n" * 50)):
            where = scopes(each, end_user=user)
            await limits.reserve(f"r{i}", where, tokens=0, hold_pusd=0)
            with pytest.raises(RateLimited) as refused:
                await limits.reserve(f"again{i}", where, tokens=0, hold_pusd=0)
            assert refused.value.scope == "end_user"
        assert not scopes(each, end_user=None).keys


async def test_everything_of_an_organisation_lies_in_one_cluster_slot(redis: Redis) -> None:
    where = scopes(
        key_limit("requests", 5),
        key_limit("parallel", 5),
        Limit("organisation", "org_1", "tokens", 5000, 60_000),
        budgets=(total(10**6), Budget("organisation", "org_1", 10**6, "day")),
    )
    async with limiter(redis) as limits:
        await limits.reserve("r", where, tokens=10, hold_pusd=10)
    keys = [key.decode() for key in await redis.keys()]
    assert len(keys) == 8
    assert all(key.startswith("fb:{org_1}:") for key in keys), keys


async def test_a_thousand_at_once_over_eight_connections_never_overdraw(redis: Redis) -> None:
    budget, hold = 50_000, 100
    where = scopes(key_limit("parallel", 40), key_limit("requests", 700), budgets=(total(budget),))
    running = most = admitted = charged = 0

    async def one(limits: Limiter, name: str) -> None:
        nonlocal running, most, admitted, charged
        try:
            await limits.reserve(name, where, tokens=0, hold_pusd=hold)
        except RateLimited:
            return
        admitted += 1
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        charged += hold - admitted % 3
        await limits.settle(name, where, tokens=0, charge_pusd=hold - admitted % 3)

    async with contextlib.AsyncExitStack() as stack:
        pool = [await stack.enter_async_context(limiter(redis)) for _ in range(8)]
        for wave in range(2):
            names = [f"{wave}-{i}" for i in range(500)]
            tasks = [one(pool[i % 8], name) for i, name in enumerate(names)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(r) for r in results} <= {type(None), QuotaExceeded}
        assert 0 < most <= 40
        assert admitted <= 700
        assert charged <= budget
        assert await available(pool[0], where) == [budget - charged]


async def test_redis_away_is_unavailable_and_comes_back(redis_url: str, tmp_path: Path) -> None:
    where = scopes(budgets=(total(100),))
    async with relay_to(redis_url, tmp_path) as relay, Redis.from_url(relay.url) as client:
        link = Link(client)
        limits = Limiter(link, books(0))
        await limits.reserve("a", where, tokens=0, hold_pusd=10)
        await relay.cut()
        for _ in range(3):
            with pytest.raises(Unavailable):
                await limits.reserve("b", where, tokens=0, hold_pusd=10)
        await relay.open()

        async def back() -> bool:
            with contextlib.suppress(Unavailable):
                return bool(await limits.reserve("c", where, tokens=0, hold_pusd=10))
            return False

        await until(back)
        assert await available(limits, where) == [80]
        await link.aclose()


async def test_a_silent_redis_is_unavailable_within_its_time(redis_url: str, tmp_path: Path) -> None:
    async with relay_to(redis_url, tmp_path) as relay, Redis.from_url(relay.url) as client:
        link = Link(client, reply_s=0.5)
        assert await link.call("PING") == b"PONG"
        relay.freeze()
        results = await asyncio.gather(*(link.call("PING") for _ in range(3)), return_exceptions=True)
        assert [isinstance(r, Unavailable) for r in results] == [True] * 3
        await link.aclose()


@pytest.mark.parametrize("said", ["OOM command not allowed", "READONLY You can't write", "LOADING data"])
async def test_a_redis_that_cannot_is_unavailable(redis: Redis, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where = scopes(budgets=(total(100),))
    async with limiter(redis) as limits:
        monkeypatch.setattr("gateway.admission.limits._SHA", "0" * 40)
        monkeypatch.setattr("gateway.admission.limits._SCRIPT", f"return redis.error_reply({said!r})")
        with pytest.raises(Unavailable):
            await limits.reserve("r", where, tokens=0, hold_pusd=0)


async def test_the_clock_of_the_server_decides(redis: Redis) -> None:
    """A bucket written in the future (the clock was set back) drains nothing and gives nothing away."""
    where = scopes(key_limit("requests", 2, 60_000))
    async with limiter(redis) as limits:
        await redis.set(where.keys[0], "120000 9000000000000")
        with pytest.raises(RateLimited):
            await limits.reserve("r", where, tokens=0, hold_pusd=0)
        await redis.set(where.keys[0], "120000 1000000000000")
        windows = (await limits.reserve("s", where, tokens=0, hold_pusd=0)).windows
        assert windows[0].remaining == 1
