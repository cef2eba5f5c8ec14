"""Properties of the choice: constraints before everything, everybody in one order, and no herd."""

from __future__ import annotations

import random
from collections import Counter
from math import sqrt
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.errors import UnknownPrice
from billing.prices import PriceSheet, Rates, make_sheet
from billing.usage import Meter
from gateway.config import Strategy
from gateway.errors import InvalidRequest, UnpricedModel, Unsupported
from gateway.routing.catalog import Deployment, Terms
from gateway.routing.health import Outlook, Standing
from gateway.routing.policy import RoutePlan, plan
from gateway.routing.strategies import Load, price_pusd
from providers.base import Capabilities

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
NEEDS = frozenset({"chat", "tools"})


def sheet(deployment: Deployment, per_token: int = 5) -> PriceSheet:
    prices = {Meter.INPUT_TOKENS: per_token, Meter.OUTPUT_TOKENS: 4 * per_token}
    return make_sheet(f"price-{deployment.id}", deployment.provider, "m", 0, Rates(prices, prices), "operator")


@st.composite
def deployments(draw: st.DrawFn) -> tuple[Deployment, ...]:
    count = draw(st.integers(1, 6))
    return tuple(
        Deployment(f"p{n}", "x", "m", weight=draw(st.integers(0, 4)), priority=draw(st.integers(0, 2)))
        for n in range(count)
    )


standings = st.builds(
    Standing,
    st.sampled_from(["closed", "half_open", "open", "cooling"]),
    st.floats(0, 60),
    st.none() | st.floats(0.001, 20),
    st.none() | st.floats(0.1, 1000),
    st.integers(0, 50),
    st.integers(0, 100_000),
    st.integers(0, 50),
    st.none() | st.floats(1, 100_000),
    st.floats(0, 1),
)


@given(
    places=deployments(),
    data=st.data(),
    strategy=st.sampled_from(STRATEGIES),
    most=st.none() | st.integers(1, 200_000),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=250, deadline=None)
def test_nothing_forbidden_and_nobody_lost(
    places: tuple[Deployment, ...], data: st.DataObject, strategy: Strategy, most: int | None, seed: int
) -> None:
    toolless = data.draw(st.sets(st.sampled_from(places)))
    unpriced = data.draw(st.sets(st.sampled_from(places)))
    each = {d.id: data.draw(st.integers(1, 50)) for d in places}
    outlook = Outlook({d.id: data.draw(standings) for d in places if data.draw(st.booleans())})
    load = Load(100, 50)

    def price_of(deployment: Deployment) -> PriceSheet:
        if deployment in unpriced:
            raise UnknownPrice(deployment.id)
        return sheet(deployment, each[deployment.id])

    def choose() -> RoutePlan:
        return plan(
            "m",
            NEEDS,
            places,
            lambda d: Capabilities(tools=d not in toolless),
            price_of,
            random.Random(seed).random,
            terms=Terms(strategy, most),
            outlook=outlook,
            load=load,
        )

    able = [d for d in places if d not in toolless]
    priced = [d for d in able if d not in unpriced]
    allowed = [d for d in priced if most is None or price_pusd(price_of(d), Load(100), 50) <= most]
    if not able:
        with pytest.raises(Unsupported):
            choose()
    elif not priced:
        with pytest.raises(UnpricedModel):
            choose()
    elif not allowed:
        with pytest.raises(InvalidRequest, match="allows"):
            choose()
    else:
        route = choose()
        tried = [leg.deployment for leg in route.legs]
        assert Counter(tried) == Counter(allowed)
        assert {name for name, _ in route.left_out} == {d.id for d in places} - {d.id for d in allowed}
        assert all(leg.why and route.told(leg).isascii() for leg in route.legs)
        assert choose() == route  # the same chance, the same order
        well = [outlook.of(d.id).well for d in tried]
        assert well == sorted(well, reverse=True)
        ranks = [(d.priority, d.weight == 0) for d in tried if outlook.of(d.id).well]
        assert ranks == sorted(ranks)
        waits = [outlook.of(d.id).wait_s for d in tried if not outlook.of(d.id).well]
        assert waits == sorted(waits)


