"""Waits for a turn at a deployment that may be asked only so much at once. `fair.py` says whose turn it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.routing.fair import FairQueue
from providers.errors import Overloaded


class Saturated(Overloaded):
    """Not a word from the provider: we did not ask it."""


class Turnstile:
    """Of one deployment in one process."""

    def __init__(self, provider: str, slots: int, waiting_max: int) -> None:
        self._provider = provider
        self.queue: FairQueue[asyncio.Future[None]] = FairQueue(slots, waiting_max)

    async def enter(
        self, tenant: str, urgency: int, tokens: int, wait_s: float, weight: int = 1
    ) -> Callable[[int], None]:
        """Returns: what ends the turn, to be called once, with the tokens that were answered.

        Raises: Overloaded where too many wait, or for too long."""
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        goes, evicted = self.queue.enter(tenant, ticket, urgency, tokens, weight)
        if evicted is not None and not evicted.done():
            evicted.set_exception(self._saturated("too many requests wait for it"))
        if not goes:
            try:
                async with asyncio.timeout(wait_s):
                    await ticket
            except TimeoutError:
                self._give_up(tenant, ticket)
                raise self._saturated(f"no turn within {wait_s:g} s") from None
            except BaseException:
                self._give_up(tenant, ticket)
                raise

        def leave(output_tokens: int) -> None:
            self._pass_on(tenant, output_tokens)

        return leave

    def _give_up(self, tenant: str, ticket: asyncio.Future[None]) -> None:
        if self.queue.withdraw(tenant, ticket) or not ticket.done() or ticket.cancelled():
            return
        if ticket.exception() is None:  # Its turn came in the same moment.
            self._pass_on(tenant, 0)

    def resize(self, slots: int) -> None:
        """As the catalogue says now: more of those who wait may have their turn at once."""
        if slots != self.queue.slots:
            self.queue.slots = slots
            self._let_in(self.queue.turn())

    def _pass_on(self, tenant: str, output_tokens: int) -> None:
        self._let_in(self.queue.leave(tenant, output_tokens))

    def _let_in(self, following: tuple[str, asyncio.Future[None]] | None) -> None:
        while following is not None:
            owner, ticket = following
            if ticket.done():  # It has just been cancelled, and its caller has not run since.
                following = self.queue.leave(owner, 0)
            else:
                ticket.set_result(None)
                following = self.queue.turn()

    def _saturated(self, why: str) -> Saturated:
        return Saturated(f"{self._provider} is asked as much at once as it may be: {why}", retry_after_s=1.0)
