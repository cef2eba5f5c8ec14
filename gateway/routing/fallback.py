"""Tries a plan's legs in order until one gives a first event. After that there is no second try."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from msgspec import Struct

from gateway.errors import NoRouteLeft
from gateway.routing.policy import Leg, RoutePlan
from providers.errors import AuthFailed, ContextTooLong, ProviderError

T = TypeVar("T")


class Arrival(Struct, Generic[T], frozen=True):
    """What came of it: the first leg that answered, and how many were tried."""

    got: T
    leg: Leg
    attempts: int


async def first_arrival(plan: RoutePlan, attempt: Callable[[Leg], Awaitable[T]]) -> Arrival[T]:
    """Raises: the ProviderError at once where another deployment would say the same (the client's own mistake);
    NoRouteLeft with every attempt's story once the plan is used up."""
    stories: list[str] = []
    last: ProviderError | None = None
    for number, leg in enumerate(plan.legs, 1):
        try:
            return Arrival(await attempt(leg), leg, number)
        except ProviderError as error:
            if not (error.retryable or isinstance(error, AuthFailed | ContextTooLong)):
                raise
            stories.append(f"{leg.deployment.id}: {error.message}")
            last = error
    raise NoRouteLeft("; ".join(stories), attempts=stories, last=last)
