"""Two asked, one kept: the other is cancelled, let go of and counted, and never more of them than the share allows."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest
from msgspec.structs import replace

from billing.prices import Rates, make_sheet
from billing.usage import Meter
from gateway.errors import NoRouteLeft
from gateway.observe.metrics import METRICS
from gateway.routing.catalog import Deployment, Terms
from gateway.routing.explaining import Way, way_of
from gateway.routing.fallback import Arrival, Dispatcher
from gateway.routing.hedging import SAMPLES_LEAST, FirstTokens, HedgeBudget
from gateway.routing.hedging import raced as race_of
from gateway.routing.policy import LOST, OK, Leg, RoutePlan
from gateway.routing.retries import RetryTerms
from providers.errors import BadRequest, Broken, ContentFiltered, ProviderError

_PRICES = {Meter.INPUT_TOKENS: 5, Meter.OUTPUT_TOKENS: 20}
SHEET = make_sheet("price", "x", "m", 0, Rates(_PRICES, _PRICES), "operator")
ONE, TWO = (Leg(Deployment(name, "x", "m"), SHEET) for name in ("one", "two"))
PLAN = RoutePlan((ONE, TWO), terms=Terms(hedge_percentile=95))


def spent(provider: str) -> float:
    """By the metric."""
    name = f'farebox_hedge_lost_usd_total{{provider="{provider}"}} '
    lines = METRICS.exposition().decode().splitlines()
    return next((float(line.removeprefix(name)) for line in lines if line.startswith(name)), 0.0)


class Upstreams:
    """What each deployment does when it is asked: answers after its event is set, or fails."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.discarded: list[str] = []
        self.goes = {"one": asyncio.Event(), "two": asyncio.Event()}
        self.fails: dict[str, ProviderError] = {}

    async def attempt(self, leg: Leg) -> str:
        name = leg.deployment.provider
        self.asked.append(name)
        try:
            await self.goes[name].wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        if name in self.fails:
            raise self.fails[name]
        return name

    async def discard(self, got: str) -> None:
        self.discarded.append(got)


def dispatcher(seen: int = SAMPLES_LEAST) -> Dispatcher:
    made = Dispatcher(RetryTerms(), asyncio.get_running_loop().time, random.random)
    for _ in range(seen):
        made.health.of("one/m").tail.add(0.001)  # so the second is asked after LEAST_S
    return made


async def asked_both(upstreams: Upstreams) -> None:
    async with asyncio.timeout(60):
        while len(upstreams.asked) < 2:
            await asyncio.sleep(0.005)


async def test_who_answers_first_is_kept_and_the_other_cancelled() -> None:
    upstreams, house = Upstreams(), dispatcher()
    arriving = asyncio.create_task(
        house.first_arrival(PLAN, upstreams.attempt, streams=True, discard=upstreams.discard)
    )
    await asked_both(upstreams)
    upstreams.goes["two"].set()
    arrival = await arriving
    assert (arrival.got, arrival.leg, arrival.attempts) == ("two", TWO, 2)
    assert (upstreams.cancelled, upstreams.discarded) == (["one"], [])
    arrival.journey.end(10)
    outlook = house.outlook(["one/m", "two/m"])
    assert [outlook.of(name).in_flight for name in ("one/m", "two/m")] == [0, 0]


async def test_who_is_cancelled_while_the_loser_is_let_go_keeps_no_answer_open() -> None:
    leaving, discarded = asyncio.Event(), list[str]()

    async def first() -> str:
        try:
            return await asyncio.Future()
        finally:
            leaving.set()
            for _ in range(10):  # As a connection that is being closed.
                await asyncio.sleep(0)

    async def second() -> str:
        return "second"

    async def discard(got: str) -> None:
        discarded.append(got)

    race = asyncio.create_task(race_of(first(), 0.0, second, discard))
    async with asyncio.timeout(60):
        await leaving.wait()
        race.cancel()
        with pytest.raises(asyncio.CancelledError):
            await race
    assert discarded == ["second"]


async def raced(plan: RoutePlan, house: Dispatcher, wins: str) -> tuple[Arrival[str], Upstreams]:
    upstreams = Upstreams()
    arriving = asyncio.create_task(
        house.first_arrival(plan, upstreams.attempt, streams=True, discard=upstreams.discard)
    )
    await asked_both(upstreams)
    upstreams.goes[wins].set()
    arrival = await arriving
    arrival.journey.end(10)
    return arrival, upstreams


