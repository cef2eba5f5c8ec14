"""Turns at a saturated deployment: by properties, and with requests that really wait."""

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.fair import OUTPUT_WEIGHT, PART, FairQueue
from gateway.routing.turnstile import Saturated, Turnstile

LARGEST_IN, LARGEST_OUT = 200, 50
sizes = st.tuples(st.integers(1, LARGEST_IN), st.integers(0, LARGEST_OUT))


@given(
    slots=st.integers(1, 4),
    asked=st.lists(st.tuples(st.sampled_from("abc"), sizes), min_size=1, max_size=60),
    chance=st.randoms(use_true_random=False),
)
def test_no_tenant_that_waits_is_served_much_less_than_another(
    slots: int, asked: list[tuple[str, tuple[int, int]]], chance: random.Random
) -> None:
    """However much one of them asks for: the difference is bounded by what is in flight, never by the queue."""
    queue: FairQueue[int] = FairQueue(slots, 1000)
    running: list[int] = []
    waiting: Counter[str] = Counter()
    bound = 2 * PART * (slots + 1) * (LARGEST_IN + OUTPUT_WEIGHT * LARGEST_OUT)
    for number, (tenant, (tokens, _)) in enumerate(asked):
        goes, gone = queue.enter(tenant, number, 1, tokens)
        assert gone is None
        assert goes == (len(running) < slots)
        running += [number] * goes
        waiting[tenant] += not goes
    begun = {tenant: queue.served[tenant] for tenant in queue.served}
    while running:
        number = running.pop(chance.randrange(len(running)))
        both = [tenant for tenant in waiting if waiting[tenant]]
        turn = queue.leave(asked[number][0], asked[number][1][1])
        if turn is not None:
            running.append(turn[1])
            waiting[turn[0]] -= 1
        for one in both:
            for other in both:
                if waiting[one] and waiting[other]:
                    gained = [queue.served[name] - begun[name] for name in (one, other)]
                    assert abs(gained[0] - gained[1]) <= bound
    assert queue.running == queue.waiting == 0
    assert not queue.served, "nobody is there, so nobody is remembered"


@given(
    weights=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    asked=st.lists(sizes, min_size=30, max_size=60),
    slots=st.integers(1, 3),
)
def test_a_tenant_is_served_by_its_weight(weights: tuple[int, int], asked: list[tuple[int, int]], slots: int) -> None:
    """As long as both wait, by tokens: each has what its weight says, to within what is in flight."""
    queue: FairQueue[int] = FairQueue(slots, 1000)
    of = dict(zip("ab", weights, strict=True))
    running, got = [], dict.fromkeys("ab", 0)
    for number, (tokens, _) in enumerate(asked):
        if queue.enter("ab"[number % 2], number, 1, tokens, of["ab"[number % 2]])[0]:
            running.append(number)
            got["ab"[number % 2]] += tokens
    waiting = {name: sum(each % 2 == at for each in range(len(asked))) for at, name in enumerate("ab")}
    for number in running:
        waiting["ab"[number % 2]] -= 1
    most = LARGEST_IN + OUTPUT_WEIGHT * LARGEST_OUT
    while running and all(waiting.values()):
        number = running.pop(0)
        got["ab"[number % 2]] += OUTPUT_WEIGHT * asked[number][1]
        turn = queue.leave("ab"[number % 2], asked[number][1])
        assert turn is not None
        running.append(turn[1])
        waiting[turn[0]] -= 1
        got[turn[0]] += asked[turn[1]][0]
        shares = [got[name] / of[name] for name in "ab"]
        # The first ones, which met no queue, went by no weight.
        assert abs(shares[0] - shares[1]) <= 2 * (slots + 1) * most / min(weights) + 1


