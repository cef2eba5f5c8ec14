"""What became of what another gateway had: carried, changed on the way, or left behind, each with why."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field


class Note(Struct, frozen=True):
    """what: as the other gateway calls it. why: what we made of it, or what to do instead."""

    what: str
    why: str


class Report(Struct):
    carried: list[Note] = field(default_factory=list)
    changed: list[Note] = field(default_factory=list)
    left: list[Note] = field(default_factory=list)

    def carry(self, what: str, why: str = "") -> None:
        self.carried.append(Note(what, why))

    def change(self, what: str, why: str) -> None:
        self.changed.append(Note(what, why))

    def leave(self, what: str, why: str) -> None:
        note = Note(what, why)
        if note not in self.left:  # The same parameter of many models is said once.
            self.left.append(note)

    def plain(self) -> dict[str, list[dict[str, Any]]]:
        return {
            name: [{"what": note.what, "why": note.why} for note in notes]
            for name, notes in (("carried", self.carried), ("changed", self.changed), ("not_carried", self.left))
        }
