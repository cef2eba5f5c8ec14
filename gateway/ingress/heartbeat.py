"""Silence on a stream, broken by a comment: proxies cut what says nothing for a minute, and models think for longer.

Only event streams have something harmless to say; a binary or JSON framing has not. Tried on the official clients of
each dialect (openai 3.54, anthropic 2.12, google-genai 3.4) in tests/e2e/test_patience.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.ingress.endpoints import Route

COMMENT = b": still there\n\n"
# Google's clients take a comment for JSON; an empty line ends an event that is not there.
BLANK = b"\r\n"
_FRAME_ENDS = (b"\n\n", b"\r\n\r\n")


def beat_of(route: Route) -> bytes | None:
    """What to say on a stream of this route; None where nothing may be said."""
    if route.dialect == "bedrock_converse" or route.envelope:
        return None
    return BLANK if route.dialect == "gemini" else COMMENT


class Heartbeat:
    """Looks after one interval, then twice in each; a writer only leaves its last piece here, which costs nothing."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        every_s: float,
        beat: bytes,
        write: Callable[[bytes], object],
        begin: Callable[[], bool],
    ) -> None:
        """write: the beat goes out. begin: so does the head before it, since nothing has been written yet; False where
        the request turns out not to ask for a stream."""
        self._loop = loop
        self._pause_s = every_s / 2
        self._beat = beat
        self._write = write
        self._begin = begin
        self._seen: bytes | None = None
        self.last: bytes | None = None
        """What was written last; None before the head."""
        # Longer at first: before its head a stream may still be refused by its status, or answered by another.
        self._timer = loop.call_later(every_s, self._look)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if self.last is None:
            if not self._begin():
                return
            self._write(self._beat)
            self.last = self._beat
        elif self.last is self._seen and (self.last is self._beat or self.last.endswith(_FRAME_ENDS)):
            # In the middle of a frame it would tear it; the rest of the frame is on its way.
            self._write(self._beat)
        self._seen = self.last
        self._timer = self._loop.call_later(self._pause_s, self._look)
