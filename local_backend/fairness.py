"""Whose turn it is: a counter of service for each tenant, the lowest goes first.

The virtual token counter: a tenant that always wants more than it gets is served as much as any other such tenant,
within a few requests; one that was away cannot save up, for it comes back at the level of those who stayed.
Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, arXiv 2401.00588.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

INPUT_COST, OUTPUT_COST = 1, 2
"""An output token takes a step of its own; a prompt's tokens share one."""
REMEMBERED = 4096
"""Tenants that are away and whose counter is kept: who used much and pauses briefly is not forgiven."""


class Fairness:
    """Service in token costs. Knows who has requests open, and for a while who had."""

    def __init__(self) -> None:
        self._service: OrderedDict[str, int] = OrderedDict()
        self._open: Counter[str] = Counter()
        self._last_level = 0  # of the tenant whose request ended last

    @property
    def active(self) -> int:
        """Tenants with requests open."""
        return len(self._open)

    def of(self, tenant: str) -> int:
        """How much the tenant has been served; comparable between tenants with requests open."""
        return self._service.get(tenant, 0)

    def arrive(self, tenant: str) -> None:
        """One more request of the tenant is open."""
        if tenant not in self._open:
            # Who had the engine for itself took nothing from anybody, and owes nothing to whoever comes after it.
            level = min((self._service[other] for other in self._open), default=self._last_level)
            self._service[tenant] = max(self._service.get(tenant, 0), level)
            self._service.move_to_end(tenant)
            while len(self._service) > REMEMBERED + len(self._open):
                oldest = next(name for name in self._service if name not in self._open)
                del self._service[oldest]
        self._open[tenant] += 1

    def leave(self, tenant: str) -> None:
        """One request of the tenant has ended."""
        self._last_level = self._service[tenant]
        self._open[tenant] -= 1
        if not self._open[tenant]:
            del self._open[tenant]

    def charge(self, tenant: str, cost: int) -> None:
        """The tenant was served."""
        self._service[tenant] += cost
