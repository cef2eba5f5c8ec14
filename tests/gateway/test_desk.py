"""What the desk remembers of a plan: it is the plan that would be made anew, whatever has changed meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from billing.prices import PriceBook, Rates, make_sheet
from billing.usage import Meter
from gateway.admission.principal import Principal
from gateway.desk import Ask, Desk
from gateway.errors import Forbidden
from gateway.metering import Size
from gateway.routing.catalog import Catalog, Deployment
from gateway.routing.fallback import Dispatcher
from gateway.routing.offer import sheet_of
from gateway.routing.policy import RoutePlan
from gateway.routing.retries import RetryTerms
from providers.base import Capabilities

WHO = Principal("key", "public", "name", "organisation", "project")
ONE, OTHER = Deployment("p", "openai", "m"), Deployment("q", "openai", "m")
ASK = Ask("r", "openai_chat", "alias", frozenset({"chat"}), Size(400))
NOON_NS = 12 * 3600 * 10**9


def book(*beginnings: int) -> PriceBook:
    prices = {Meter.INPUT_TOKENS: 1, Meter.OUTPUT_TOKENS: 1}
    names = [(name, at) for name in ("p", "q") for at in beginnings]
    return PriceBook([make_sheet(f"{n}-{at}", n, "m", at, Rates(prices, prices), "operator") for n, at in names], [])


class Place:
    """A desk without what nobody asks for a plan."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.dispatcher = Dispatcher(RetryTerms(), lambda: self.now_s, lambda: 0.5)
        self.offer = SimpleNamespace(catalog=Catalog({"alias": (ONE,)}, {}), prices=book(0, NOON_NS))
        self.offer.price_of = lambda deployment, at_ns, variant, organisation_id: sheet_of(
            self.offer.prices, deployment, at_ns, variant, organisation_id
        )
        nothing = cast(Any, None)
        providers = cast(Any, SimpleNamespace(get=lambda _: SimpleNamespace(capabilities=Capabilities())))
        self.desk = Desk(nothing, nothing, nothing, providers, cast(Any, self.offer), nothing, self.dispatcher, nothing)

    def remembered(self, now_ns: int = 0, who: Principal = WHO, ask: Ask = ASK) -> RoutePlan | None:
        return self.desk._remembered(ask, who, now_ns)


def test_the_same_plan_until_a_price_begins() -> None:
    place = Place()
    first = place.remembered()
    assert first is not None
    assert first is place.remembered(NOON_NS - 1)
    assert (first.legs[0].sheet.id, first.told(first.legs[0])) == ("p-0", "weighted; 1/1; the only one")
    later = place.remembered(NOON_NS)
    assert later is not None
    assert later.legs[0].sheet.id == f"p-{NOON_NS}"
    assert cast(RoutePlan, place.remembered(NOON_NS - 1)).legs[0].sheet.id == "p-0"  # The clock was set back.


def test_another_catalogue_other_prices_and_another_word_of_the_key_are_another_plan() -> None:
    place = Place()
    first = place.remembered()
    place.offer.prices = book(0)
    second = place.remembered()
    assert second is not None
    assert second is not first
    place.offer.catalog = Catalog({"alias": (OTHER,)}, {})
    third = place.remembered()
    assert third is not None
    assert third.legs[0].deployment is OTHER
    with pytest.raises(Forbidden):
        place.remembered(who=replace(WHO, models=("else-*",)))


def test_who_is_unwell_or_has_others_beside_it_is_planned_each_time() -> None:
    place = Place()
    assert place.remembered() is not None
    place.dispatcher.health.of(ONE.id).breaker.failed(0.0, 0.0, None, auth=True)
    assert place.remembered() is None
    for aliases in ({"alias": (ONE, OTHER)}, {"alias": (ONE,), "both": (ONE, OTHER)}):
        place = Place()
        place.offer.catalog = Catalog(aliases, {})
        assert place.remembered() is None
