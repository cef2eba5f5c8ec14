"""What a request says of where it may go: it narrows, it never widens, and nothing it says is overlooked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from billing.prices import PriceSheet, Rates, make_sheet
from billing.usage import Meter
from gateway.errors import InvalidRequest
from gateway.routing.catalog import Deployment, Terms
from gateway.routing.policy import RoutePlan, plan
from gateway.routing.preferences import Preferences, preferred, read, read_header, session_of
from gateway.routing.strategies import Load
from providers.base import Call, Capabilities
from providers.dialects import openai_chat

PER_TOKEN = {"groq": 2, "east": 5, "west": 9}
GROQ = Deployment("groq", "groq", "m", region="us-east-1")
EAST = Deployment("east", "azure_ai", "m", region="eastus", zdr=True)
WEST = Deployment("west", "azure_ai", "m", region="westeurope")
ALL = (GROQ, EAST, WEST)


def sheet(deployment: Deployment) -> PriceSheet:
    each = PER_TOKEN[deployment.provider] * 10**6
    prices = {Meter.INPUT_TOKENS: each, Meter.OUTPUT_TOKENS: 4 * each}
    return make_sheet("price", deployment.provider, "m", 0, Rates(prices, prices), "operator")


def choose(said: dict[str, Any], terms: Terms | None = None, load: Load | None = None) -> RoutePlan:
    return plan(
        "m",
        frozenset({"chat"}),
        ALL,
        lambda _: Capabilities(),
        sheet,
        lambda: 0.5,
        terms=terms or Terms("priority"),
        load=load or Load(100, 50),
        preferences=read(said),
    )


def tried(said: dict[str, Any]) -> list[str]:
    return [leg.deployment.provider for leg in choose(said).legs]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ["groq", "east", "west"]),
        ({"order": ["west", "groq"]}, ["west", "groq", "east"]),
        ({"order": ["west/m"], "allow_fallbacks": False}, ["west"]),
        ({"only": ["azure_ai"]}, ["east", "west"]),
        ({"ignore": ["east/m"]}, ["groq", "west"]),
        ({"zdr": True}, ["east"]),
        ({"data_collection": "deny"}, ["east"]),
        ({"regions": ["westeurope", "eastus"]}, ["east", "west"]),
        ({"max_price": {"prompt": 5}}, ["groq", "east"]),
        ({"max_price": {"completion": "8"}}, ["groq"]),
        ({"sort": "price", "order": ["west"]}, ["west", "groq", "east"]),
    ],
)
def test_who_is_tried_and_in_what_order(said: dict[str, Any], expected: list[str]) -> None:
    assert tried(said) == expected


def test_a_sort_stands_in_for_the_aliases_own_strategy() -> None:
    route = choose({"sort": "price"}, Terms("weighted"))
    assert route.strategy == "lowest_cost"
    assert [leg.deployment.provider for leg in route.legs] == ["groq", "east", "west"]


def test_nobody_left_is_said_with_each_ones_reason() -> None:
    with pytest.raises(InvalidRequest, match="groq/m: not marked zdr") as refused:
        tried({"zdr": True, "regions": ["westeurope"]})
    assert "east/m: in region eastus" in str(refused.value)


@pytest.mark.parametrize(
    "said",
    [{"quantizations": ["fp8"]}, {"only": "groq"}, {"sort": "kindness"}, {"max_price": {"image": 1}}, [], "groq"],
)
def test_what_we_cannot_honour_is_refused_by_name(said: Any) -> None:
    with pytest.raises(InvalidRequest, match="provider") as refused:
        read(said)
    assert refused.value.param == "provider"


def test_the_body_wins_over_the_header_and_does_not_travel_on() -> None:
    body = b'{"model":"m","provider":{"only":["groq"]},"messages":[{"role":"user","content":"a"}],"x":1}'
    request = openai_chat.DIALECT.decode_request(body, model=None, stream=None)
    call = Call("chat", "openai_chat", request, body, "req_1")
    call, said = preferred(call, {"x-farebox-preferences": '{"only":["west"]}'})
    assert said == Preferences(only=("groq",))
    assert msgspec.json.decode(call.body) == {
        "model": "m",
        "messages": [{"role": "user", "content": "a"}],
        "x": 1,
    }
    assert call.request.extensions == {"openai_chat": {"x": 1}}


def test_the_header_speaks_for_every_dialect() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"a"}],"prompt_cache_key":"talk-7"}'
    request = openai_chat.DIALECT.decode_request(body, model=None, stream=None)
    call = Call("chat", "openai_chat", request, body, "req_1")
    same, said = preferred(call, {"x-farebox-preferences": '{"regions":["eu"]}'})
    assert same is call
    assert said.regions == ("eu",)
    with pytest.raises(InvalidRequest, match="not JSON"):
        read_header("only=groq")
    assert session_of(request, {}) == "talk-7"
    assert session_of(request, {"x-farebox-session": "mine"}) == "mine"


def test_a_prompt_that_may_not_fit_goes_where_it_surely_does_first() -> None:
    small = Deployment("groq", "groq", "m", context_window=8_000)
    large = Deployment("west", "azure_ai", "m", priority=5, context_window=1_000_000)
    route = plan(
        "m", frozenset({"chat"}), (small, large), lambda _: Capabilities(), sheet, lambda: 0.5, load=Load(20_000, 50)
    )
    assert [leg.deployment.provider for leg in route.legs] == ["west", "groq"]
    assert "too short" in route.legs[1].why
