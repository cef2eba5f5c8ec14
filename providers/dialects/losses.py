"""What a request asks that a target cannot say: collected while it is encoded, judged once at the end."""

from __future__ import annotations

from providers.errors import Unsupported


class Losses:
    """One per encoding. Names are the client's field names or paths; each is told once, in the order found."""

    __slots__ = ("_dropped", "_refused", "_strict", "_where")

    def __init__(self, where: str, strict: bool) -> None:
        self._where = where
        self._strict = strict
        self._refused: dict[str, None] = {}
        self._dropped: dict[str, None] = {}

    def refuse(self, feature: str) -> None:
        """Without it the answer would be to another question, so no choice of the project's lets it go."""
        self._refused[feature] = None

    def drop(self, feature: str) -> None:
        """A lenient request may go without it; a strict one is refused."""
        (self._refused if self._strict else self._dropped)[feature] = None

    def tell(self, feature: str) -> None:
        """Left out whatever the mode, and listed: nobody could have sent it (another model's sealed reasoning)."""
        self._dropped[feature] = None

    def settle(self) -> tuple[str, ...]:
        """What was left out. Raises: Unsupported naming everything refused."""
        if self._refused:
            raise Unsupported(tuple(self._refused), self._where)
        return tuple(self._dropped)
