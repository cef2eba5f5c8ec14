"""A plan told to whoever asks: `farebox route explain`, and a request with the header `x-farebox-dry-run`."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from gateway.routing.health import CALM, Outlook
from gateway.routing.policy import RoutePlan, Try
from gateway.routing.strategies import Load, price_pusd

DRY_RUN: Final = "x-farebox-dry-run"


# More say nothing to a reader, and the row is kept for every request.
_LEGS_KEPT: Final = 12


class Way(Struct, frozen=True):
    """Where a request could go, why, and what came of each try: kept beside its usage row. legs, left_out: deployment
    and why; tries: deployment, how it ended, milliseconds. lost_pusd: about what the prompt cost at a deployment that
    answered second."""

    strategy: str
    legs: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...] = ()
    tries: tuple[Try, ...] = ()
    lost_pusd: int = 0


def way_of(plan: RoutePlan, tries: tuple[Try, ...], lost_pusd: int = 0) -> str | None:
    """None where there was nothing to choose and nothing failed: the row itself says who answered."""
    if len(plan.legs) == 1 and not plan.left_out and not tries:
        return None
    legs = tuple((leg.deployment.id, leg.why) for leg in plan.legs[:_LEGS_KEPT])
    way = Way(plan.strategy, legs, plan.left_out[:_LEGS_KEPT], tries[:_LEGS_KEPT], lost_pusd)
    return msgspec.json.encode(way).decode()


def explained(alias: str, plan: RoutePlan, load: Load, outlook: Outlook = CALM) -> dict[str, Any]:
    """Every deployment in the order it would be tried, who is left out, and why. Amounts in pUSD, `cached_tokens` as
    far as is known; `most_pusd` is what would be held for that one alone; `second_pusd`: what `auto` pays
    to save a second."""
    legs = []
    for place, leg in enumerate(plan.legs, 1):
        standing = outlook.of(leg.deployment.id)
        cached = max(0, load.input_tokens - leg.fresh_tokens)
        legs.append(
            {
                "place": place,
                "deployment": leg.deployment.id,
                "kind": leg.deployment.kind,
                "region": leg.deployment.region,
                "priority": leg.deployment.priority,
                "weight": leg.deployment.weight,
                "condition": standing.condition,
                "probe": standing.found or None,
                "in_flight": standing.in_flight,
                "first_token_s": standing.first_token_s,
                "cached_tokens": cached,
                "likely_pusd": price_pusd(leg.sheet, load, load.likely(), cached),
                "most_pusd": price_pusd(leg.sheet, load, load.longest(leg.deployment)),
                "price_id": leg.sheet.id,
                "why": leg.why,
            }
        )
    left_out = [{"deployment": name, "why": why} for name, why in plan.left_out]
    told = {"model": alias, "strategy": plan.strategy, "ceiling_pusd": plan.terms.most_pusd}
    if plan.strategy == "auto":
        told["second_pusd"] = plan.terms.second_pusd
    return told | {"legs": legs, "left_out": left_out}
