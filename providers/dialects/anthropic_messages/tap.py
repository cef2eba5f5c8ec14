"""The fast path of a stream that stays in its dialect: bytes through as they came, usage and finish reason aside.

A frame torn by the network waits for its end, so that an error is found before the bytes that carry it leave.
"""

from __future__ import annotations

from providers.dialects.anthropic_messages import wire
from providers.dialects.anthropic_messages.events import read_frame
from providers.dialects.anthropic_messages.response import finish_reason
from providers.dialects.anthropic_messages.usage import usage_in
from providers.errors import Broken, Interrupted, ProviderError, WireError
from providers.neutral import FinishReason, Usage
from providers.wire.sse import FrameSplitter, parse


class StreamTap:
    """See `providers.dialects.base.Tap`. Nothing is held back: every Anthropic client is told its usage."""

    __slots__ = ("_error", "_splitter", "_stopped", "finish_reason", "output_bytes", "started", "usage")

    def __init__(self) -> None:
        self._splitter = FrameSplitter()
        self._error: ProviderError | None = None
        self._stopped = False
        self.usage = Usage()
        self.finish_reason: FinishReason | None = None
        self.started = False
        self.output_bytes = 0

    def feed(self, data: bytes) -> bytes:
        if self._error is not None:
            raise self._error
        return self._pass(self._splitter.feed(data))

    def close(self) -> bytes:
        if self._error is not None:
            raise self._error
        rest = self._splitter.close()
        out = self._pass([rest]) if rest.strip() else b""
        if not self._stopped and self.finish_reason is None:
            raise Interrupted("the stream ended before the answer did")
        return out

    def _pass(self, frames: list[bytes]) -> bytes:
        """The frames that may leave. An error waits for the next call when good frames came in the same read."""
        out: list[bytes] = []
        for raw in frames:
            try:
                self._look(raw)
            except ProviderError as error:
                if not out:
                    raise
                self._error = error
                break
            out.append(raw)
        return out[0] if len(out) == 1 else b"".join(out)

    def _look(self, raw: bytes) -> None:
        frame = parse(raw)
        if frame is None:
            return
        try:
            event = read_frame(frame)
        except WireError as error:
            kind = Interrupted(error.message, "malformed") if self.started else Broken(error.message, body=raw[:4096])
            raise kind from error
        if event is None:
            return
        if event.usage is not None:
            self.usage = self.usage.at_least(usage_in(event.usage))
        match event.type:
            case "message_start" if event.message is not None and event.message.usage is not None:
                self.usage = self.usage.at_least(usage_in(event.message.usage))
            case "content_block_start" if event.content_block is not None:
                self.started = True
                self.output_bytes += _size(event.content_block.get("name"))
            case "content_block_delta" if event.delta is not None:
                self.started = True
                self.output_bytes += _generated(event.delta)
            case "message_delta" if event.delta is not None and event.delta.stop_reason is not None:
                self.finish_reason = finish_reason(event.delta.stop_reason)
            case "message_stop":
                self._stopped = True


def _generated(delta: wire.Delta) -> int:
    return _size(delta.text) + _size(delta.partial_json) + _size(delta.thinking)


def _size(text: object) -> int:
    """UTF-8 bytes."""
    if not isinstance(text, str):
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
