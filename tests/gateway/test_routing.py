"""The catalogue and the choice: constraints before chance, and every no says why."""

import random
from collections import Counter

import pytest

from billing.errors import UnknownPrice
from billing.prices import PriceBook, PriceSheet, Rates, make_sheet
from billing.usage import Meter
from gateway.config import DeploymentSettings, LocalSettings, ModelSettings, Settings
from gateway.errors import ModelNotFound, NoRouteLeft, UnpricedModel, Unsupported
from gateway.routing.catalog import Catalog, Deployment, from_settings, permits
from gateway.routing.fallback import Dispatcher
from gateway.routing.policy import Leg, RoutePlan, needed_features, plan
from gateway.routing.retries import RetryTerms
from providers.base import Capabilities
from providers.errors import AuthFailed, Broken, ContextTooLong, Rejected
from providers.neutral import ChatRequest, ImagePart, Message, TextPart, Tool

REQUEST = ChatRequest("m", (Message("user", (TextPart("hi"),)),))
A, B, C = (Deployment(name, "openai_like", "m") for name in "abc")


def sheet(deployment: Deployment) -> PriceSheet:
    prices = {Meter.INPUT_TOKENS: 1, Meter.OUTPUT_TOKENS: 2}
    return make_sheet(f"price-{deployment.id}", deployment.provider, "m", 0, Rates(prices, prices), "operator")


def choose(
    *deployments: Deployment, request: ChatRequest = REQUEST, unpriced: str = "", toolless: str = ""
) -> RoutePlan:
    def price_of(deployment: Deployment) -> PriceSheet:
        if deployment.provider in unpriced:
            raise UnknownPrice(deployment.id)
        return sheet(deployment)

    def capabilities_of(deployment: Deployment) -> Capabilities:
        return Capabilities(tools=deployment.provider not in toolless)

    needs = needed_features(request, "chat")
    return plan(request.model, needs, deployments, capabilities_of, price_of, random.Random(7).random)


def test_an_alias_an_open_provider_and_an_unknown_model() -> None:
    catalog = Catalog({"fast": (A,)}, {"groq": "groq"})
    assert catalog.deployments("fast") == (A,)
    assert catalog.deployments("groq/llama/3") == (Deployment("groq", "groq", "llama/3"),)
    for unknown in ("nope", "other/m", "groq/"):
        with pytest.raises(ModelNotFound, match="fast"):
            catalog.deployments(unknown)


def test_globs_limit_a_key() -> None:
    assert permits(None, "anything")
    assert permits(("groq/*", "fast"), "groq/llama")
    assert not permits(("groq/*",), "fast")
    assert not permits((), "fast")


def test_priority_goes_before_weight() -> None:
    first = Deployment("z", "openai_like", "m", weight=1, priority=0)
    second = Deployment("a", "openai_like", "m", weight=10**6, priority=1)
    assert [leg.deployment for leg in choose(second, first).legs] == [first, second]


def test_weights_share_the_first_place_in_proportion() -> None:
    heavy, light = Deployment("h", "x", "m", weight=3), Deployment("l", "x", "m", weight=1)
    chance = random.Random(1).random
    firsts = Counter(
        plan("m", frozenset({"chat"}), (heavy, light), lambda _: Capabilities(), sheet, chance)
        .legs[0]
        .deployment.provider
        for _ in range(4000)
    )
    assert firsts["h"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_what_cannot_do_it_is_out_and_named_when_nobody_can() -> None:
    asks = ChatRequest("m", REQUEST.messages, tools=(Tool("t"),))
    assert [leg.deployment for leg in choose(A, B, request=asks, toolless="a").legs] == [B]
    with pytest.raises(Unsupported, match="tools") as refusal:
        choose(A, B, request=asks, toolless="ab")
    assert refusal.value.features == ("tools",)


def test_an_engine_of_ours_is_sent_images_where_its_operator_says_so() -> None:
    asks = ChatRequest("m", (Message("user", (ImagePart(url="https://example.com/a.png"),)),))
    seeing = frozenset({"image_input"})
    blind, elsewhere = Deployment("own", "local", "m"), Deployment("b", "openai_like", "m")
    assert [leg.deployment for leg in choose(blind, elsewhere, request=asks).legs] == [elsewhere]
    with pytest.raises(Unsupported, match="image_input"):
        choose(blind, request=asks)
    assert choose(blind).legs
    assert choose(Deployment("own", "local", "m", features=seeing), request=asks).legs

    # Of the engine that `up` starts it is said once, for all names under which it is asked.
    place = DeploymentSettings(provider="local", model="m")
    local = LocalSettings(base_url="http://127.0.0.1:1/v1", model="m", capabilities=seeing)
    models = (ModelSettings(alias="mine", deployments=(place,)),)
    catalog = from_settings(Settings(local=local, models=models), PriceBook([], []))
    assert [catalog.deployments(name)[0].features for name in ("m", "local/m", "mine")] == [seeing] * 3


def test_unpriced_is_refused_not_free() -> None:
    assert [leg.deployment for leg in choose(A, B, unpriced="a").legs] == [B]
    with pytest.raises(UnpricedModel, match="farebox prices set"):
        choose(A, B, unpriced="ab")


async def test_the_next_leg_is_tried_only_where_it_may_help() -> None:
    route = RoutePlan(tuple(Leg(d, sheet(d)) for d in (A, B, C)))
    answers: dict[str, Exception | str] = {"a": Broken("500"), "b": AuthFailed("401"), "c": "here"}
    tried: list[str] = []

    async def attempt(leg: Leg) -> str:
        tried.append(leg.deployment.provider)
        answer = answers[leg.deployment.provider]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def fresh() -> Dispatcher:
        return Dispatcher(RetryTerms(), lambda: 1000.0, random.Random(3).random)

    arrival = await fresh().first_arrival(route, attempt)
    assert (arrival.got, arrival.leg.deployment, arrival.attempts) == ("here", C, 3)

    answers["c"] = ContextTooLong("too long")
    with pytest.raises(NoRouteLeft) as failure:
        await fresh().first_arrival(route, attempt)
    assert len(failure.value.attempts) == 3
    assert isinstance(failure.value.last, ContextTooLong)

    tried.clear()
    answers["a"] = Rejected("your fault")
    with pytest.raises(Rejected):
        await fresh().first_arrival(route, attempt)
    assert tried == ["a"]
