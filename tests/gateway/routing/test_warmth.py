"""The index of warm prefixes: as good as a walk through every block, bounded, and never across tenants."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.prices import Rates, make_sheet
from billing.usage import Meter
from gateway.routing.catalog import Deployment, Terms, least_kept
from gateway.routing.fallback import Dispatcher
from gateway.routing.policy import Leg, RoutePlan, plan
from gateway.routing.retries import RetryTerms
from gateway.routing.strategies import Load
from gateway.routing.warmth import (
    BLOCK_BYTES,
    BLOCKS_MAX,
    TOKENS_PER_BLOCK,
    Cache,
    Warmth,
    chain_of,
    chain_of_bytes,
    kept_s,
)
from providers.base import Capabilities
from providers.neutral import ChatRequest, Message, TextPart, Tool
from providers.neutral.content import CachePoint

ALL = {"a": Cache(), "b": Cache()}


def request(*turns: str, tools: tuple[Tool, ...] = ()) -> ChatRequest:
    roles = ("user", "assistant")
    said = tuple(Message(roles[n % 2], (TextPart(text),)) for n, text in enumerate(turns))
    return ChatRequest("m", said, tools=tools)


def test_a_conversation_that_goes_on_shares_the_chain_of_its_beginning() -> None:
    first = chain_of(request("x" * 5000), "org")
    second = chain_of(request("x" * 5000, "an answer" * 300, "and then?"), "org")
    assert len(first) == 5000 // BLOCK_BYTES
    assert second[: len(first)] == first
    assert len(second) > len(first)
    assert chain_of(request("x" * 5000), "another") != first
    assert chain_of(request("x" * 5000, tools=(Tool("f"),)), "org")[0] != first[0]
    assert len(chain_of_bytes(b"x" * 10**6, "org")) == BLOCKS_MAX
    assert chain_of_bytes(b"x" * (BLOCK_BYTES - 1), "org") == ()


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.floats(0, 10)), max_size=30),
    st.lists(st.integers(0, 3), min_size=1, max_size=8),
    st.integers(1, 12),
    st.none() | st.floats(1, 60),
)
@settings(max_examples=200, deadline=None)
def test_halving_finds_what_a_walk_finds_and_nothing_outgrows_its_cache(
    kept: list[tuple[list[int], float]], asked: list[int], room: int, seconds: float | None
) -> None:
    """Texts over four letters share prefixes all the time."""

    def chain(letters: list[int]) -> tuple[int, ...]:
        return chain_of_bytes(b"".join(bytes([letter]) * BLOCK_BYTES for letter in letters), "org")

    warmth, now = Warmth(), 0.0
    cache = Cache(room * TOKENS_PER_BLOCK, seconds)
    for letters, gap in kept:
        now += gap
        warmth.keep("a", cache, chain(letters), now)
        assert len(warmth) <= room
    held = warmth._held.get("a")
    walked = 0
    for block in chain(asked):
        seen = None if held is None else held._blocks.get(block)
        if seen is None or (seconds is not None and seen <= now - seconds):
            break
        walked += 1
    found = warmth.tokens({"a": cache}, chain(asked), now)
    assert found == ({"a": walked * TOKENS_PER_BLOCK} if walked else {})


def test_what_was_used_last_stays_and_the_deepest_of_the_oldest_goes_first() -> None:
    warmth, cache = Warmth(), Cache(4 * TOKENS_PER_BLOCK)
    one, other = chain_of_bytes(b"1" * 4 * BLOCK_BYTES, "org"), chain_of_bytes(b"2" * 2 * BLOCK_BYTES, "org")
    warmth.keep("a", cache, one, 0.0)
    warmth.keep("a", cache, other, 1.0)
    assert warmth.tokens({"a": cache}, one, 1.0) == {"a": 2 * TOKENS_PER_BLOCK}
    assert warmth.tokens({"a": cache}, other, 1.0) == {"a": 2 * TOKENS_PER_BLOCK}


def test_all_deployments_together_stay_within_the_bound() -> None:
    warmth = Warmth(entries_max=100)
    for n in range(200):
        warmth.keep(f"d{n % 4}", Cache(), chain_of_bytes(random.Random(n).randbytes(5 * BLOCK_BYTES), "org"), float(n))
        assert len(warmth) <= 100
    for name in set(warmth.names()) - {"d1"}:
        warmth.drop(name)
    assert 0 < len(warmth) <= 25


def test_a_hosted_cache_forgets_after_its_time() -> None:
    warmth, cache = Warmth(), Cache(10_000, 300.0)
    chain = chain_of_bytes(b"1" * 3 * BLOCK_BYTES, "org")
    warmth.keep("a", cache, chain, 0.0)
    assert warmth.tokens({"a": cache}, chain, 299.0)
    assert not warmth.tokens({"a": cache}, chain, 301.0)


def test_what_is_too_short_to_be_kept_is_warm_nowhere() -> None:
    hosted = Cache(10_000_000, 300.0, least_kept("bedrock", "eu.anthropic.claude-haiku-4-5-20251001-v1:0"))
    assert hosted.least == 4096
    warmth = Warmth()
    for blocks, tokens in ((63, 0), (64, 4096)):
        chain = chain_of_bytes(bytes([blocks]) * blocks * BLOCK_BYTES, "org")
        for name in ("hosted", "own"):
            warmth.keep(name, hosted if name == "hosted" else Cache(), chain, 0.0)
        found = warmth.tokens({"hosted": hosted, "own": Cache()}, chain, 1.0)
        assert found == ({"hosted": tokens} if tokens else {}) | {"own": blocks * TOKENS_PER_BLOCK}


@pytest.mark.parametrize(("kind", "model", "least"), [
    ("anthropic", "claude-sonnet-4-5", 1024), ("anthropic", "claude-opus-4-6", 4096),
    ("vertex", "claude-3-haiku", 2048), ("bedrock", "us.anthropic.claude-opus-4-7-v1", 4096),
    ("anthropic", "claude-opus-5", 512),
    ("gemini", "gemini-2.5-flash", 2048), ("vertex", "gemini-3.8-flash", 4096), ("openai", "gpt-5-mini", 1024),
    ("azure_ai", "my-own-name", 1024), ("local", "qwen3", 0), ("openai_like", "claude-like", 0), ("groq", "llama", 0),
])  # fmt: skip
def test_the_shortest_prefix_that_each_host_keeps(kind: str, model: str, least: int) -> None:
    assert least_kept(kind, model) == least


def marked(*ttls: str | None) -> ChatRequest:
    """Parts with these markers; "" has none."""
    parts = tuple(TextPart("x", cache=None if ttl == "" else CachePoint(ttl)) for ttl in ttls)  # type: ignore[arg-type]
    return ChatRequest("m", (Message("user", parts),))


def test_a_prompt_is_kept_as_long_as_its_last_marker_says() -> None:
    assert kept_s(marked("")) is None
    assert kept_s(marked(None)) is None
    assert kept_s(marked("1h", "5m")) == 300.0
    assert kept_s(marked("1h", "")) == 3600.0
    assert kept_s(ChatRequest("m", (), tools=(Tool("f", cache=CachePoint("1h")),))) == 3600.0


@pytest.mark.parametrize(("kind", "asked_s", "gone_s"), [
    ("anthropic", 3600.0, 3600.0), ("anthropic", None, 300.0), ("openai", 3600.0, 300.0),
])  # fmt: skip
def test_who_does_as_it_is_asked_is_warm_for_an_hour(kind: str, asked_s: float | None, gone_s: float) -> None:
    now = 1000.0
    dispatcher = Dispatcher(RetryTerms(), lambda: now, random.Random(0).random)
    places = [Deployment(f"p{n}", kind, "m", cache=Cache(10_000, 300.0)) for n in range(2)]
    chain = chain_of_bytes(b"1" * 3 * BLOCK_BYTES, "org")
    dispatcher.promised(RoutePlan(tuple(Leg(place, SHEET) for place in places), chain=chain, asked_s=asked_s))
    now += gone_s - 1
    assert dispatcher.warm(places, chain) == {"p0/m": 3 * TOKENS_PER_BLOCK}
    now += 2
    assert dispatcher.warm(places, chain) == {}


# The dispatcher learns, and is told when it was wrong.

PRICES = {Meter.INPUT_TOKENS: 5, Meter.CACHE_READ_TOKENS: 1, Meter.OUTPUT_TOKENS: 20}
SHEET = make_sheet("price", "x", "m", 0, Rates(PRICES, PRICES), "operator")
PLACES = tuple(Deployment(f"p{n}", "x", "m") for n in range(4))


class House:
    def __init__(self, seed: int = 0) -> None:
        self.now = 0.0
        self.chance = random.Random(seed).random
        self.dispatcher = Dispatcher(RetryTerms(), lambda: self.now, self.chance)

    def plan(self, chain: tuple[int, ...], strategy: str = "prefix") -> RoutePlan:
        route = plan(
            "m",
            frozenset({"chat"}),
            PLACES,
            lambda _: Capabilities(),
            lambda _: SHEET,
            self.chance,
            terms=Terms(strategy),  # type: ignore[arg-type]
            outlook=self.dispatcher.outlook([d.id for d in PLACES]),
            load=Load(len(chain) * TOKENS_PER_BLOCK, 50),
            warm=self.dispatcher.warm(PLACES, chain),
        )
        return self.dispatcher.promised(RoutePlan(route.legs, route.strategy, route.left_out, chain))

    async def ask(self, chain: tuple[int, ...], cached: int | None = None, strategy: str = "prefix") -> str:
        route = self.plan(chain, strategy)

        async def attempt(leg: object) -> None:
            self.now += 0.5

        arrival = await self.dispatcher.first_arrival(route, attempt, streams=True)
        arrival.journey.end(50, cached)
        return arrival.leg.deployment.id


async def test_a_prompt_goes_back_to_who_has_read_its_beginning() -> None:
    for seed in range(5):
        house = House(seed)
        talk = random.Random(seed).randbytes(40 * BLOCK_BYTES)
        first = await house.ask(chain_of_bytes(talk[: 20 * BLOCK_BYTES], "org"))
        for end in range(21, 41):
            chain = chain_of_bytes(talk[: end * BLOCK_BYTES], "org")
            assert await house.ask(chain, len(chain) * TOKENS_PER_BLOCK) == first
        assert await house.ask(chain_of_bytes(talk, "org"), strategy="lowest_cost") == first


@pytest.mark.parametrize("strategy", ["prefix", "auto", "lowest_cost"])
async def test_an_empty_index_is_seeded_by_the_first_prompt_and_by_one_on_its_way(strategy: str) -> None:
    """A trap of others: a tree that is filled only where it matched already stays empty, and all is chance for ever."""
    house = House()
    assert len(house.dispatcher.warmth) == 0
    chains = [chain_of_bytes(random.Random(n).randbytes(20 * BLOCK_BYTES), "org") for n in range(8)]
    for chain in chains:
        first = house.plan(chain, strategy).legs[0].deployment.id
        # Nobody has answered yet: the choice itself is known.
        assert house.dispatcher.warm(PLACES, chain) == {first: 20 * TOKENS_PER_BLOCK}
    house.now += 60.0
    for chain in chains:
        (there,) = house.dispatcher.warm(PLACES, chain)
        assert await house.ask(chain, 20 * TOKENS_PER_BLOCK, strategy) == there


async def test_auto_does_not_queue_at_one_for_nothing() -> None:
    """A second that is worth nothing, a cache read that costs as much as reading: the same price everywhere, and one
    holds what all share. Still nobody waits there in line while others are idle."""
    house = House()
    shared = random.Random(1).randbytes(8 * BLOCK_BYTES)
    await house.ask(chain_of_bytes(shared, "org"))
    prices = {Meter.INPUT_TOKENS: 5, Meter.CACHE_READ_TOKENS: 5, Meter.OUTPUT_TOKENS: 20}
    flat = make_sheet("flat", "x", "m", 0, Rates(prices, prices), "operator")
    firsts: Counter[str] = Counter()
    for n in range(1000):
        chain = chain_of_bytes(shared + random.Random(n).randbytes(4 * BLOCK_BYTES), "org")
        route = plan(
            "m", frozenset({"chat"}), PLACES, lambda _: Capabilities(), lambda _: flat, house.chance,
            terms=Terms("auto", second_pusd=0), outlook=house.dispatcher.outlook([d.id for d in PLACES]),
            load=Load(len(chain) * TOKENS_PER_BLOCK, 50), warm=house.dispatcher.warm(PLACES, chain),
        )  # fmt: skip
        firsts[house.dispatcher.promised(RoutePlan(route.legs, chain=chain)).legs[0].deployment.id] += 1
    assert len(firsts) == len(PLACES)
    assert max(firsts.values()) <= 300


async def test_cold_prompts_spread() -> None:
    house = House()
    prompts = [chain_of_bytes(random.Random(n).randbytes(20 * BLOCK_BYTES), "org") for n in range(200)]
    asked = Counter([await house.ask(chain) for chain in prompts])
    assert len(asked) == len(PLACES)
    assert max(asked.values()) <= 90


async def test_a_system_prompt_that_all_share_does_not_tie_everybody_to_one() -> None:
    """A thousand at one instant: each choice counts for the next, so the warm one fills up and the rest share."""
    house = House()
    shared = random.Random(1).randbytes(8 * BLOCK_BYTES)
    await house.ask(chain_of_bytes(shared, "org"))
    firsts = Counter(
        house.plan(chain_of_bytes(shared + random.Random(n).randbytes(4 * BLOCK_BYTES), "org")).legs[0].deployment.id
        for n in range(1000)
    )
    assert len(firsts) == len(PLACES)
    assert max(firsts.values()) <= 300


async def test_one_that_finds_nothing_cached_is_not_believed_to_hold_anything() -> None:
    house = House()
    chain = chain_of_bytes(b"1" * 20 * BLOCK_BYTES, "org")
    there = await house.ask(chain)
    elsewhere = chain_of_bytes(b"2" * 20 * BLOCK_BYTES, "org")
    house.dispatcher.warmth.keep(there, Cache(), elsewhere, house.now)
    assert await house.ask(chain, cached=0) == there  # it was restarted
    assert house.dispatcher.warm(PLACES, chain) == {there: 20 * TOKENS_PER_BLOCK}  # but has read this one now
    assert house.dispatcher.warm(PLACES, elsewhere) == {}


async def test_a_choice_whose_call_never_begins_is_forgotten_in_time() -> None:
    house = House()
    chain = chain_of_bytes(b"1" * 20 * BLOCK_BYTES, "org")
    route = house.plan(chain)
    chosen = route.legs[0].deployment.id
    assert house.dispatcher.outlook([chosen]).of(chosen).in_flight == 1
    house.now += 3.0
    standing = house.dispatcher.outlook([chosen]).of(chosen)
    assert (standing.in_flight, standing.queued_tokens) == (0, 0)