@pytest.mark.parametrize(("wins", "loses"), [("one", "two"), ("two", "one")])
async def test_what_the_loser_cost_is_told_with_the_request(wins: str, loses: str) -> None:
    read = {"fresh_tokens": 1000, "cached_tokens": 500}
    legs = tuple(replace(leg, **read) for leg in (ONE, TWO))
    plan = replace(PLAN, legs=legs)
    before = spent(loses)
    arrival, _ = await raced(plan, dispatcher(), wins)
    assert arrival.lost_pusd == 1000 * 5 + 500 * 5
    assert [tried[:2] for tried in arrival.tries] == [(f"{loses}/m", LOST), (f"{wins}/m", OK)]
    assert spent(loses) - before == pytest.approx(7500 / 10**12)
    way = way_of(plan, arrival.tries, arrival.lost_pusd)
    assert way is not None
    assert msgspec.json.decode(way, type=Way).lost_pusd == 7500


async def test_who_failed_by_itself_has_not_lost() -> None:
    upstreams, house = Upstreams(), dispatcher()
    upstreams.fails = {"one": Broken("gone")}
    legs = tuple(replace(leg, fresh_tokens=1000) for leg in (ONE, TWO))
    arriving = asyncio.create_task(
        house.first_arrival(replace(PLAN, legs=legs), upstreams.attempt, streams=True, discard=upstreams.discard)
    )
    await asked_both(upstreams)
    upstreams.goes["one"].set()
    while not house.health.of("one/m").breaker._calls.total(asyncio.get_running_loop().time()):
        await asyncio.sleep(0)
    upstreams.goes["two"].set()
    arrival = await arriving
    assert (arrival.got, arrival.lost_pusd) == ("two", 0)
    assert [tried[:2] for tried in arrival.tries] == [("one/m", "Broken"), ("two/m", OK)]


