"""What one answer consumed, in tokens. Totals nest: `input_tokens` includes cache reads and writes and audio and image
input, `output_tokens` includes reasoning and audio output. None means not reported, 0 means none."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace


class Usage(Struct, frozen=True, omit_defaults=True):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None  # all lifetimes together
    cache_write_1h_tokens: int | None = None  # the part of cache_write_tokens that lives an hour
    reasoning_tokens: int | None = None
    input_audio_tokens: int | None = None
    output_audio_tokens: int | None = None
    input_image_tokens: int | None = None
    searches: int | None = None  # server-side web searches, billed by the piece
    service_tier: str | None = None  # as the provider reports having used

    def at_least(self, other: Usage) -> Usage:
        """The field-wise maximum. For running totals that a stream repeats: a later frame never lowers a count."""
        changes: dict[str, int | str] = {}
        for name in self.__struct_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if theirs is not None and (mine is None or name == "service_tier" or theirs > mine):
                changes[name] = theirs
        return replace(self, **changes) if changes else self

    @property
    def total_tokens(self) -> int:
        return (self.input_tokens or 0) + (self.output_tokens or 0)
