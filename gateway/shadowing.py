"""Some requests asked a second time of another model, whose answer nobody waits for: how it would do, on real traffic.

The copy is made in the name of a key of the operator's own and goes every request's way: that key's budget bounds what
is spent on it, its rows stand in usage and ledger, tagged `shadow-of:` and the request's id, and no client pays for it.
It begins when the client's own answer has begun, and is dropped where too many are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from msgspec.structs import replace

from gateway.admission import Principal
from gateway.exchange import Inbound, Reply, SayError
from gateway.observe.metrics import METRICS
from gateway.routing.catalog import Shadow

log = structlog.get_logger(__name__)

AT_ONCE: Final = 16
TAG: Final = "shadow-of:"
OK: Final = "ok"
DROPPED: Final = "dropped"


class Shadows:
    """The copies under way in this process."""

    def __init__(
        self,
        principal_of: Callable[[str, int], Awaitable[Principal]],
        request_id: Callable[[], str],
        clock: Callable[[], int],
        chance: Callable[[], float],
        say: SayError,
    ) -> None:
        """principal_of: by key id, as things stand at that millisecond. chance: draws from [0, 1)."""
        self._principal_of = principal_of
        self._request_id = request_id
        self._clock = clock
        self._chance = chance
        self._say = say
        self._under_way: set[asyncio.Task[None]] = set()

    def follow(self, shadow: Shadow, inbound: Inbound, serve: Callable[[Inbound, Principal], Awaitable[Reply]]) -> None:
        """Perhaps ask again what has just been answered. Never raises, never waits."""
        if inbound.is_shadow or self._chance() >= shadow.share:
            return
        if len(self._under_way) >= AT_ONCE:
            METRICS.shadowed(shadow.model, DROPPED)
            return
        copy = replace(
            inbound,
            route=replace(inbound.route, model=shadow.model),
            headers={**inbound.headers, "x-farebox-tags": TAG + inbound.request_id},
            request_id=self._request_id(),
            now_ns=self._clock(),
            is_shadow=True,
        )
        task = asyncio.create_task(self._ask(shadow, copy, serve), name="shadow request")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _ask(
        self, shadow: Shadow, inbound: Inbound, serve: Callable[[Inbound, Principal], Awaitable[Reply]]
    ) -> None:
        try:
            who = await self._principal_of(shadow.key_id, inbound.now_ns // 1_000_000)
            reply = await serve(inbound, who)
            if not isinstance(reply.body, bytes):
                async for _ in reply.body:
                    pass
            result = OK
        except Exception as error:
            result = self._say(error, inbound.request_id).code
            log.info("shadow request failed", request_id=inbound.request_id, model=shadow.model, code=result)
        METRICS.shadowed(shadow.model, result)

    async def aclose(self) -> None:
        """Those under way end as if their client had left."""
        for task in list(self._under_way):
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
