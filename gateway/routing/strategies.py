"""In which order equals are tried. Each strategy is a pure function; chance comes in as an argument.

Herd bound: two picks with replacement give the one that looks best of k deployments (2k - 1) / k**2 of the first
tries (k = 2: 3/4, k = 4: 7/16), however old the snapshot. Always taking the best would give it all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from billing.money import format_usd
from billing.prices import PriceSheet
from billing.rating import charge
from billing.usage import Meter
from gateway.config import Strategy
from gateway.routing.catalog import Deployment
from gateway.routing.health import Standing

Chance = Callable[[], float]


LIKELY_OUTPUT_TOKENS: Final = 1000


class Load(Struct, frozen=True):
    """The request's size. Units: tokens; input as usually counted. output_tokens: as the client limited each of its
    `answers`; None: it did not. An embedding has no answer."""

    input_tokens: int = 1000
    output_tokens: int | None = None
    answers: int = 1

    def likely(self) -> int:
        return self.answers * (self.output_tokens or LIKELY_OUTPUT_TOKENS)

    def longest(self, deployment: Deployment) -> int:
        most = deployment.most_output(self.output_tokens)
        return self.answers * (most if self.output_tokens is None else min(most, self.output_tokens))


LIKELY: Final = Load()


class Candidate(Struct, frozen=True):
    """A deployment that can do what is asked, and what is known of it. place: in the alias' own list."""

    deployment: Deployment
    sheet: PriceSheet
    standing: Standing
    place: int


class Choice(Struct, frozen=True):
    candidate: Candidate
    why: str


def price_pusd(sheet: PriceSheet, input_tokens: int, output_tokens: int) -> int:
    """What the client would be charged. Raises: UnknownPrice."""
    quantities = {Meter.INPUT_TOKENS: input_tokens, Meter.OUTPUT_TOKENS: output_tokens}
    return charge({meter: count for meter, count in quantities.items() if count}, sheet).sale_pusd


def order(strategy: Strategy, equals: Sequence[Candidate], load: Load, chance: Chance) -> list[Choice]:
    """All of them, each once. equals: of one priority and one condition, none of weight 0."""
    if strategy == "weighted":
        return _weighted(equals, chance)
    if strategy == "priority":
        return [Choice(c, f"place {c.place + 1}") for c in sorted(equals, key=lambda c: c.place)]
    if strategy == "lowest_cost":
        size = (load.input_tokens, load.likely())
        priced = sorted((price_pusd(c.sheet, *size), chance(), c.place, c) for c in equals)
        return [Choice(c, f"about {format_usd(pusd)} USD") for pusd, _, _, c in priced]
    if strategy == "lowest_latency":
        return [Choice(c, _seconds(c.standing)) for c in _two_picks(equals, lambda c: c.standing.expected_s, chance)]
    return [Choice(c, f"{c.standing.in_flight} in flight") for c in _two_picks(equals, _crowding, chance)]


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
