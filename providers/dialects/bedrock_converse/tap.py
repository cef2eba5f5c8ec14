"""What the fast path sees of a ConverseStream: usage, stop reason, exceptions. Nothing is held back."""

from __future__ import annotations

from providers.dialects.bedrock_converse import wire
from providers.dialects.bedrock_converse.events import read_frame
from providers.dialects.bedrock_converse.response import finish_reason
from providers.dialects.bedrock_converse.usage import usage_in
from providers.dialects.tapping import text_bytes
from providers.errors import Broken, Interrupted, ProviderError, WireError
from providers.neutral import Usage
from providers.wire.eventstream import Frame, FrameSplitter, parse


class StreamTap:
    """See `providers.dialects.base.Tap`."""

    def __init__(self) -> None:
        self._frames = FrameSplitter()
        self._error: ProviderError | None = None
        self._complete = False
        self.usage = Usage()
        self.finish_reason: str | None = None
        self.started = False
        self.output_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """The frames that may leave. An error waits for the next call when good frames came in the same read."""
        if self._error is not None:
            raise self._error
        out: list[bytes] = []
        try:
            for raw in self._frames.feed(data):
                self._look(parse(raw))
                out.append(raw)
        except WireError as error:
            self._error = self._malformed(error)
        except ProviderError as error:
            self._error = error
        if self._error is not None and not out:
            raise self._error
        return out[0] if len(out) == 1 else b"".join(out)

    def close(self) -> bytes:
        if self._error is not None:
            raise self._error
        if self._frames.pending or (self.finish_reason is None and not self._complete):
            raise Interrupted("the stream ended before the answer did")
        return b""

    def _malformed(self, error: WireError) -> ProviderError:
        kind = Interrupted(error.message, "malformed") if self.started else Broken(error.message, body=error.body)
        kind.__cause__ = error
        return kind

    def _look(self, frame: Frame) -> None:
        event = read_frame(frame)
        if event is None:
            return
        match frame.event_type:
            case "contentBlockStart" if event.start is not None and event.start.toolUse is not None:
                self.started = True
                self.output_bytes += text_bytes(event.start.toolUse.name)
            case "contentBlockDelta" if event.delta is not None:
                self.started = True
                self.output_bytes += _generated(event.delta)
            case "messageStop":
                self.finish_reason = finish_reason(event.stopReason)
            case "metadata":
                self._complete = True
                if event.usage is not None:
                    self.usage = usage_in(event.usage, event.serviceTier)


def _generated(delta: wire.Delta) -> int:
    size = text_bytes(delta.text or "")
    if delta.toolUse is not None:
        size += text_bytes(delta.toolUse.input)
    if delta.reasoningContent is not None:
        size += text_bytes(delta.reasoningContent.text or "")
    return size
