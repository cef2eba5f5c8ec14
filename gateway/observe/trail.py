"""The trace of the request that this task serves: one word for everything on its way, nothing where none is kept.

A context variable, since it concerns all stages and belongs to none. Free of OpenTelemetry: `traces.py` speaks that."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from billing.usage import UsageRecord
    from gateway.routing.policy import Leg


class Attempt(Protocol):
    """One call to a provider."""

    def end(self, error: BaseException | None = None) -> None:
        """Idempotent."""


class Trail(Protocol):
    """One request."""

    def attempt(self, leg: Leg, number: int) -> Attempt:
        """Begun now; what the call sends on carries it."""

    def settled(self, record: UsageRecord) -> None:
        """It has ended and its use is known."""

    def refused(self, code: str, status: int) -> None:
        """It has ended without any."""

    def end(self) -> None:
        """Idempotent: of what is not paid for, as lists of models."""


TRAIL: Final[ContextVar[Trail | None]] = ContextVar("trail", default=None)
