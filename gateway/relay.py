"""Provider bytes to client bytes, one chunk at a time. Same dialect: bytes go through and a tap watches them; another
dialect: they become events and are said anew. Either way the relay sees one small object."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from msgspec.structs import replace

from gateway.metering import part_bytes
from providers.base import Answer, Call
from providers.dialects import load
from providers.dialects.base import Dialect, ErrorBody
from providers.errors import Broken, Interrupted, ProviderError
from providers.neutral import Event, Finish, PartDelta, PartStart, ResponseStart, Usage


class Stream(Protocol):
    """One streamed answer on its way. See `providers.dialects.base.Tap` for what each fact means."""

    @property
    def usage(self) -> Usage: ...

    @property
    def finish_reason(self) -> str | None: ...

    @property
    def started(self) -> bool: ...

    @property
    def output_bytes(self) -> int: ...

    def feed(self, data: bytes) -> bytes: ...

    def close(self) -> bytes: ...


class Translation:
    """A stream that changes dialect: decoded to neutral events, encoded in the client's words.

    now_s: unix seconds, told as the answer's date where the provider's dialect has none."""

    def __init__(self, upstream: Dialect, call: Call, now_s: int) -> None:
        self._now_s = now_s
        self._decoder = upstream.event_decoder()
        self._encoder = load(call.dialect).event_encoder(call.request)
        self._error: ProviderError | None = None
        self.finish_reason: str | None = None
        self.started = False
        self.output_bytes = 0

    @property
    def usage(self) -> Usage:
        return self._decoder.usage

    def feed(self, data: bytes) -> bytes:
        return self._said(self._decoder.feed(data))

    def close(self) -> bytes:
        return self._said(self._decoder.close()) + self._encoder.close()

    def fail(self, error: ErrorBody) -> bytes:
        """Said by the encoder that began: some dialects end what is open before they tell of an error."""
        return self._encoder.fail(error)

    def _said(self, events: Iterator[Event]) -> bytes:
        """An error waits for the next call when good events came in the same read: they were made, and are paid for,
        however the network happened to slice them."""
        if self._error is not None:
            raise self._error
        out: list[bytes] = []
        try:
            for event in self._watch(events):
                out.append(self._encoder.encode((event,)))  # noqa: PERF401 - what came before an error must be kept
        except ProviderError as error:
            self._error = error
            if not out:
                raise
        return b"".join(out)

    def _watch(self, events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            match event:
                case PartDelta():
                    self.started = True
                    self.output_bytes += len(event.text.encode())
                case ResponseStart(created=None):
                    yield replace(event, created=self._now_s)
                    continue
                case PartStart(part=part):
                    self.started = True
                    self.output_bytes += part_bytes(part)
                case Finish():
                    self.finish_reason = event.reason
            yield event


class Opened:
    """A stream whose first event has arrived: `head` are the client bytes so far, the rest is still to come."""

    __slots__ = ("answer", "chunks", "ended", "head", "stream")

    def __init__(self, answer: Answer, stream: Stream, chunks: AsyncIterator[bytes], head: bytes, ended: bool) -> None:
        self.answer = answer
        self.stream = stream
        self.chunks = chunks
        self.head = head
        self.ended = ended

    def fail(self, error: ErrorBody, call: Call) -> bytes:
        """The error in the middle of the stream, in the client's words."""
        begun = getattr(self.stream, "fail", None)
        said: bytes = (begun or load(call.dialect).event_encoder(call.request).fail)(error)
        return said


def stream_of(answer: Answer, call: Call, now_s: int) -> Stream:
    """Bytes through where the client speaks the provider's dialect, else events."""
    if answer.dialect.name == call.dialect:
        return answer.dialect.tap(call.request.include_usage)
    return Translation(answer.dialect, call, now_s)


async def open_stream(answer: Answer, stream: Stream, chunks: AsyncIterator[bytes] | None = None) -> Opened:
    """Read up to the first event, so that a failure before it can still go to another deployment. chunks: the answer's,
    where somebody looks at them before.

    Raises: a ProviderError; then the answer is closed and no byte is owed to the client.
    """
    chunks = answer.chunks() if chunks is None else chunks
    head = b""
    try:
        async for data in chunks:
            head += stream.feed(data)
            if stream.started or stream.finish_reason is not None:
                return Opened(answer, stream, chunks, head, ended=False)
        head += stream.close()
    except Interrupted as error:
        # Nothing has reached the client, so another deployment may still answer.
        await answer.aclose()
        raise Broken(f"the stream ended before its first event: {error.message}") from error
    except BaseException:
        # Also when the client has gone while it waited: the upstream must not write on.
        await answer.aclose()
        raise
    return Opened(answer, stream, chunks, head, ended=True)


async def read_whole(answer: Answer, call: Call, now_s: int) -> tuple[bytes, Usage, str | None]:
    """The client's bytes of an answer that does not stream, what it used and how it ended."""
    body = await answer.read()
    if answer.dialect.name == call.dialect:
        return body, *answer.dialect.ending(body)
    response = answer.dialect.decode_response(body)
    dated = response if response.created is not None else replace(response, created=now_s)
    body = load(call.dialect).encode_response(dated, call.request)
    reason = response.candidates[0].finish_reason if response.candidates else None
    return body, response.usage, reason
