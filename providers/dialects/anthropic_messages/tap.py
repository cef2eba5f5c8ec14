"""What the fast path sees of a Messages stream: usage, finish reason, errors. Nothing is held back: every Anthropic
client is told its usage. One thing is said anew: the model, by the name that the client asked for. Claude Code
compares the two and leaves its model's thinking out of the next turn when they differ (2.1.197, seen 2026-11)."""

from __future__ import annotations

from providers.dialects.anthropic_messages import wire
from providers.dialects.anthropic_messages.events import read_event
from providers.dialects.anthropic_messages.response import finish_reason
from providers.dialects.anthropic_messages.usage import usage_in
from providers.dialects.tapping import FrameTap, text_bytes
from providers.errors import Broken, Interrupted, WireError
from providers.wire import jsonio, sse


class StreamTap(FrameTap):
    def __init__(self, told_model: str | None = None) -> None:
        super().__init__()
        self._stopped = False
        self._told_model = told_model
        self._names_model = False

    def look(self, data: bytes) -> None:
        try:
            event = read_event(data)
        except WireError as error:
            kind = Interrupted(error.message, "malformed") if self.started else Broken(error.message, body=data[:4096])
            raise kind from error
        if event is None:
            return
        if event.usage is not None:
            self.usage = self.usage.at_least(usage_in(event.usage))
        match event.type:
            case "message_start" if event.message is not None:
                self._names_model = self._told_model not in (None, event.message.model)
                if event.message.usage is not None:
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

    def frame_out(self, raw: bytes, data: bytes) -> bytes:
        if not self._names_model:
            return raw
        self._names_model = False
        event = jsonio.split_object(data)
        event["message"] = jsonio.split_object(event["message"]) | {"model": self._told_model}
        return sse.encode(jsonio.joined(event), "message_start")

    def is_whole(self) -> bool:
        return self._stopped or self.finish_reason is not None


def _generated(delta: wire.Delta) -> int:
    return _size(delta.text) + _size(delta.partial_json) + _size(delta.thinking)


def _size(text: object) -> int:
    return text_bytes(text) if isinstance(text, str) else 0
