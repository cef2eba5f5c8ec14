"""Five mixes of prompts. Each says when its requests come and which blocks they share; lengths are tokens.

chat: conversations of several rounds, each resending all before it. system: few long system prompts, popular by Zipf's
law, under short questions. rag: a system prompt and five passages, popular by Zipf, in any order: little is shared.
cold: nothing is shared, and affinity can only do harm. agents: programs that call tools: a long prompt of one of three
kinds that all of a kind share, then many rounds in quick succession, each with what its tool said. Nothing of the
policy was chosen on `agents`: it is held out."""

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
        talk, own = next(serial), _own(rng)
        text = Text().more(600, "system")
        if own.random() < 0.5:
            text = text.more(own.randint(1000, 6000), ("document", talk))
        ask(talk, text, own.randint(3, 8), own)

    def ask(talk: int, text: Text, rounds: int, own: random.Random) -> None:
        text = text.more(own.randint(40, 250), ("question", talk, rounds))
        answer = own.randint(80, 400)

        def answered(now: float) -> None:
            if rounds > 1 and now < until:
                after = text.more(answer, ("answer", talk, rounds))
                fleet.at(now + own.expovariate(1 / 8.0), lambda: ask(talk, after, rounds - 1, own))

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


def agents(fleet: Fleet, send: Send, rate: float, until: float, rng: random.Random) -> None:
    """rate: new tasks a second, of 5 to 30 rounds."""
    kinds = [Text().more(tokens, ("tools", tokens)) for tokens in (4_000, 9_000, 14_000)]
    serial = count()

    def begin() -> None:
        task, own = next(serial), _own(rng)
        text = own.choices(kinds, (3, 2, 1))[0].more(own.randint(100, 800), ("task", task))
        ask(task, text, own.randint(5, 30), own)

    def ask(task: int, text: Text, rounds: int, own: random.Random) -> None:
        called = own.randint(30, 200)
        said = min(8_000, round(own.lognormvariate(6.0, 1.2)))

        def answered(now: float) -> None:
            if rounds > 1 and now < until:
                after = text.more(called + said, ("tool", task, rounds))
                fleet.at(now + own.expovariate(1 / 1.5), lambda: ask(task, after, rounds - 1, own))

        send(Job(text.tokens, text.blocks, called, fleet.now, answered, session=task))

    _arrivals(fleet, rate, until, rng, begin)


def _own(rng: random.Random) -> random.Random:
    """Of one conversation: what it asks does not hang on when others were answered, so every rule meets the same."""
    return random.Random(rng.getrandbits(64))


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
    "agents": agents,
}
