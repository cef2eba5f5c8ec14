"""The choice: request + catalogue + health -> RoutePlan. Pure; chance comes in as an argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct

from billing.errors import UnknownPrice
from billing.money import format_usd
from billing.prices import PriceSheet
from gateway.config import Strategy
from gateway.errors import InvalidRequest, UnpricedModel, Unsupported
from gateway.routing.catalog import AS_EVER, Deployment, Terms
from gateway.routing.health import CALM, Outlook
from gateway.routing.strategies import LIKELY, Candidate, Chance, Load, order, price_pusd
from providers.base import Capabilities
from providers.neutral import ChatRequest, ImagePart

PriceOf = Callable[[Deployment], PriceSheet]
CapabilitiesOf = Callable[[Deployment], Capabilities]


class Leg(Struct, frozen=True):
    """One deployment of a plan, with the price that its answer will be charged at. why: what put it in its place."""

    deployment: Deployment
    sheet: PriceSheet
    why: str = ""


class RoutePlan(Struct, frozen=True):
    """In the order to try. Never empty. left_out: deployment id -> why it may not be tried."""

    legs: tuple[Leg, ...]
    strategy: Strategy = "weighted"
    left_out: tuple[tuple[str, str], ...] = ()

    def told(self, leg: Leg) -> str:
        """For the client's `x-farebox-route`: which place in which order, and why."""
        place = next(at for at, mine in enumerate(self.legs, 1) if mine.deployment is leg.deployment)
        return f"{self.strategy}; {place}/{len(self.legs)}; {leg.why}"


def plan(
    alias: str,
    needs: frozenset[str],
    deployments: Sequence[Deployment],
    capabilities_of: CapabilitiesOf,
    price_of: PriceOf,
    chance: Chance,
    *,
    terms: Terms = AS_EVER,
    outlook: Outlook = CALM,
    load: Load = LIKELY,
) -> RoutePlan:
    """Constraints first, then who is well, then priority (lowest first), then the alias' strategy among equals.

    needs: the operation and the features that the request uses. A weight of 0 is a spare: behind its priority's others.
    Who is not well goes last, whoever is back soonest first, and is never left out: it may be all there is.
    Raises: Unsupported when no deployment can do what is asked; UnpricedModel when those that could have no price;
    InvalidRequest when those that have one are dearer than the alias allows.
    """
    able, left_out = _able(alias, needs, deployments, capabilities_of)
    candidates: list[Candidate] = []
    for place, deployment in able:
        try:
            sheet = price_of(deployment)
        except UnknownPrice:
            left_out.append((deployment.id, "no price"))
            continue
        candidates.append(Candidate(deployment, sheet, outlook.of(deployment.id), place))
    if not candidates:
        raise UnpricedModel(
            f"{alias!r} has no price, so it is not run; the operator sets one with `farebox prices set`",
            param="model",
        )
    if terms.most_pusd is not None:
        candidates = _affordable(alias, candidates, terms.most_pusd, load, left_out)
    if len(candidates) == 1:  # The commonest plan, and nothing to choose.
        only = candidates[0]
        return RoutePlan((Leg(only.deployment, only.sheet, _only(only)),), terms.strategy, tuple(left_out))
    return RoutePlan(tuple(_legs(candidates, terms.strategy, load, chance)), terms.strategy, tuple(left_out))


def _able(
    alias: str, needs: frozenset[str], deployments: Sequence[Deployment], capabilities_of: CapabilitiesOf
) -> tuple[list[tuple[int, Deployment]], list[tuple[str, str]]]:
    missing: set[str] = set()
    able: list[tuple[int, Deployment]] = []
    left_out: list[tuple[str, str]] = []
    for place, deployment in enumerate(deployments):
        if lacks := lacking(needs, capabilities_of(deployment)):
            missing.update(lacks)
            left_out.append((deployment.id, f"no {', '.join(sorted(lacks))}"))
        else:
            able.append((place, deployment))
    if not able:
        names = sorted(missing)
        raise Unsupported(f"no deployment of {alias!r} supports {', '.join(names)}", names)
    return able, left_out


def _affordable(
    alias: str, candidates: list[Candidate], most_pusd: int, load: Load, left_out: list[tuple[str, str]]
) -> list[Candidate]:
    prices = [(price_pusd(c.sheet, load.input_tokens, load.longest(c.deployment)), c) for c in candidates]
    kept = [c for pusd, c in prices if pusd <= most_pusd]
    if not kept:
        least = format_usd(min(pusd for pusd, _ in prices))
        raise InvalidRequest(
            f"{alias!r} allows {format_usd(most_pusd)} USD a request and this one may cost {least} USD; "
            "ask for fewer output tokens or send a shorter prompt",
            code="cost_ceiling_exceeded",
        )
    left_out.extend((c.deployment.id, f"may cost {format_usd(pusd)} USD") for pusd, c in prices if pusd > most_pusd)
    return kept


def _legs(candidates: Sequence[Candidate], strategy: Strategy, load: Load, chance: Chance) -> Iterator[Leg]:
    well: dict[tuple[int, bool], list[Candidate]] = {}
    unwell: list[Candidate] = []
    for candidate in candidates:
        if candidate.standing.well:
            deployment = candidate.deployment
            well.setdefault((deployment.priority, deployment.weight == 0), []).append(candidate)
        else:
            unwell.append(candidate)
    several = len({priority for priority, _ in well}) > 1
    for priority, spare in sorted(well):
        group = well[priority, spare]
        said = f"priority {priority}" if several else ""
        if len(group) == 1:
            yield Leg(group[0].deployment, group[0].sheet, said or "the only one well")
            continue
        said += ", " if said else ""
        if spare:
            yield from (Leg(c.deployment, c.sheet, f"{said}spare") for c in group)
        else:
            chosen = order(strategy, group, load, chance)
            yield from (Leg(c.candidate.deployment, c.candidate.sheet, said + c.why) for c in chosen)
    unwell.sort(key=lambda c: (c.standing.wait_s, c.deployment.priority, c.place))
    yield from (Leg(c.deployment, c.sheet, _unwell(c)) for c in unwell)


def _only(candidate: Candidate) -> str:
    return "the only one" if candidate.standing.well else f"the only one, {_unwell(candidate)}"


def _unwell(candidate: Candidate) -> str:
    return f"{candidate.standing.condition} for {candidate.standing.wait_s:.3g} s"


def needed_features(request: ChatRequest, operation: str) -> frozenset[str]:
    needs = {operation}
    if request.tools:
        needs.add("tools")
    if request.response_format is not None and request.response_format.kind != "text":
        needs.add("response_format")
    if request.logprobs:
        needs.add("logprobs")
    if request.candidates > 1:
        needs.add("candidates")
    if any(isinstance(part, ImagePart) for message in request.messages for part in message.content):
        needs.add("images")
    return frozenset(needs)


def lacking(needs: frozenset[str], capabilities: Capabilities) -> frozenset[str]:
    return frozenset(
        need
        for need in needs
        if not (need in capabilities.operations if need in _OPERATIONS else getattr(capabilities, need))
    )


_OPERATIONS = frozenset({"chat", "completions", "embeddings"})
