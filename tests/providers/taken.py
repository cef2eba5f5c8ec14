"""An adapter's answer, taken in as the gateway takes it, and closed whatever comes."""

from __future__ import annotations

from collections.abc import Callable

from providers.base import Answer
from providers.neutral import ChatResponse, TextPart, collect


async def whole(answer: Answer, *, stream: bool) -> ChatResponse:
    """The neutral answer, streamed or not."""
    try:
        if not stream:
            return answer.dialect.decode_response(await answer.read())
        decoder = answer.dialect.event_decoder()
        events = []
        async for chunk in answer.chunks():
            events += list(decoder.feed(chunk))
        return collect([*events, *decoder.close()])
    finally:
        await answer.aclose()


async def drained(answer: Answer, feed: Callable[[bytes], object], close: Callable[[], object]) -> None:
    """Every chunk to `feed`, then `close`."""
    try:
        async for chunk in answer.chunks():
            feed(chunk)
        close()
    finally:
        await answer.aclose()


def text_of(response: ChatResponse) -> str:
    return "".join(part.text for part in response.candidates[0].content if isinstance(part, TextPart))


async def said(answer: Answer, *, stream: bool) -> str:
    """The text of it."""
    return text_of(await whole(answer, stream=stream))
