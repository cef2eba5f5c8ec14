"""Content codings undone, with a bound: a few compressed bytes must not become gigabytes. Only met where a peer ignores
our `accept-encoding: identity`, which we send because a compressor in between holds stream events back."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from providers.errors import Broken

STEP_BYTES = 256 * 1024
FREE_BYTES = 8 * 1024 * 1024
MAX_RATIO = 200  # JSON of repeated text reaches 50; a bomb 1000


class ContentDecoder:
    """gzip or deflate, a bounded piece at a time."""

    def __init__(self, coding: str) -> None:
        """Raises: Broken for a coding that was not asked for and is not known."""
        self._coding = coding
        match coding:
            case "gzip" | "x-gzip":
                self._zlib = zlib.decompressobj(16 + zlib.MAX_WBITS)
            case "deflate":
                self._zlib = zlib.decompressobj()
            case _:
                raise Broken(f"unasked content coding {coding!r}")
        self._in = 0
        self._out = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises: Broken for bytes that are not of this coding or that unfold beyond the bound."""
        self._in += len(data)
        while data:
            try:
                piece = self._zlib.decompress(data, STEP_BYTES)
            except zlib.error as error:
                if self._coding == "deflate" and self._out == 0:
                    # Half of the servers that say deflate leave out the zlib header the standard wants.
                    self._coding, self._zlib = "raw deflate", zlib.decompressobj(-zlib.MAX_WBITS)
                    continue
                raise Broken(f"the body is not {self._coding}: {error}") from error
            self._out += len(piece)
            if self._out > FREE_BYTES and self._out > MAX_RATIO * self._in:
                raise Broken(f"the body unfolds to more than {MAX_RATIO} times its size")
            if piece:
                yield piece
            data = self._zlib.unconsumed_tail
            if self._zlib.eof:
                return

    @property
    def whole(self) -> bool:
        """The compressed stream has reached its own end."""
        return self._zlib.eof


def decoder_for(coding: str | None) -> ContentDecoder | None:
    """Raises: Broken."""
    kind = (coding or "").strip().lower()
    return None if kind in ("", "identity") else ContentDecoder(kind)
