"""Who fails more than its peers goes behind them: never more than half, never without enough calls, never out."""

from __future__ import annotations

import random
from statistics import median

from hypothesis import given, settings
from hypothesis import strategies as st

from billing.prices import Rates, make_sheet
from billing.usage import Meter
from gateway.routing.catalog import Deployment, Terms
from gateway.routing.health import JUDGED_CALLS, Health, Outlook, Standing, Trip
from gateway.routing.outliers import WORSE_BY, outliers
from gateway.routing.policy import RoutePlan, plan
from gateway.routing.retries import WINDOW_S
from providers.base import Capabilities
from providers.errors import Broken

_PRICES = {Meter.INPUT_TOKENS: 5, Meter.OUTPUT_TOKENS: 20}
SHEET = make_sheet("price", "x", "m", 0, Rates(_PRICES, _PRICES), "operator")

fleets = st.lists(
    st.builds(lambda calls, failed: Standing(calls=calls, failed_share=failed), st.integers(0, 40), st.floats(0, 0.49)),
    min_size=1,
    max_size=9,
).map(lambda standings: {f"p{n}/m": standing for n, standing in enumerate(standings)})


@given(fleet=fleets, seed=st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_never_more_than_half_and_nobody_who_is_not_worse(fleet: dict[str, Standing], seed: int) -> None:
    found = outliers(fleet.items())
    judged = {name: each for name, each in fleet.items() if each.calls >= JUDGED_CALLS}
    assert len(found) <= len(judged) // 2
    for name in found:
        others = [each.failed_share for other, each in judged.items() if other != name]
        assert judged[name].failed_share >= median(others) + WORSE_BY
    if found:
        best = min(judged, key=lambda name: judged[name].failed_share)
        assert best not in found
    shuffled = list(fleet.items())
    random.Random(seed).shuffle(shuffled)
    assert outliers(shuffled) == found
    # Whatever befalls all alike sets nobody behind.
    assert outliers((name, Standing(calls=40, failed_share=0.45)) for name in fleet) == {}


def test_of_three_the_worst_alone_goes_behind() -> None:
    """Two of them stand clearly above what the others' median is."""
    shares = {"a/m": 0.0, "b/m": 0.47, "c/m": 0.49}
    found = outliers((name, Standing(calls=20, failed_share=share)) for name, share in shares.items())
    assert list(found) == ["c/m"]


def planned(standings: dict[str, Standing], **terms: object) -> RoutePlan:
    places = tuple(Deployment(name.partition("/")[0], "x", "m") for name in standings)
    return plan(
        "m",
        frozenset({"chat"}),
        places,
        lambda _: Capabilities(),
        lambda _: SHEET,
        random.random,
        terms=Terms("weighted"),
        outlook=Outlook(standings),
    )


@given(fleet=fleets)
@settings(max_examples=100, deadline=None)
def test_they_are_tried_behind_the_others_and_never_left_out(fleet: dict[str, Standing]) -> None:
    route = planned(fleet)
    names = [leg.deployment.id for leg in route.legs]
    assert sorted(names) == sorted(fleet)
    worse = list(outliers(fleet.items()))
    assert names[len(names) - len(worse) :] == worse
    for leg in route.legs:
        assert ("of its peers'" in leg.why) is (leg.deployment.id in worse)


def test_the_last_half_minute_is_what_counts() -> None:
    ill, well = Health(), Health()
    for n in range(12):
        for health in (ill, well):
            trip = Trip(health, 1.0)
            if health is ill and n % 3 == 0:
                trip.failed(Broken("502"), 1.0)
            else:
                trip.answered(1.0, streams=False)
            trip.end(1.0)
    then = {"a/m": ill.standing(1.0), "b/m": well.standing(1.0)}
    assert then["a/m"].condition == "closed"  # a breaker would not have seen it
    route = planned(then)
    assert [leg.deployment.id for leg in route.legs] == ["b/m", "a/m"]
    assert route.legs[1].why == "33% of its last 12 calls failed, of its peers' 0%"
    later = 1.0 + 2 * WINDOW_S
    assert outliers({"a/m": ill.standing(later), "b/m": well.standing(later)}.items()) == {}


@given(st.lists(st.tuples(st.floats(0, 200), st.integers(1, 5)), max_size=60), st.floats(0, 40))
@settings(max_examples=200, deadline=None)
def test_a_window_counts_what_its_slots_hold(steps: list[tuple[float, int]], after: float) -> None:
    from gateway.routing.retries import Window

    window, now = Window(), 0.0
    kept: list[tuple[int, int]] = []
    for gap, count in steps:
        now += gap / 10
        window.add(now, count)
        kept.append((int(now // 5), count))
        assert window.total(now) == sum(n for slot, n in kept if slot > int(now // 5) - 6)
    now += after
    assert window.total(now) == sum(n for slot, n in kept if slot > int(now // 5) - 6)
