"""The images of one request, as the core holds them: where their tokens stand, what is known of each. No torch here.

They live as long as a sequence refers to them, waiting and preempted ones included.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from local_backend.messages import AddImages


@dataclass(slots=True, eq=False)
class Pictures:
    """Tiles in the order of the prompt. A tile is the bytes of its pixels until the runner has looked at it, from then
    on what was seen, as tokens."""

    id: int
    starts: list[int]
    tile_tokens: int
    digests: list[bytes]
    tiles: list[Any]

    @classmethod
    def of(cls, message: AddImages) -> Pictures:
        """As the front sent them."""
        images = message.images
        return cls(message.id, images.starts, images.tile_tokens, images.digests, list(images.tiles))

    def between(self, start: int, end: int) -> range:
        """Tiles of which some token stands at positions from `start` to `end`."""
        return range(bisect_right(self.starts, start - self.tile_tokens), bisect_right(self.starts, end - 1))

    def digest(self, start: int, end: int) -> bytes:
        """What tells these positions from those of another prompt with the same tokens."""
        return b"".join(self.digests[at] for at in self.between(start, end))