@given(
    latencies=st.lists(st.none() | st.floats(0.01, 30), min_size=2, max_size=8),
    busy=st.data(),
    strategy=st.sampled_from(["lowest_latency", "least_busy", "most_quota"]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None)
def test_a_thousand_at_once_on_one_stale_snapshot_are_no_herd(
    latencies: list[float | None], busy: st.DataObject, strategy: Strategy, seed: int
) -> None:
    """The bound that `strategies.py` states, with four standard deviations of a thousand draws on top."""
    count, requests = len(latencies), 1000
    places = tuple(Deployment(f"p{n}", "x", "m") for n in range(count))
    in_flight = busy.draw(st.lists(st.integers(0, 100), min_size=count, max_size=count))
    outlook = Outlook(
        {
            d.id: Standing(first_token_s=seconds, in_flight=load, quota_left=load / 100)
            for d, seconds, load in zip(places, latencies, in_flight, strict=True)
        }
    )
    chance = random.Random(seed).random
    firsts = Counter(
        plan("m", NEEDS, places, lambda _: Capabilities(), sheet, chance, terms=Terms(strategy), outlook=outlook)
        .legs[0]
        .deployment.id
        for _ in range(requests)
    )
    share = (2 * count - 1) / count**2
    assert max(firsts.values()) <= requests * share + 4 * sqrt(requests * share * (1 - share))


def first(strategy: Strategy, outlook: Outlook, *places: Deployment, **prices: int) -> Counter[str]:
    chance = random.Random(5).random
    return Counter(
        plan(
            "m",
            NEEDS,
            places,
            lambda _: Capabilities(),
            lambda d: sheet(d, prices.get(d.provider, 5)),
            chance,
            terms=Terms(strategy),
            outlook=outlook,
        )
        .legs[0]
        .deployment.provider
        for _ in range(2000)
    )


A, B, C = (Deployment(name, "x", "m") for name in "abc")


def test_each_strategy_prefers_what_it_is_named_for() -> None:
    outlook = Outlook(
        {
            A.id: Standing(first_token_s=2.0, in_flight=0),
            B.id: Standing(first_token_s=0.2, in_flight=4),
            C.id: Standing(first_token_s=2.5, in_flight=9),
        }
    )
    assert first("priority", outlook, C, A, B) == {"c": 2000}
    assert first("lowest_cost", outlook, A, B, C, b=1) == {"b": 2000}
    assert first("lowest_latency", outlook, A, B, C).most_common(1)[0][0] == "b"
    assert first("least_busy", outlook, A, B, C).most_common(1)[0][0] == "a"
    assert set(first("lowest_cost", outlook, A, B)) == {"a", "b"}  # equal prices share


def test_a_slow_writer_is_not_quick_for_its_first_token() -> None:
    outlook = Outlook(
        {
            A.id: Standing(first_token_s=0.1, tokens_per_s=5),
            B.id: Standing(first_token_s=0.5, tokens_per_s=200),
        }
    )
    assert first("lowest_latency", outlook, A, B).most_common(1)[0][0] == "b"


def test_weight_is_capacity_to_the_least_busy() -> None:
    large = Deployment("large", "x", "m", weight=10)
    outlook = Outlook({large.id: Standing(in_flight=15), A.id: Standing(in_flight=2)})
    assert first("least_busy", outlook, large, A).most_common(1)[0][0] == "large"


def test_the_client_is_told_where_and_why() -> None:
    outlook = Outlook({A.id: Standing("open", 4.2)})
    route = plan("m", NEEDS, (A, B), lambda _: Capabilities(), sheet, lambda: 0.5, outlook=outlook)
    assert [route.told(leg) for leg in route.legs] == [
        "weighted; 1/2; the only one well",
        "weighted; 2/2; open for 4.2 s",
    ]


def test_a_plan_is_held_for_the_longest_answer_of_its_legs_and_a_ceiling_is_the_last_that_passes() -> None:
    places = (Deployment("a", "x", "m", max_output_tokens=100), Deployment("b", "x", "m", max_output_tokens=900))
    load = Load(100, 50)

    def choose(most_pusd: int | None) -> RoutePlan:
        return plan(
            "m",
            frozenset({"chat"}),
            places,
            lambda _: Capabilities(),
            sheet,
            lambda: 0.5,
            terms=Terms("priority", most_pusd),
            load=load,
        )

    assert choose(None).most_output(None) == 900
    costs = {d.id: price_pusd(sheet(d), load, load.longest(d)) for d in places}
    assert {leg.deployment.id for leg in choose(max(costs.values())).legs} == {"a/m", "b/m"}
    least = min(costs.values())
    assert {leg.deployment.id for leg in choose(least).legs} == {name for name, cost in costs.items() if cost == least}
    with pytest.raises(InvalidRequest, match="may cost"):
        choose(least - 1)
