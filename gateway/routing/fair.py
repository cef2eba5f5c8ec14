"""Whose turn is it where more is asked than a deployment may be asked at once? Pure: no clock, no waiting.

Virtual token counters: each tenant has a counter of the tokens it was served, and the one with the lowest goes next.
Who comes back after a pause is lifted to the lowest of those present, so nobody saves up turns by being quiet. While
two tenants both wait, what they were served differs by at most the largest request and what runs at once, however much
one of them asks for. A tenant of weight 3 is counted a third, so it is served three times as much. Of whole answers the
prompt alone is counted.
Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, read 2026-11.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

T = TypeVar("T")

PART: Final = 1000
"""Counters are in parts of a token: whole numbers whatever the weight."""

# An output token costs a step of the model, an input token a part of one. Source: as above, section 4.2.
OUTPUT_WEIGHT: Final = 2
# Tenants whose counters are kept; of those beyond, the longest absent are forgotten and lifted when they come back.
TENANTS_MAX: Final = 10_000


class FairQueue(Generic[T]):
    """Tickets of tenants. urgency: lower goes first, whatever the counters say; they decide among equals. served: in
    parts of a token, by weight."""

    def __init__(self, slots: int, waiting_max: int) -> None:
        self.slots = slots
        self.waiting_max = waiting_max
        self.running = 0
        self.waiting = 0
        self.served: dict[str, int] = {}
        self._present: dict[str, int] = {}  # How many requests of a tenant run or wait.
        self._weights: dict[str, int] = {}  # Of those present, as the latest request says.
        self._queues: dict[tuple[int, str], deque[tuple[T, int]]] = {}

    @property
    def is_full(self) -> bool:
        return self.running >= self.slots

    def enter(self, tenant: str, ticket: T, urgency: int, tokens: int, weight: int = 1) -> tuple[bool, T | None]:
        """tokens: of the prompt. weight: the tenant's, from now on. Returns: whether it goes at once; and who has to
        give up its place, perhaps this one, since no more may wait: the last of the tenant that has most."""
        self._come(tenant)
        self._weights[tenant] = weight
        if self.running < self.slots and not self.waiting:
            self._start(tenant, tokens)
            return True, None
        self._queues.setdefault((urgency, tenant), deque()).append((ticket, tokens))
        self.waiting += 1
        if self.waiting <= self.waiting_max:
            return False, None
        longest = max(self._queues, key=lambda key: (len(self._queues[key]), key))
        gone, _ = self._queues[longest][-1]
        self.withdraw(longest[1], gone)
        return False, gone

    def leave(self, tenant: str, output_tokens: int) -> tuple[str, T] | None:
        """One that ran has ended. Returns: whose turn it is now, and the ticket."""
        self.running -= 1
        if tenant in self.served:
            self._count(tenant, OUTPUT_WEIGHT * output_tokens)
        self._go(tenant)
        return self.turn()

    def turn(self) -> tuple[str, T] | None:
        """Whose it is, where one more may run: it counts as begun."""
        if not self.waiting or self.running >= self.slots:
            return None
        turn = min(self._queues, key=lambda key: (key[0], self.served[key[1]]))
        ticket, tokens = self._queues[turn].popleft()
        self._shrunk(turn)
        self._start(turn[1], tokens)
        return turn[1], ticket

    def withdraw(self, tenant: str, ticket: T) -> bool:
        """Returns: False when it does not wait any more."""
        for key, queue in self._queues.items():
            if key[1] == tenant:
                for at, (waiting, _) in enumerate(queue):
                    if waiting is ticket:
                        del queue[at]
                        self._shrunk(key)
                        self._go(tenant)
                        return True
        return False

    def _start(self, tenant: str, tokens: int) -> None:
        self.running += 1
        self._count(tenant, tokens)

    def _count(self, tenant: str, tokens: int) -> None:
        self.served[tenant] += tokens * PART // self._weights.get(tenant, 1)

    def _come(self, tenant: str) -> None:
        if tenant not in self._present:
            lowest = min((self.served[name] for name in self._present), default=0)
            known = self.served.pop(tenant, 0)  # Put in anew: the first in the dictionary is the longest absent.
            self.served[tenant] = max(known, lowest)
            self._present[tenant] = 0
            if len(self.served) > TENANTS_MAX:
                del self.served[next(name for name in self.served if name not in self._present)]
        self._present[tenant] += 1

    def _go(self, tenant: str) -> None:
        self._present[tenant] -= 1
        if not self._present[tenant]:
            del self._present[tenant], self._weights[tenant]
            if not self._present:  # Nobody is there to be compared with.
                self.served.clear()

    def _shrunk(self, key: tuple[int, str]) -> None:
        self.waiting -= 1
        if not self._queues[key]:
            del self._queues[key]
