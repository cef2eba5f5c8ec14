"""The tries: who is asked next, when the same one is asked again, and what health hears of it."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import NoRouteLeft
from gateway.observe.metrics import METRICS
from gateway.routing import health
from gateway.routing.catalog import Deployment
from gateway.routing.fallback import Dispatcher
from gateway.routing.policy import Leg, RoutePlan
from gateway.routing.retries import WINDOW_S, RetryBudget, RetryTerms, delay_s
from providers.errors import (
    AuthFailed,
    Broken,
    Interrupted,
    Overloaded,
    ProviderError,
    Rejected,
    Throttled,
    TimedOut,
    Unreachable,
)
from tests.gateway.routing.test_order import sheet

A, B = (Deployment(name, "x", "m") for name in "ab")


class World:
    """A clock that only sleeping moves, and deployments that answer from a script; its last answer stays."""

    def __init__(self, terms: RetryTerms | None = None, **scripts: list[ProviderError | str]) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self.asked: list[str] = []
        self.scripts = scripts
        self.dispatcher = Dispatcher(terms or RetryTerms(), lambda: self.now, random.Random(1).random, self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def attempt(self, leg: Leg) -> str:
        name = leg.deployment.provider
        self.asked.append(name)
        script = self.scripts[name]
        said = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(said, ProviderError):
            raise said
        return said

    async def ask(self, *deployments: Deployment, streams: bool = False) -> str:
        route = RoutePlan(tuple(Leg(d, sheet(d)) for d in deployments))
        arrival = await self.dispatcher.first_arrival(route, self.attempt, streams=streams)
        arrival.journey.end()
        return arrival.got

    def condition(self, deployment: Deployment) -> str:
        return self.dispatcher.outlook([deployment.id]).of(deployment.id).condition


@pytest.mark.parametrize("error", [Unreachable("refused"), Overloaded("503"), Broken("500")])
async def test_a_hiccup_of_the_only_one_is_not_the_clients_to_see(error: ProviderError) -> None:
    world = World(a=[error, error, "here"])
    assert await world.ask(A) == "here"
    assert world.asked == ["a"] * 3
    assert len(world.slept) == 2
    assert world.slept[0] <= 0.1
    assert world.slept[1] <= 0.2


async def test_another_deployment_is_asked_at_once_instead() -> None:
    world = World(a=[Overloaded("503")], b=["here"])
    assert await world.ask(A, B) == "here"
    assert (world.asked, world.slept) == (["a", "b"], [])


@pytest.mark.parametrize(
    "error",
    [
        Throttled("429"),
        Throttled("429", retry_after_s=30.0),
        TimedOut("slow", "first_byte"),
        AuthFailed("401"),
        Rejected("400"),
    ],
)
async def test_what_asking_again_cannot_mend_is_told_at_once(error: ProviderError) -> None:
    world = World(a=[error, "here"])
    with pytest.raises(Rejected if isinstance(error, Rejected) else NoRouteLeft):
        await world.ask(A)
    assert (world.asked, world.slept) == (["a"], [])


async def test_a_short_hint_is_waited_out() -> None:
    world = World(a=[Throttled("429", retry_after_s=1.5), "here"])
    assert await world.ask(A) == "here"
    assert 1.5 <= world.slept[0] <= 1.6


async def test_an_outage_is_no_storm() -> None:
    """1,000 requests to a deployment that is down: one call each, and a tenth more, and the few that are free."""
    world = World(a=[Overloaded("503")])
    world.dispatcher = Dispatcher(RetryTerms(base_s=0.0), lambda: world.now, random.random, world.sleep)
    for _ in range(1000):
        with pytest.raises(NoRouteLeft):
            await world.ask(A)
    assert 1000 < len(world.asked) <= 1000 + 100 + 10


async def test_no_try_begins_after_the_requests_time() -> None:
    world = World(RetryTerms(total_s=1.0), a=[Throttled("429", retry_after_s=1.9)])
    with pytest.raises(NoRouteLeft):
        await world.ask(A)
    assert world.asked == ["a"]

    async def slow(leg: Leg) -> str:
        world.asked.append(leg.deployment.provider)
        world.now += 2.0
        raise Broken("500")

    world.asked.clear()
    world.now += 60
    with pytest.raises(NoRouteLeft, match="no time left"):
        await world.dispatcher.first_arrival(RoutePlan((Leg(A, sheet(A)), Leg(B, sheet(B)))), slow)
    assert world.asked == ["a"]


async def test_a_later_leg_is_cut_at_the_requests_time() -> None:
    dispatcher = Dispatcher(RetryTerms(total_s=0.2), asyncio.get_running_loop().time, random.random)

    async def attempt(leg: Leg) -> str:
        if leg.deployment is A:
            raise Overloaded("503")
        return await asyncio.Future()

    with pytest.raises(NoRouteLeft) as failure:
        await dispatcher.first_arrival(RoutePlan((Leg(A, sheet(A)), Leg(B, sheet(B)))), attempt)
    assert isinstance(failure.value.last, TimedOut)
    assert failure.value.last.phase == "total"


async def test_what_opened_since_the_choice_is_asked_last_and_asked_nonetheless() -> None:
    world = World(a=[AuthFailed("401")], b=["here"])
    assert await world.ask(A, B) == "here"
    assert world.condition(A) == "open"
    world.asked.clear()
    assert await world.ask(A, B) == "here"  # a plan from before
    assert world.asked == ["b"]
    world.scripts = {"a": ["well again"], "b": [Broken("500")]}
    world.asked.clear()
    assert await world.ask(A, B) == "well again"
    assert world.asked == ["b", "a"]
    assert world.condition(A) == "closed"


async def test_one_request_probes_and_the_others_go_elsewhere() -> None:
    world = World(a=[Broken("500")], b=["b"])
    for _ in range(health.CONSECUTIVE_FAILURES):
        await world.ask(A, B)
    world.now += health.OPEN_S
    gate = asyncio.Event()

    async def attempt(leg: Leg) -> str:
        if leg.deployment is A:
            await gate.wait()
        return leg.deployment.provider

    route = RoutePlan((Leg(A, sheet(A)), Leg(B, sheet(B))))
    tasks = [asyncio.create_task(world.dispatcher.first_arrival(route, attempt)) for _ in range(20)]
    while sum(task.done() for task in tasks) < 19:
        await asyncio.sleep(0)
    gate.set()
    answers = sorted(arrival.got for arrival in await asyncio.gather(*tasks))
    assert answers == ["a"] + ["b"] * 19
    assert world.condition(A) == "closed"


async def test_each_call_is_counted_once_by_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[str, str]] = []
    monkeypatch.setattr(METRICS, "attempted", lambda provider, result: counted.append((provider, result)))
    world = World(a=[Overloaded("503")], b=["here"])
    await world.ask(A, B)
    await world.ask(B, streams=True)
    arrival = await world.dispatcher.first_arrival(RoutePlan((Leg(B, sheet(B)),)), world.attempt, streams=True)
    arrival.journey.failed(Interrupted("cut"))
    arrival.journey.end(3)
    assert counted == [("a", "Overloaded"), ("b", "ok"), ("b", "ok"), ("b", "Interrupted")]


def test_of_who_is_reached_otherwise_or_has_left_nothing_is_known() -> None:
    """A replica that starts anew under its old name has read nothing, and breakers of its other life are over."""
    dispatcher = World().dispatcher
    ours = [Deployment("own", "x", "m", account=name) for name in ("one", "two")]
    for each in (*ours, Deployment("up", "x", "m@v1")):
        dispatcher.health.of(each.id)
        dispatcher.warmth.keep(each.id, each.cache, (1, 2), 0.0)
    for gone, left in (({"own@one"}, ["own/m@two", "up/m@v1"]), ({"up"}, ["own/m@two"])):
        dispatcher.renewed(gone)
        assert [name for name, _ in dispatcher.health.items()] == left
        assert dispatcher.warmth.names() == left


async def test_a_cancelled_try_leaves_nothing_in_flight() -> None:
    world = World()

    async def never(leg: Leg) -> str:
        return await asyncio.Future()

    task = asyncio.create_task(world.dispatcher.first_arrival(RoutePlan((Leg(A, sheet(A)),)), never, streams=True))
    await asyncio.sleep(0)
    assert world.dispatcher.health.of(A.id).in_flight == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.dispatcher.health.of(A.id).in_flight == 0


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=300),
    st.floats(0, 1),
    st.integers(0, 10),
)
@settings(max_examples=60, deadline=None)
def test_retries_of_any_window_stay_within_their_share(
    events: list[tuple[bool, float]], share: float, spare: int
) -> None:
    budget, terms, now = RetryBudget(), RetryTerms(share=share, spare=spare), 0.0
    requests: list[float] = []
    taken: list[float] = []
    for is_request, gap in events:
        now += gap
        if is_request:
            budget.requested(now)
            requests.append(now)
        elif budget.take(terms, now):
            taken.append(now)
            # Windows slide by slots of 5 s: what counts as recent is at least 25 s of it, at most 30.
            recent = sum(at > now - WINDOW_S for at in requests)
            assert sum(at > now - (WINDOW_S - 5) for at in taken) <= spare + share * recent + 1e-9


@given(st.integers(1, 5), st.floats(0, 0.999), st.none() | st.floats(0, 100))
def test_the_wait_is_bounded_and_never_shorter_than_the_hint(retry: int, draw: float, hint: float | None) -> None:
    terms = RetryTerms()
    wait = delay_s(Overloaded("503", retry_after_s=hint), retry, terms, lambda: draw)
    if retry > terms.most or (hint or 0) > terms.longest_s:
        assert wait is None
    else:
        assert wait is not None
        assert (hint or 0) <= wait <= 2 * terms.longest_s
