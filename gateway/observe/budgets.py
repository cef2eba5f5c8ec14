"""What is left of budgets, for those who look from outside: read from SQL in the background, shown at each scrape.

Each gateway tells the same; rules take the `min by` of them. The exact amounts are the ledger's, and what stops
requests is counted elsewhere (`admission.limits`): these are floats, half a minute old.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from billing import accounts, alerts
from billing.accounts import Budget, Scope
from billing.db import AsyncEngine, reading
from gateway.observe.metrics import METRICS
from gateway.observe.vitals import Standing

log = structlog.get_logger(__name__)

EVERY_S: Final = 30.0
BUDGETS_MAX: Final = 1000
"""Series of each gauge. Organisations, teams and projects come first, keys last: there may be millions."""
LABELS: Final = ("scope", "scope_id", "window", "kind")
# An end user's budget is one for each of them by itself; how many there are, clients decide.
_ORDER: Final = (Scope.ORGANISATION, Scope.TEAM, Scope.PROJECT, Scope.PROVIDER, Scope.MODEL, Scope.TAG, Scope.KEY)
_PUSD: Final = 10**12


class BudgetWatch:
    def __init__(self, engine: AsyncEngine, clock: Callable[[], int]) -> None:
        self._engine = engine
        self._clock = clock
        self._known: list[tuple[tuple[str, ...], float, float]] = []
        METRICS.watch(Standing("farebox_budget_limit_usd", "What may be spent in its window, raises included.", LABELS,
                               lambda: ((labels, limit) for labels, limit, _ in self._known)))  # fmt: skip
        METRICS.watch(Standing("farebox_budget_remaining_usd", "What is left of it; below zero where it was passed.",
                               LABELS, self._remaining))  # fmt: skip

    def _remaining(self) -> Iterator[tuple[tuple[str, ...], float]]:
        return ((labels, left) for labels, _, left in self._known)

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop. While SQL is away nothing is told: an old figure would look like a new one."""
        while not stop.is_set():
            try:
                await self.look()
            except (SQLAlchemyError, OSError) as error:
                self._known = []
                log.warning("budgets were not read, will try again", problem=str(error))
            try:
                await asyncio.wait_for(stop.wait(), EVERY_S)
            except TimeoutError:
                continue

    async def look(self) -> None:
        now_ns = self._clock()
        async with reading(self._engine) as db:
            found = [each for each in await accounts.budgets(db) if each.scope in _ORDER]
            told = sorted(found, key=lambda each: _ORDER.index(each.scope))[:BUDGETS_MAX]
            used = await alerts.used_of(db, told, now_ns=now_ns)
        self._known = [_row(each, spent, now_ns) for each, spent in zip(told, used, strict=True)]


def _row(budget: Budget, used_pusd: int, now_ns: int) -> tuple[tuple[str, ...], float, float]:
    labels = (budget.scope.value, budget.scope_id, budget.window.value, budget.kind.value)
    limit_pusd = budget.limit_at(now_ns)
    return labels, limit_pusd / _PUSD, (limit_pusd - used_pusd) / _PUSD
