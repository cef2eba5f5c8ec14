"""The one connection that all commands share, in the turn of the loop in which it comes to be."""

import asyncio

from gateway.admission.link import Link
from gateway.admission.store import server_at


async def test_a_connection_is_open_as_soon_as_it_is_made(redis_url: str) -> None:
    """Whoever asks between the end of the attempt and its callback must find it: else a loop that waits for a finished
    attempt never gives way, and the process stands still."""
    link = Link(server_at(redis_url))
    waiting = asyncio.create_task(link.open())
    await asyncio.sleep(0)
    attempt = link._opening
    assert attempt is not None
    while not attempt.done():
        await asyncio.sleep(0)
    assert link.is_open
    await waiting
    await link.aclose()


async def test_an_attempt_that_has_ended_is_not_waited_for(redis_url: str) -> None:
    link = Link(server_at(redis_url))
    waiting = asyncio.create_task(link.open())
    await asyncio.sleep(0)
    attempt = link._opening
    assert attempt is not None
    while not attempt.done():
        await asyncio.sleep(0)
    link.drop()
    again = await link.open()
    assert link.is_open
    assert again is not await waiting
    await link.aclose()
