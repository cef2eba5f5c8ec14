"""The fast path of a stream that stays in its dialect: bytes through as they came, usage and finish reason aside.

Each frame is read once into a small struct (about 1 us; the socket costs forty times that), which finds an error or a
usage chunk before its bytes leave. A frame torn by the network waits for its end: a client could not use half of it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from providers.dialects.openai_common.content import texts_of
from providers.dialects.openai_common.errors import from_object
from providers.dialects.openai_common.usage import UsageObject, usage_in
from providers.errors import Broken, Interrupted, ProviderError
from providers.neutral import Usage
from providers.wire.sse import FrameSplitter, parse


class _Function(Struct):
    name: str | None = None
    arguments: Any = None


class _Custom(Struct):
    input: Any = None


class _Call(Struct):
    function: _Function | None = None
    custom: _Custom | None = None


class _Delta(Struct):
    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    refusal: Any = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None
    audio: Any = None


class _Choice(Struct):
    delta: _Delta | None = None
    text: Any = None
    finish_reason: str | None = None
    index: int = 0


class _Groq(Struct):
    usage: UsageObject | None = None
    error: Any = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: UsageObject | None = None
    error: Any = None
    object: str | None = None
    service_tier: str | None = None
    x_groq: _Groq | None = None


_decoder = msgspec.json.Decoder(_Chunk)


class StreamTap:
    """See `providers.dialects.base.Tap`. Serves chat completions and legacy completions alike."""

    __slots__ = (
        "_asked",
        "_done",
        "_error",
        "_finished",
        "_splitter",
        "finish_reason",
        "output_bytes",
        "started",
        "usage",
    )

    def __init__(self, request_included_usage: bool) -> None:
        self._asked = request_included_usage
        self._splitter = FrameSplitter()
        self._error: ProviderError | None = None
        self._done = False
        self._finished: dict[int, bool] = {}
        self.usage = Usage()
        self.finish_reason: str | None = None
        self.started = False
        self.output_bytes = 0

    def feed(self, data: bytes) -> bytes:
        if self._error is not None:
            raise self._error
        frames = self._splitter.feed(data)
        return self._pass(frames)

    def close(self) -> bytes:
        if self._error is not None:
            raise self._error
        rest = self._splitter.close()
        # Also the line feed of a last blank line that the network tore between CR and LF.
        out = self._pass([rest]) if rest.strip() else rest
        if self._error is not None:
            raise self._error
        if not self._done and not (self._finished and all(self._finished.values())):
            raise Interrupted("the stream ended before the answer did")
        return out

    def _pass(self, frames: list[bytes]) -> bytes:
        """The frames that may leave. An error waits for the next call when good frames came in the same read."""
        out: list[bytes] = []
        for raw in frames:
            try:
                if self._look(raw):
                    out.append(raw)
            except ProviderError as error:
                if not out:
                    raise
                self._error = error
                break
        return out[0] if len(out) == 1 else b"".join(out)

    def _look(self, raw: bytes) -> bool:
        """Read one frame. Returns: whether the client may see it."""
        frame = parse(raw)
        if frame is None or not frame.data:
            return True  # heartbeats
        if frame.data == b"[DONE]":
            self._done = True
            return True
        try:
            chunk = _decoder.decode(frame.data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            message = f"a stream frame that is not of this dialect: {error}"
            raise (Interrupted(message, "malformed") if self.started else Broken(message, body=raw[:4096])) from error
        if chunk.error or chunk.object == "error" or (chunk.x_groq is not None and chunk.x_groq.error):
            raise _error_in(frame.data, chunk)
        usage = chunk.usage or (chunk.x_groq.usage if chunk.x_groq is not None else None)
        if usage is not None:
            self.usage = self.usage.at_least(usage_in(usage, chunk.service_tier))
        elif chunk.service_tier is not None and chunk.service_tier != self.usage.service_tier:
            self.usage = self.usage.at_least(Usage(service_tier=chunk.service_tier))
        if not chunk.choices:
            # Only a usage chunk is ours to hold back; Azure's prompt_filter_results come without choices too.
            return chunk.usage is None or self._asked
        for choice in chunk.choices:
            size = _generated(choice)
            self.output_bytes += size
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason
                self._finished[choice.index] = True
            else:
                self._finished.setdefault(choice.index, False)
            if (
                size
                or choice.finish_reason is not None
                or (choice.delta is not None and choice.delta.audio is not None)
            ):
                self.started = True
        return True


def _error_in(data: bytes, chunk: _Chunk) -> ProviderError:
    if chunk.x_groq is not None and chunk.x_groq.error and not chunk.error:
        return from_object({"error": {"message": str(chunk.x_groq.error), "code": chunk.x_groq.error}}, body=data)
    return from_object(msgspec.json.decode(data), body=data)


def _generated(choice: _Choice) -> int:
    """UTF-8 bytes of what the model wrote in this chunk."""
    size = _size(choice.text)
    delta = choice.delta
    if delta is not None:
        # The two names of reasoning are one text where an engine sends both.
        size += _size(delta.content) + (_size(delta.reasoning) or _size(delta.reasoning_content)) + _size(delta.refusal)
        for call in delta.tool_calls or ():
            if call.function is not None:
                size += _size(call.function.name) + _size(call.function.arguments)
            if call.custom is not None:
                size += _size(call.custom.input)
        if delta.function_call is not None:
            size += _size(delta.function_call.name) + _size(delta.function_call.arguments)
    return size


def _size(text: Any) -> int:
    if not text:
        return 0
    if not isinstance(text, str):
        return sum(map(_size, texts_of(text)))
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
