"""How often the same deployment may be asked again, and after how long: enough for a hiccup, never a storm."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from providers.errors import Broken, Overloaded, ProviderError, Throttled, Unreachable

WINDOW_S: Final = 30.0
_SLOTS: Final = 6
_SLOT_S: Final = WINDOW_S / _SLOTS


class Window:
    """Counts what happened in the last 30 s, in slots of 5 s. Time may not run backwards by more than a slot."""

    __slots__ = ("_slots", "_total")

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque()
        self._total = 0

    def add(self, now: float, count: int = 1) -> None:
        slot = int(now // _SLOT_S)
        if self._slots and self._slots[-1][0] >= slot:
            self._slots[-1][1] += count
        else:
            self._slots.append([slot, count])
        self._total += count

    def total(self, now: float) -> int:
        oldest = int(now // _SLOT_S) - _SLOTS
        while self._slots and self._slots[0][0] <= oldest:
            self._total -= self._slots.popleft()[1]
        return self._total

    def clear(self) -> None:
        self._slots.clear()
        self._total = 0


class RetryTerms(Struct, frozen=True):
    """most: tries after the first of a request. share: of a deployment's requests of the last 30 s; `spare` more are
    free in that time, for those with little traffic. total_s: from a request's start, all tries together.
    hedge_share: of all requests that may be asked twice at once; hedge_pusd: what that may cost for one of them; None:
    no end. slow_s: a first token later than this is a failure.
    queue_s, queue_max: how long, and how many, wait for a turn at one deployment."""

    most: int = 2
    share: float = 0.1
    spare: int = 10
    base_s: float = 0.1
    longest_s: float = 2.0
    queue_s: float = 30.0
    queue_max: int = 1000
    total_s: float = 900.0
    hedge_share: float = 0.05
    hedge_pusd: int | None = None
    slow_s: float | None = None


class RetryBudget:
    """Of one deployment: one that is down cannot use up what another needs."""

    __slots__ = ("_requests", "_retries")

    def __init__(self) -> None:
        self._requests = Window()
        self._retries = Window()

    def requested(self, now: float) -> None:
        self._requests.add(now)

    def take(self, terms: RetryTerms, now: float) -> bool:
        """Whether one more retry is within the share; if so it is counted."""
        if self._retries.total(now) + 1 > terms.spare + terms.share * self._requests.total(now):
            return False
        self._retries.add(now)
        return True


def delay_s(error: ProviderError, retry: int, terms: RetryTerms, chance: Callable[[], float]) -> float | None:
    """How long to wait before the retry-th try after the first (1, 2, ...); None: this is not asked again.

    Full jitter: anything from zero to a bound that doubles, since clients that fail together would return together.
    A hint is waited out and jittered on top. Source: AWS Architecture Blog "Exponential Backoff And Jitter", 2026-11.
    A time-out is not tried again here: the client has waited for all of it, and the provider may still be at work.
    Nor is an answer that does not parse: it was made, and is billed to us each time."""
    if retry > terms.most or not isinstance(error, Unreachable | Throttled | Overloaded | Broken):
        return None
    jitter: float = chance() * min(terms.longest_s, terms.base_s * 2.0 ** (retry - 1))
    hint = error.retry_after_s
    if hint is None:
        # A quota without a hint is not back within a second; asking at once only uses it up.
        return None if isinstance(error, Throttled) else jitter
    return hint + jitter if hint <= terms.longest_s else None