@pytest.mark.parametrize(("tokens", "asks"), [(1000, ["one", "two"]), (1001, ["one"])])
async def test_a_prompt_that_is_too_dear_is_asked_once(
    tokens: int, asks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever of them loses: here it would be the first that is dear."""
    upstreams = Upstreams()
    house = Dispatcher(RetryTerms(hedge_pusd=5000), asyncio.get_running_loop().time, random.random)
    for _ in range(SAMPLES_LEAST):
        house.health.of("one/m").tail.add(0.001)
    weighed = asyncio.Event()
    affordable = house._affordable

    def watched(*legs: Leg) -> bool:
        weighed.set()
        return affordable(*legs)

    monkeypatch.setattr(house, "_affordable", watched)
    plan = replace(PLAN, legs=(replace(ONE, fresh_tokens=tokens), TWO))
    arriving = asyncio.create_task(
        house.first_arrival(plan, upstreams.attempt, streams=True, discard=upstreams.discard)
    )
    async with asyncio.timeout(60):
        await weighed.wait()
        while len(upstreams.asked) < len(asks):
            await asyncio.sleep(0.005)
    upstreams.goes["one"].set()
    (await arriving).journey.end()
    assert upstreams.asked == asks


async def test_one_that_answers_in_the_same_instant_is_let_go_of() -> None:
    upstreams, house = Upstreams(), dispatcher()
    arriving = asyncio.create_task(
        house.first_arrival(PLAN, upstreams.attempt, streams=True, discard=upstreams.discard)
    )
    await asked_both(upstreams)
    for event in upstreams.goes.values():
        event.set()
    arrival = await arriving
    assert [arrival.got, *upstreams.discarded] in (["one", "two"], ["two", "one"])
    arrival.journey.end()
    assert house.outlook(["one/m"]).of("one/m").in_flight == 0
    assert house.outlook(["two/m"]).of("two/m").in_flight == 0


async def test_a_prompt_answer_is_asked_once() -> None:
    upstreams, house = Upstreams(), dispatcher()
    upstreams.goes["one"].set()
    arrival = await house.first_arrival(PLAN, upstreams.attempt, streams=True, discard=upstreams.discard)
    assert (arrival.got, upstreams.asked) == ("one", ["one"])


async def test_nobody_is_asked_twice_before_anything_is_known() -> None:
    upstreams, house = Upstreams(), dispatcher(seen=SAMPLES_LEAST - 1)
    assert house._hedge_after is not None
    arriving = asyncio.create_task(
        house.first_arrival(PLAN, upstreams.attempt, streams=True, discard=upstreams.discard)
    )
    while not upstreams.asked:
        await asyncio.sleep(0)
    upstreams.goes["one"].set()
    await arriving
    assert upstreams.asked == ["one"]


@pytest.mark.parametrize("first", ["one", "two"])
async def test_one_failing_leaves_the_race_to_the_other(first: str) -> None:
    upstreams, house = Upstreams(), dispatcher()
    upstreams.fails = {first: Broken("gone")}
    arriving = asyncio.create_task(
        house.first_arrival(PLAN, upstreams.attempt, streams=True, discard=upstreams.discard)
    )
    await asked_both(upstreams)
    upstreams.goes[first].set()
    other = {"one": "two", "two": "one"}[first]
    while not house.health.of(f"{first}/m").breaker._calls.total(asyncio.get_running_loop().time()):
        await asyncio.sleep(0)
    upstreams.goes[other].set()
    assert (await arriving).got == other
    assert upstreams.cancelled == []


async def test_both_failing_is_a_failure_with_the_firsts_story() -> None:
    upstreams, house = Upstreams(), dispatcher()
    upstreams.fails = {"one": Broken("first is gone"), "two": Broken("second is gone")}
    arriving = asyncio.create_task(
        house.first_arrival(PLAN, upstreams.attempt, streams=True, discard=upstreams.discard)
    )
    await asked_both(upstreams)
    for event in upstreams.goes.values():
        event.set()
    with pytest.raises(NoRouteLeft, match="first is gone"):
        await arriving


async def test_a_client_that_leaves_cancels_both() -> None:
    upstreams, house = Upstreams(), dispatcher()
    arriving = asyncio.create_task(
        house.first_arrival(PLAN, upstreams.attempt, streams=True, discard=upstreams.discard)
    )
    await asked_both(upstreams)
    arriving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await arriving
    assert sorted(upstreams.cancelled) == ["one", "two"]
    assert house.outlook(["one/m"]).of("one/m").in_flight == 0
    assert house.outlook(["two/m"]).of("two/m").in_flight == 0


async def test_a_first_that_waits_for_its_turn_is_still_the_first() -> None:
    """Its promise is kept by its call, though another one was asked meanwhile: it counts once."""
    upstreams, house = Upstreams(), dispatcher()
    one, two = (replace(leg, deployment=replace(leg.deployment, max_parallel=1)) for leg in (ONE, TWO))
    busy = [await house.first_arrival(RoutePlan((leg,)), _at_once, streams=True) for leg in (one, two)]
    plan = house.promised(replace(PLAN, legs=(one, two)))
    arriving = asyncio.create_task(
        house.first_arrival(plan, upstreams.attempt, streams=True, discard=upstreams.discard)
    )
    async with asyncio.timeout(60):
        while dict(house.queues()) != {"one/m": 1, "two/m": 1}:
            await asyncio.sleep(0.005)
        assert house.health.of("one/m").in_flight == 2, "who holds its turn, and what was promised"
        busy[0].journey.end()
        while upstreams.asked != ["one"]:
            await asyncio.sleep(0)
    assert house.health.of("one/m").in_flight == 1
    upstreams.goes["one"].set()
    (await arriving).journey.end()
    busy[1].journey.end()
    assert dict(house.queues()) == {"one/m": 0, "two/m": 0}


async def _at_once(leg: Leg) -> str:
    return leg.deployment.provider


def test_the_share_is_kept() -> None:
    budget = HedgeBudget(0.05)
    taken = 0
    for n in range(1000):
        now = n * 0.02
        budget.requested(now)
        taken += budget.take(now)
    assert 50 <= taken <= 5 + 0.05 * 1000
    tail = FirstTokens()
    for n in range(200):
        tail.add(n / 100)
    assert tail.percentile(95) == pytest.approx(1.93, abs=0.02)


async def test_a_content_filter_is_the_last_word_unless_the_alias_says_otherwise() -> None:
    async def attempt(leg: Leg) -> str:
        if leg is ONE:
            raise ContentFiltered("not here")
        return "answered"

    house = dispatcher()
    with pytest.raises(ContentFiltered):
        await house.first_arrival(RoutePlan((ONE, TWO)), attempt)
    plan = RoutePlan((ONE, TWO), terms=Terms(past_filters=True))
    assert (await house.first_arrival(plan, attempt)).got == "answered"

    async def wrong(leg: Leg) -> str:
        raise BadRequest("your mistake")

    with pytest.raises(BadRequest):
        await house.first_arrival(plan, wrong)


async def test_first_tokens_that_are_too_late_open_the_breaker() -> None:
    now = 0.0
    house = Dispatcher(RetryTerms(slow_s=2.0), lambda: now, random.random)

    async def attempt(leg: Leg) -> str:
        nonlocal now
        now += 3.0
        return "late"

    for _ in range(5):
        (await house.first_arrival(RoutePlan((ONE,)), attempt, streams=True)).journey.end()
    assert house.outlook(["one/m"]).of("one/m").condition == "open"
