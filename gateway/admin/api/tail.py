"""The live tail: requests as they end, as server-sent events. Asked of the database, so that every gateway's are in it.

Source: HTML Living Standard, "Server-sent events", read 2026-11.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter
from litestar.response import Stream
from sqlalchemy import select

from billing.schema import usage_records
from gateway.admin import reports
from gateway.admin.api.requests import RequestView, request_view
from gateway.admin.api.usage import filters_of
from gateway.admin.problems import Problem
from gateway.admin.services import Services
from gateway.admin.times import SECOND_NS, Period
from gateway.admin.wants import Office, Within

EVERY_S: Final = 0.5
# Then the browser comes again by itself, and who it is and what it may see is asked anew; nor does it hold up a stop.
LASTS_S: Final = 30
_AGAIN_MS: Final = 250
# What ended just before somebody looked; and how long ago a request may have begun that ends now.
_RECENT_NS: Final = 60 * SECOND_NS
_LONGEST_NS: Final = 900 * SECOND_NS
_AT_ONCE: Final = 200


@get("/requests/tail", name="requests.tail", media_type="text/event-stream")
async def tail_requests(
    request: Request[Any, Any, Any],
    services: Office,
    sight: Within,
    seconds: Annotated[int, QueryParameter(ge=0, le=LASTS_S)] = LASTS_S,
) -> Stream:
    """Requests as they end, each an event whose data is a RequestView; those of the last minute first. Filters as in
    `/usage`. Ends after so many seconds: an EventSource comes again by itself. Of more than 400 a second some are left
    out."""
    if services.tails.locked():
        raise Problem(429, "too-many-tails", "too many people are looking", "Close one, or list /requests.")
    filters = sight.filters(filters_of(request))
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return Stream(_events(services, filters, seconds), media_type="text/event-stream", headers=headers)


tail_handlers: list[HTTPRouteHandler] = [tail_requests]


async def _events(services: Services, filters: dict[str, list[str]], seconds: int) -> AsyncIterator[bytes]:
    async with services.tails:
        yield b"retry: %d\n\n" % _AGAIN_MS
        seen: set[str] = set()
        since_ns = services.clock() - _RECENT_NS
        # By the loop's clock: a computer that was asleep in between is to end it too.
        until = asyncio.get_running_loop().time() + seconds
        while True:
            rows = await _ended(services, filters)
            # What began long ago and was there at the first look had been told before.
            fresh = [(at_ns, row) for at_ns, row in rows if row.id not in seen and (seen or at_ns >= since_ns)]
            seen = {row.id for _, row in rows} | {""}
            # A comment where there is nothing to tell: a client that left is noticed by writing alone.
            told = [b"id: %s\ndata: %s\n\n" % (row.id.encode(), msgspec.json.encode(row)) for _, row in fresh]
            yield b"".join(told) or b":\n\n"
            if asyncio.get_running_loop().time() >= until:
                return
            await asyncio.sleep(EVERY_S)


async def _ended(services: Services, filters: dict[str, list[str]]) -> list[tuple[int, RequestView]]:
    """The last ones and when each began, the oldest first."""
    now_ns = services.clock()
    table = usage_records.c
    async with services.reader.reading() as db:
        where = reports.where(db, Period(now_ns - _LONGEST_NS, now_ns + SECOND_NS), filters)
        query = select(usage_records).where(*where).order_by(table.at_ns.desc(), table.id.desc()).limit(_AT_ONCE)
        rows = (await db.execute(query)).mappings().all()
        keys = await reports.labels(db, "key", list({row["key_id"] for row in rows}))
    return [(row["at_ns"], request_view(row, keys)) for row in reversed(rows)]
