"""Reports read through a small pool of their own, each bounded in time: a heavy one can neither hold up nor outlive
anything on the request path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from billing.db import AsyncConnection, AsyncEngine, create_engine, reading

POOL_SIZE: Final = 2
BOUND_S: Final = 15.0


class Reader:
    """Close with `aclose`."""

    def __init__(self, database_url: str, *, bound_s: float = BOUND_S) -> None:
        self._engine: AsyncEngine = create_engine(database_url, pool_size=POOL_SIZE)
        self._bound_s = bound_s

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A snapshot in which a statement may take `bound_s`. Raises: TimeoutError when one takes longer."""
        async with reading(self._engine) as db:
            if db.dialect.name == "postgresql":
                await db.execute(text(f"SET LOCAL statement_timeout = {int(self._bound_s * 1000)}"))
                try:
                    yield db
                except DBAPIError as error:
                    if getattr(error.orig, "sqlstate", None) == _QUERY_CANCELED:
                        raise TimeoutError("statement took too long") from error
                    raise
                return
            raw = (await db.get_raw_connection()).driver_connection
            assert raw is not None
            # SQLite runs in a thread that a cancelled task leaves behind; an interrupt makes the statement itself end.
            late = False

            def interrupt() -> None:
                nonlocal late
                late = True
                interrupting.append(asyncio.ensure_future(raw.interrupt()))

            interrupting: list[asyncio.Future[None]] = []
            alarm = asyncio.get_running_loop().call_later(self._bound_s, interrupt)
            try:
                yield db
            except DBAPIError as error:
                if late:
                    raise TimeoutError("statement took too long") from error
                raise
            finally:
                alarm.cancel()
                await asyncio.gather(*interrupting)

    async def aclose(self) -> None:
        await self._engine.dispose()


# Source: PostgreSQL error codes, class 57 (query_canceled), read 2026-11.
_QUERY_CANCELED: Final = "57014"
