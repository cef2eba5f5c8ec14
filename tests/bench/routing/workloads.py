"""Four mixes of prompts. Each says when its requests come and which blocks they share; lengths are tokens.

chat: conversations of several rounds, each resending all before it. system: few long system prompts, popular by Zipf's
law, under short questions. rag: a system prompt and five passages, popular by Zipf, in any order: little is shared.
cold: nothing is shared, and affinity can only do harm."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import count

from tests.bench.routing.replicas import BLOCK_TOKENS, Fleet, Job

Send = Callable[[Job], bool]


class Text:
    """A prompt that grows: its blocks, each named by all before it."""

    __slots__ = ("blocks", "tokens")

    def __init__(self, blocks: tuple[int, ...] = (), tokens: int = 0) -> None:
        self.blocks = blocks
        self.tokens = tokens

    def more(self, tokens: int, what: object) -> Text:
        total = self.tokens + tokens
        blocks = list(self.blocks)
        for n in range(len(blocks), total // BLOCK_TOKENS):
            named = f"{blocks[-1] if blocks else 0} {n} {what}".encode()
            blocks.append(int.from_bytes(blake2b(named, digest_size=8).digest(), "big"))
        return Text(tuple(blocks), total)


def chat(fleet: Fleet, send: Send, rate: float, until: float, rng: random.Random) -> None:
    """rate: new conversations a second. 8 rounds at most; a document or code at the start of half of them."""
    serial = count()

    def begin() -> None:
        talk = next(serial)
        text = Text().more(600, "system")
        if rng.random() < 0.5:
            text = text.more(rng.randint(1000, 6000), ("document", talk))
        ask(talk, text, rng.randint(3, 8))

    def ask(talk: int, text: Text, rounds: int) -> None:
        text = text.more(rng.randint(40, 250), ("question", talk, rounds))
        answer = rng.randint(80, 400)

        def answered(now: float) -> None:
            if rounds > 1 and now < until:
                after = text.more(answer, ("answer", talk, rounds))
                fleet.at(now + rng.expovariate(1 / 8.0), lambda: ask(talk, after, rounds - 1))

        send(Job(text.tokens, text.blocks, answer, fleet.now, answered, session=talk))

    _arrivals(fleet, rate, until, rng, begin)


def system(fleet: Fleet, send: Send, rate: float, until: float, rng: random.Random) -> None:
    prompts = [Text().more(rng.randint(1500, 6000), ("system", n)) for n in range(40)]
    weights = [1 / (n + 1) for n in range(len(prompts))]
    serial = count()

    def begin() -> None:
        n = next(serial)
        text = rng.choices(prompts, weights)[0].more(rng.randint(50, 300), ("question", n))
        send(Job(text.tokens, text.blocks, rng.randint(50, 250), fleet.now, session=n))

    _arrivals(fleet, rate, until, rng, begin)


def rag(fleet: Fleet, send: Send, rate: float, until: float, rng: random.Random) -> None:
    weights = [1 / (n + 1) for n in range(5000)]
    serial = count()

    def begin() -> None:
        n = next(serial)
        text = Text().more(500, "system")
        for passage in rng.choices(range(len(weights)), weights, k=5):
            text = text.more(500, ("passage", passage))
        text = text.more(rng.randint(30, 150), ("question", n))
        send(Job(text.tokens, text.blocks, rng.randint(80, 300), fleet.now, session=n))

    _arrivals(fleet, rate, until, rng, begin)


def cold(fleet: Fleet, send: Send, rate: float, until: float, rng: random.Random) -> None:
    serial = count()

    def begin() -> None:
        n = next(serial)
        text = Text().more(rng.randint(200, 6000), ("all its own", n))
        send(Job(text.tokens, text.blocks, rng.randint(50, 400), fleet.now, session=n))

    _arrivals(fleet, rate, until, rng, begin)


def _arrivals(fleet: Fleet, rate: float, until: float, rng: random.Random, begin: Callable[[], None]) -> None:
    def times() -> Iterator[float]:
        now = 0.0
        while now < until:
            now += rng.expovariate(rate)
            yield now

    for when in times():
        fleet.at(when, begin)


MIXES: dict[str, Callable[[Fleet, Send, float, float, random.Random], None]] = {
    "chat": chat,
    "system": system,
    "rag": rag,
    "cold": cold,
}
