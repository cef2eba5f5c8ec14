"""In which order equals are tried. Each strategy is a pure function; chance comes in as an argument.

`auto` puts one price on money and time: what the request would cost, and what its client's seconds are worth. `prefix`
is the same where only time counts. Both know which deployment still holds the prompt's beginning (`warmth.py`), and
what each has promised to read already: an overloaded warm one loses to a cold one as soon as that is sooner.

Herd bound: two picks with replacement give the one that looks best of k deployments (2k - 1) / k**2 of the first
tries (k = 2: 3/4, k = 4: 7/16), however old the snapshot. Always taking the best would give it all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import log
from statistics import median
from typing import Final

from msgspec import Struct

from billing.money import format_usd
from billing.prices import PriceSheet
from billing.rating import BY_TOKENS, Counts, charge, priced
from billing.usage import Meter
from gateway.config import Strategy
from gateway.routing.catalog import Deployment
from gateway.routing.health import Standing

Chance = Callable[[], float]


# Those that look at who holds the prompt's beginning; the others are spared the hashing.
ASK_FOR_PROMPT: Final = frozenset({"prefix", "auto", "lowest_cost"})
LIKELY_OUTPUT_TOKENS: Final = 1000
# Tokens/s read by a deployment that nobody has measured, where its equals are unmeasured too.
UNKNOWN_INPUT_TOKENS_PER_S: Final = 5_000.0
# What an answer in the making takes from reading, in tokens of input: a step serves both.
DECODING_TOKENS: Final = 64
# How much of a prompt's reading each that waits, and each that writes, is kept up by.
WAITING_SHARE: Final = 4.0
DECODING_SHARE: Final = 0.02
# Costs within this share, or this many seconds, are the same: chance then spreads cold prompts.
NEAR_SHARE: Final = 0.05
NEAR_S: Final = 0.020


class Load(Struct, frozen=True):
    """The request's size. Units: tokens; input as usually counted. output_tokens: as the client limited each of its
    `answers`; None: it did not. An embedding has no answer. session: whose conversation it is part of. key: who asks,
    for this alias. counts: of what is not sold by its text, in place of the tokens."""

    input_tokens: int = 1000
    output_tokens: int | None = None
    answers: int = 1
    session: str = ""
    key: str = ""
    counts: Counts = BY_TOKENS

    def likely(self) -> int:
        return self.answers * (self.output_tokens or LIKELY_OUTPUT_TOKENS)

    def longest(self, deployment: Deployment) -> int:
        most = deployment.most_output(self.output_tokens)
        return self.answers * (most if self.output_tokens is None else min(most, self.output_tokens))


LIKELY: Final = Load()


class Candidate(Struct, frozen=True):
    """A deployment that can do what is asked, and what is known of it. place: in the alias' own list. cached_tokens: of
    the prompt, which it need not read again."""

    deployment: Deployment
    sheet: PriceSheet
    standing: Standing
    place: int
    cached_tokens: int = 0


class Choice(Struct, frozen=True):
    candidate: Candidate
    why: str


def price_pusd(sheet: PriceSheet, load: Load, output_tokens: int, cached_tokens: int = 0) -> int:
    """What the client would be charged. cached_tokens: of the input. Raises: UnknownPrice."""
    if load.counts:
        return charge(priced(load.counts, sheet) or {}, sheet).sale_pusd
    cached = min(cached_tokens, load.input_tokens)
    quantities = {
        Meter.INPUT_TOKENS: load.input_tokens - cached,
        Meter.CACHE_READ_TOKENS: cached,
        Meter.OUTPUT_TOKENS: output_tokens,
    }
    return charge({meter: count for meter, count in quantities.items() if count}, sheet).sale_pusd


def order(
    strategy: Strategy, equals: Sequence[Candidate], load: Load, chance: Chance, *, second_pusd: int = 0
) -> list[Choice]:
    """All of them, each once. equals: of one priority and one condition, none of weight 0.
    second_pusd: what `auto` pays to save its client a second."""
    match strategy:
        case "weighted":
            return _weighted(equals, chance)
        case "priority":
            return [Choice(c, f"place {c.place + 1}") for c in sorted(equals, key=lambda c: c.place)]
        case "lowest_cost":
            return _cheapest(equals, load, chance)
        case "lowest_latency":
            quickest = _two_picks(equals, lambda c: c.standing.expected_s, chance)
            return [Choice(c, _seconds(c.standing)) for c in quickest]
        case "least_busy":
            return [Choice(c, f"{c.standing.in_flight} in flight") for c in _two_picks(equals, _crowding, chance)]
        case "most_quota":
            return [Choice(c, _quota(c.standing)) for c in _two_picks(equals, lambda c: -c.standing.quota_left, chance)]
        case "sticky":
            return _pinned(equals, load.session, "this session's own")
        case "split":
            return _pinned(equals, load.key, "this key's own")
        case "prefix":
            return _soonest(equals, load, chance)
        case "auto":
            return _dearest_last(equals, load, chance, second_pusd)


def _weighted(equals: Sequence[Candidate], chance: Chance) -> list[Choice]:
    # Efraimidis and Spirakis: sorting by draw ** (1 / weight), greatest first, is a weighted order without replacement.
    total = sum(c.deployment.weight for c in equals)
    drawn = sorted((-(chance() ** (1 / c.deployment.weight)), c.place, c) for c in equals)
    return [Choice(c, f"weight {c.deployment.weight} of {total}") for _, _, c in drawn]


def _two_picks(equals: Sequence[Candidate], burden: Callable[[Candidate], float], chance: Chance) -> list[Candidate]:
    """Of two random ones, the same one twice included, the lighter goes first; then the rest likewise.

    Ties go to the first pick: a fixed rule would send every tie to one."""
    left = list(equals)
    ordered: list[Candidate] = []
    while left:
        one, other = (left[min(int(chance() * len(left)), len(left) - 1)] for _ in range(2))
        chosen = other if burden(other) < burden(one) else one
        left.remove(chosen)
        ordered.append(chosen)
    return ordered


def _crowding(candidate: Candidate) -> float:
    return (candidate.standing.in_flight + 1) / candidate.deployment.weight


def _seconds(standing: Standing) -> str:
    if standing.answer_s is None:
        return "not measured yet"
    return f"{standing.expected_s:.3g} s expected"


def _cheapest(equals: Sequence[Candidate], load: Load, chance: Chance) -> list[Choice]:
    by_price = sorted((price_pusd(c.sheet, load, load.likely(), c.cached_tokens), chance(), c.place, c) for c in equals)
    return [Choice(c, f"about {format_usd(pusd)} USD{_warm(c)}") for pusd, _, _, c in by_price]


def _quota(standing: Standing) -> str:
    return f"{standing.quota_left:.0%} of its quota left"


def _pinned(equals: Sequence[Candidate], to: str, why: str) -> list[Choice]:
    """Rendezvous hashing: every gateway agrees without asking, and who joins or leaves moves only its own share.

    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998); weights by -w / ln(h)."""

    def score(candidate: Candidate) -> float:
        key = f"{to}\x1f{candidate.deployment.id}".encode()
        drawn = (int.from_bytes(blake2b(key, digest_size=8).digest(), "big") + 1) / (2**64 + 1)
        return candidate.deployment.weight / log(drawn)

    return [Choice(c, why if at == 0 else "next") for at, c in enumerate(sorted(equals, key=score))]


def first_token_s(candidate: Candidate, load: Load, input_tokens_per_s: float) -> float:
    """Seconds until this prompt's first token, and those that reading it takes from others: it waits for what was
    promised before it, shares each step with the answers in the making, and what it has to read anew keeps up whoever
    waits or writes there. The last is why a warm but busy one still wins under load: a prompt that moves is read twice.

    The three weights are measured: `python -m tests.bench.routing`."""
    standing = candidate.standing
    fresh = max(0, load.input_tokens - candidate.cached_tokens)
    waiting = standing.in_flight - standing.decoding
    kept_up = fresh * (WAITING_SHARE * waiting + DECODING_SHARE * standing.decoding)
    work = standing.queued_tokens + fresh + kept_up + DECODING_TOKENS * standing.decoding
    return work / (standing.input_tokens_per_s or input_tokens_per_s)


def _soonest(equals: Sequence[Candidate], load: Load, chance: Chance) -> list[Choice]:
    rate = _usual_rate(equals)
    seconds = [(first_token_s(c, load, rate), c) for c in equals]
    nearly = min(s for s, _ in seconds) * (1 + NEAR_SHARE) + NEAR_S
    # Among those that are as good as the best, the warmest; then whose turn it is, so that prompts that are cold, or
    # warm everywhere, come evenly: who has least in flight has often just begun a step, and is asked twice within it.
    placed = sorted((max(s, nearly), -c.cached_tokens, _turn(c), chance(), c.place, s, c) for s, c in seconds)
    return [Choice(c, f"{s:.3g} s expected{_warm(c)}") for *_, s, c in placed]


def _turn(candidate: Candidate) -> float:
    return -candidate.standing.unasked_s * candidate.deployment.weight


def _dearest_last(equals: Sequence[Candidate], load: Load, chance: Chance, second_pusd: int) -> list[Choice]:
    rate = _usual_rate(equals)
    priced = []
    for candidate in equals:
        wait = first_token_s(candidate, load, rate)
        if speed := candidate.standing.tokens_per_s:
            wait += load.likely() / speed
        price = price_pusd(candidate.sheet, load, load.likely(), candidate.cached_tokens)
        priced.append((price + second_pusd * wait, price, wait, candidate))
    nearly = min(total for total, *_ in priced) * (1 + NEAR_SHARE)
    soon = min(wait for total, _, wait, _ in priced if total <= nearly) * (1 + NEAR_SHARE) + NEAR_S
    # Among those that cost nearly the same, as `_soonest` does: where a second is worth nothing, the one that holds a
    # prompt which all share would otherwise be asked for ever, however long its queue.
    placed = sorted(
        (max(total, nearly), max(s, soon), -c.cached_tokens, _turn(c), chance(), c.place, price, s, c)
        for total, price, s, c in priced
    )
    return [Choice(c, f"about {format_usd(pusd)} USD and {s:.3g} s{_warm(c)}") for *_, pusd, s, c in placed]


def _usual_rate(equals: Sequence[Candidate]) -> float:
    """For those that nobody has measured: as quick as the rest."""
    known = [c.standing.input_tokens_per_s for c in equals if c.standing.input_tokens_per_s]
    return median(known) if known else UNKNOWN_INPUT_TOKENS_PER_S


def _warm(candidate: Candidate) -> str:
    return f", {candidate.cached_tokens} tokens cached" if candidate.cached_tokens else ""
