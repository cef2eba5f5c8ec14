"""A bearer token that is renewed before it ends, in a thread, off the request path.

Only the very first request, and one that finds the token expired because every renewal failed, waits for a fetch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from msgspec import Struct

from providers.errors import ProviderError

# Google gives a token an hour and renews it itself below 3 min 45 s, Entra about as long and below 5 min.
_RENEW_BEFORE_S = 300.0
# A margin for the request's own way: a token that ends sooner is taken for ended.
_SPARE_S = 15.0
_RETRY_AFTER_S = 30.0


class Token(Struct, frozen=True):
    """ends_at_s: unix seconds."""

    text: str
    ends_at_s: float

    def __repr__(self) -> str:
        return f"Token(ends_at_s={self.ends_at_s:.0f})"


class RefreshedToken:
    """fetch blocks and returns a fresh token; it runs in a thread, one call at a time."""

    def __init__(self, fetch: Callable[[], Token], clock: Callable[[], float] = time.time) -> None:
        self._fetch = fetch
        self._clock = clock
        self._token: Token | None = None
        self._renewal: asyncio.Task[Token] | None = None
        self._not_before_s = 0.0

    def fetch(self) -> Token:
        """A fresh one, for a thread of the caller's own. Blocks. Raises: as `get`."""
        return self._fetch()

    async def get(self) -> str:
        """Raises: AuthFailed or Unreachable when there is no valid token and none can be had."""
        token, now_s = self._token, self._clock()
        if token is None or now_s >= token.ends_at_s - _SPARE_S:
            return (await asyncio.shield(self._renew())).text
        if now_s >= token.ends_at_s - _RENEW_BEFORE_S and now_s >= self._not_before_s:
            self._not_before_s = now_s + _RETRY_AFTER_S
            self._renew().add_done_callback(_seen)
        return token.text

    async def aclose(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)

    def _renew(self) -> asyncio.Task[Token]:
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._run())
        return self._renewal

    async def _run(self) -> Token:
        self._token = await asyncio.to_thread(self._fetch)
        return self._token


def _seen(task: asyncio.Task[Token]) -> None:
    """A renewal that fails while the old token is good is tried again later, and told by the request that must wait."""
    if not task.cancelled():
        error = task.exception()
        if error is not None and not isinstance(error, ProviderError):
            raise error  # a slip of ours: the loop's exception handler shows it
