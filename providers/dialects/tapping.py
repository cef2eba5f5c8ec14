"""The fast path of an SSE stream that stays in its dialect: frames through as they came, each looked at once.

A frame torn by the network waits for its end: a client could not use half of it, and it may be an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from providers.errors import Interrupted, ProviderError
from providers.neutral import Usage
from providers.wire import sse


class FrameTap(ABC):
    """See `providers.dialects.base.Tap`. A subclass reads a frame in `look` and sets the facts below."""

    def __init__(self) -> None:
        self._frames = sse.FrameSplitter()
        self._error: ProviderError | None = None
        self._usage = Usage()
        self.finish_reason: str | None = None
        self.started = False
        self.output_bytes = 0

    @property
    def usage(self) -> Usage:
        return self.current_usage()

    @usage.setter
    def usage(self, found: Usage) -> None:
        self._usage = found

    @abstractmethod
    def look(self, data: bytes) -> None:
        """Read one frame's data. Raises: a ProviderError kind, before the frame leaves."""

    @abstractmethod
    def is_whole(self) -> bool:
        """The stream may end here."""

    def current_usage(self) -> Usage:
        """For a subclass that reads usage only when somebody asks."""
        return self._usage

    def feed(self, data: bytes) -> bytes:
        if self._error is not None:
            raise self._error
        return self._pass(self._frames.feed(data))

    def close(self) -> bytes:
        if self._error is not None:
            raise self._error
        rest = self._frames.close()
        out = self._pass([rest]) if rest else b""
        if not self.is_whole():
            raise Interrupted("the stream ended before the answer did")
        return out

    def frame_out(self, raw: bytes, data: bytes) -> bytes:
        """The bytes that leave for a frame."""
        return raw

    def _pass(self, frames: list[bytes]) -> bytes:
        """The frames that may leave. An error waits for the next call when good frames came in the same read."""
        out: list[bytes] = []
        for raw in frames:
            data = sse.data_of(raw)
            try:
                if data:
                    self.look(data)
            except ProviderError as error:
                if not out:
                    raise
                self._error = error
                break
            out.append(self.frame_out(raw, data))
        return out[0] if len(out) == 1 else b"".join(out)


def text_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
