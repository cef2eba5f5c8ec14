"""One rule's look at one text that may come in pieces: what is found, what leaves, and what must wait.

However a text is sliced, what leaves is the same as for the whole of it: a place is decided once nothing that may still
come could change the decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from gateway.guardrails.detectors import placeholder
from gateway.guardrails.patterns import Detector

Action = Literal["redact", "block", "flag"]


class Screen:
    """found: how often each detector has matched. blocked: the name of the one that ends the answer."""

    __slots__ = ("_action", "_at", "_detectors", "_in_string", "_json", "_kept", "blocked", "found")

    def __init__(self, detectors: Sequence[Detector], action: Action, *, json: bool = False) -> None:
        """json: the text is JSON, so what replaces a number must be a string of its own."""
        self._detectors = detectors
        self._action = action
        self._json = json
        self._in_string = False
        # What has come and is not decided, behind one character that was: patterns may look back by one.
        self._kept = ""
        self._at = 0
        self.found: dict[str, int] = {}
        self.blocked: str | None = None

    @property
    def waits(self) -> bool:
        return self._action != "flag" and self._at < len(self._kept)

    def feed(self, text: str, *, final: bool = False) -> str:
        """What may leave now. final: nothing more will come."""
        kept = self._kept + text
        out = self._decided(kept, final)
        start = max(0, self._at - 1)
        self._kept, self._at = kept[start:], self._at - start
        return text if self._action == "flag" else out

    def _decided(self, text: str, final: bool) -> str:
        limit = len(text)
        if not final:
            limit = min(each.settled(text, self._at) for each in self._detectors)
        out: list[str] = []
        while self._at < limit and (first := self._first(text, limit)) is not None:
            start, end, name = first
            self.found[name] = self.found.get(name, 0) + 1
            out.append(self._passed(text[self._at : start]))
            self._at = end
            if self._action == "block":
                self.blocked = name
                return "".join(out)
            out.append(self._replaced(name))
        if self._at < limit:
            out.append(self._passed(text[self._at : limit]))
            self._at = limit
        return "".join(out)

    def _first(self, text: str, limit: int) -> tuple[int, int, str] | None:
        """The match that begins first and before the limit; of several the longest."""
        best: tuple[int, int, str] | None = None
        for each in self._detectors:
            span = each.find(text, self._at)
            if span is not None and span[0] < limit and (best is None or (span[0], -span[1]) < (best[0], -best[1])):
                best = (*span, each.name)
        return best

    def _passed(self, text: str) -> str:
        if self._json and self._action == "redact":
            self._in_string = in_string(text, self._in_string)
        return text

    def _replaced(self, name: str) -> str:
        said = placeholder(name)
        return f'"{said}"' if self._json and not self._in_string else said


def in_string(text: str, before: bool) -> bool:
    """Whether JSON text ends within a string. A backslash that ends the text counts for nothing: what it escapes is
    looked at with what follows, and a match never begins there."""
    inside, escaped = before, False
    for char in text:
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = inside
        elif char == '"':
            inside = not inside
    return inside


class Finding(Struct, frozen=True):
    """What a rule made of a request. outcome: passed, redacted, blocked, flagged, or failed. found: matches by name."""

    rule_id: str
    rule: str
    stage: Literal["input", "output"]
    outcome: str
    found: dict[str, int]
    reason: str | None = None