def test_who_was_away_saves_up_no_turns() -> None:
    queue: FairQueue[str] = FairQueue(1, 100)
    assert queue.enter("old", "o0", 1, 10)[0]
    for number in range(1, 6):
        queue.enter("old", f"o{number}", 1, 10)
        assert queue.leave("old", 0) == ("old", f"o{number}")
    queue.enter("new", "n1", 1, 10)
    queue.enter("new", "n2", 1, 10)
    queue.enter("old", "o6", 1, 10)
    assert queue.served["new"] == queue.served["old"] == 60 * PART
    assert queue.leave("old", 0) == ("new", "n1")
    assert queue.leave("new", 0) == ("old", "o6"), "one turn, not six"


def test_urgency_goes_first_and_a_flooder_makes_room() -> None:
    queue: FairQueue[str] = FairQueue(1, 3)
    queue.enter("a", "running", 1, 1)
    for number in range(3):
        assert queue.enter("flood", f"f{number}", 1, 1) == (False, None)
    assert queue.enter("flood", "f3", 1, 1) == (False, "f3"), "its own last one"
    assert queue.enter("quiet", "q", 1, 1) == (False, "f2")
    assert queue.enter("paid", "p", 0, 1_000) == (False, "f1")
    assert not queue.withdraw("flood", "f1")
    assert queue.leave("a", 0) == ("paid", "p")
    assert {queue.leave("paid", 0), queue.leave("flood", 0)} == {("flood", "f0"), ("quiet", "q")}


async def served(turnstile: Turnstile, tenant: str, order: list[str], wait_s: float = 10.0) -> None:
    leave = await turnstile.enter(tenant, 1, 10, wait_s)
    try:
        order.append(tenant)
        await asyncio.sleep(0)
    finally:
        leave(5)


async def test_a_flooder_does_not_keep_a_quiet_tenant_waiting() -> None:
    turnstile, order = Turnstile("up/echo", 2, 1000), list[str]()
    flood = [asyncio.create_task(served(turnstile, "flood", order)) for _ in range(200)]
    await asyncio.sleep(0)
    quiet = asyncio.create_task(served(turnstile, "quiet", order))
    await asyncio.gather(*flood, quiet)
    assert order.index("quiet") <= 4, "at most what ran already, and one more turn"
    assert turnstile.queue.running == 0


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_leaves_whenever_no_turn_is_lost(seed: int) -> None:
    chance, order = random.Random(seed), list[str]()
    turnstile = Turnstile("up/echo", 2, 12)
    tasks = [asyncio.create_task(served(turnstile, chance.choice("abc"), order)) for _ in range(30)]
    while not all(task.done() for task in tasks):
        if chance.random() < 0.5:
            chance.choice(tasks).cancel()
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None or isinstance(result, Saturated | asyncio.CancelledError) for result in results)
    assert turnstile.queue.running == turnstile.queue.waiting == 0
    await served(turnstile, "last", order)
    assert order[-1] == "last"


async def test_more_room_lets_in_who_waits_at_once() -> None:
    """An operator who raises `max_parallel` under load does so for those who wait."""
    turnstile = Turnstile("up/echo", 1, 10)
    leave = await turnstile.enter("a", 1, 1, 60.0)
    waiting = [asyncio.create_task(turnstile.enter(tenant, 1, 1, 60.0)) for tenant in "bcd"]
    await asyncio.sleep(0)
    assert (turnstile.queue.running, turnstile.queue.waiting) == (1, 3)
    turnstile.resize(3)
    assert (turnstile.queue.running, turnstile.queue.waiting) == (3, 1)
    turnstile.resize(1)  # Who runs goes on; nobody else begins until there is room again.
    leave(0)
    assert (turnstile.queue.running, turnstile.queue.waiting) == (2, 1)
    for task in waiting:
        (await task)(0)
    assert turnstile.queue.running == turnstile.queue.waiting == 0


async def test_a_deadline_ends_the_waiting() -> None:
    turnstile = Turnstile("up/echo", 1, 10)
    leave = await turnstile.enter("a", 1, 1, 1.0)
    with pytest.raises(Saturated, match="no turn within") as refused:
        await turnstile.enter("b", 1, 1, 0.01)
    assert refused.value.retry_after_s
    leave(0)
    (await turnstile.enter("b", 1, 1, 1.0))(0)
