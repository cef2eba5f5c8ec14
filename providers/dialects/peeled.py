"""A stream of one dialect inside the frames of another wire: peel first, then read as ever.

Bedrock's InvokeModel and SageMaker's endpoints send a model's own stream so. The adapter says how to peel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from providers.dialects.base import EventDecoder, Tap
from providers.errors import Broken, Interrupted, ProviderError, WireError
from providers.neutral import Event, Usage


class Peel(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces of the inner stream. Raises: WireError; the kind of an error told in the outer frames."""

    @property
    def pending(self) -> int:
        """Bytes of an outer frame that is not whole yet."""


class PeeledDecoder:
    """See `providers.dialects.base.EventDecoder`."""

    def __init__(self, peel: Peel, inner: EventDecoder) -> None:
        self._peel = peel
        self._inner = inner

    @property
    def usage(self) -> Usage:
        return self._inner.usage

    def feed(self, data: bytes) -> Iterator[Event]:
        for piece in self._peel.feed(data):
            yield from self._inner.feed(piece)

    def close(self) -> Iterator[Event]:
        if self._peel.pending:
            raise Interrupted("the stream ended inside a frame")
        yield from self._inner.close()


class PeeledTap:
    """See `providers.dialects.base.Tap`: the client gets the inner stream, in its own dialect's framing."""

    def __init__(self, peel: Peel, inner: Tap) -> None:
        self._peel = peel
        self._inner = inner
        self._error: ProviderError | None = None

    @property
    def usage(self) -> Usage:
        return self._inner.usage

    @property
    def finish_reason(self) -> str | None:
        return self._inner.finish_reason

    @property
    def started(self) -> bool:
        return self._inner.started

    @property
    def output_bytes(self) -> int:
        return self._inner.output_bytes

    def feed(self, data: bytes) -> bytes:
        """An error waits for the next call when good pieces came in the same read."""
        if self._error is not None:
            raise self._error
        out: list[bytes] = []
        try:
            for piece in self._peel.feed(data):
                out.append(self._inner.feed(piece))  # noqa: PERF401 - what came before an error must be kept
        except WireError as error:
            malformed = Interrupted(error.message, "malformed") if self.started else Broken(error.message)
            malformed.__cause__ = error
            self._error = malformed
        except ProviderError as error:
            self._error = error
        joined = b"".join(out)
        if self._error is not None and not joined:
            raise self._error
        return joined

    def close(self) -> bytes:
        if self._error is not None:
            raise self._error
        if self._peel.pending:
            raise Interrupted("the stream ended inside a frame")
        return self._inner.close()
