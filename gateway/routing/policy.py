"""The choice: request + catalogue -> RoutePlan. Pure; chance comes in as an argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from billing.errors import UnknownPrice
from billing.prices import PriceSheet
from gateway.errors import UnpricedModel, Unsupported
from gateway.routing.catalog import Deployment
from providers.base import Capabilities
from providers.neutral import ChatRequest, ImagePart

PriceOf = Callable[[Deployment], PriceSheet]
CapabilitiesOf = Callable[[Deployment], Capabilities]


class Leg(Struct, frozen=True):
    """One deployment of a plan, with the price that its answer will be charged at."""

    deployment: Deployment
    sheet: PriceSheet


class RoutePlan(Struct, frozen=True):
    """In the order to try. Never empty."""

    legs: tuple[Leg, ...]


def plan(
    alias: str,
    needs: frozenset[str],
    deployments: Sequence[Deployment],
    capabilities_of: CapabilitiesOf,
    price_of: PriceOf,
    chance: Callable[[], float],
) -> RoutePlan:
    """Constraints first, then priority (lowest first), then a weighted draw among equals.

    needs: the operation and the features that the request uses.
    Raises: Unsupported when no deployment can do what is asked; UnpricedModel when those that could have no price.
    """
    missing: set[str] = set()
    able: list[Deployment] = []
    for deployment in deployments:
        lacks = lacking(needs, capabilities_of(deployment))
        missing.update(lacks)
        if not lacks:
            able.append(deployment)
    if not able:
        names = sorted(missing)
        raise Unsupported(f"no deployment of {alias!r} supports {', '.join(names)}", names)
    legs: list[Leg] = []
    for deployment in able:
        try:
            legs.append(Leg(deployment, price_of(deployment)))
        except UnknownPrice:
            continue
    if not legs:
        raise UnpricedModel(
            f"{alias!r} has no price, so it is not run; the operator sets one with `farebox prices set`",
            param="model",
        )
    return RoutePlan(tuple(sorted(legs, key=lambda leg: _rank(leg.deployment, chance()))))


def _rank(deployment: Deployment, draw: float) -> tuple[int, float]:
    # Efraimidis and Spirakis: sorting by draw ** (1 / weight), greatest first, is a weighted order without replacement.
    return deployment.priority, -(draw ** (1 / deployment.weight)) if deployment.weight > 0 else 1.0


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
