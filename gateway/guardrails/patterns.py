"""Regular expressions that may look at a stream: how far a match can reach is known before it begins.

A match consists of the pattern's own characters (its alphabet), so as soon as another character has come every decision
before it is final: only the run of such characters at the end of what has come must wait, never more of it than the
longest match. Patterns of which this cannot be said are refused where they are set, and so are those that could keep a
process busy for long: repeats within repeats, and too many ways to match the same text.
Source: CPython 3.11-3.14 `re._parser`, read 2026-11."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any, Final

from msgspec import Struct

WIDTH_MAX: Final = 1000
WAYS_MAX: Final = 4096
PATTERN_CHARS_MAX: Final = 1000

_CLASSES: Final = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
_ANYTHING: Final = r"\s\S"
_REPEATS: Final = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)
_ADVICE: Final = {
    op.AT_END: r"write \Z for the end of the text",
    op.AT_BEGINNING: r"write \A for the beginning of the text",
}


class Detector(Struct, frozen=True):
    """What to look for. good: of a candidate's text, how many of its characters are the thing; 0 for none."""

    name: str
    expression: re.Pattern[str]
    alphabet: re.Pattern[str]
    width: int
    good: Callable[[str], int] | None = None

    def find(self, text: str, start: int) -> tuple[int, int] | None:
        """The first match from there on; what stands before `start` is only looked back at."""
        while (found := self.expression.search(text, start)) is not None:
            if self.good is None:
                return found.span()
            if length := self.good(found.group()):
                return found.start(), found.start() + length
            start = found.start() + 1
        return None

    def settled(self, text: str, start: int) -> int:
        """Up to where nothing that may still come changes what is found: between `start` and the end of `text`."""
        at, least = len(text), max(start, len(text) - self.width)
        while at > least and self.alphabet.match(text, at - 1):
            at -= 1
        return at


def detector(
    name: str,
    pattern: str,
    *,
    ignore_case: bool = False,
    good: Callable[[str], int] | None = None,
    trusted: bool = False,
) -> Detector:
    """trusted: ours, whose cost has been looked at. Raises: ValueError with what to write instead."""
    if len(pattern) > PATTERN_CHARS_MAX:
        raise ValueError(f"the pattern has more than {PATTERN_CHARS_MAX} characters; make it several")
    flags = re.IGNORECASE if ignore_case else 0
    try:
        tree = _parser.parse(pattern, flags)
        expression = re.compile(pattern, flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    least, most = (int(each) for each in tree.getwidth())
    if least == 0:
        raise ValueError("the pattern matches nothing at all; it must match one character at least")
    if most > WIDTH_MAX:
        raise ValueError(
            f"a match may have at most {WIDTH_MAX} characters, or a stream could not be held back for it: "
            "write {1,100} in place of + or *"
        )
    alphabet = "".join(sorted(set(_alphabet(tree))))
    if not trusted and (ways := _ways(tree, inside=False)) > WAYS_MAX:
        raise ValueError(f"the pattern can match a text in {ways} ways, {WAYS_MAX} at most; narrow its repeats")
    # One character more: what a pattern may look ahead.
    return Detector(name, expression, re.compile(f"[{alphabet}]", flags), most + 1, good)


def _alphabet(tree: Any) -> Iterator[str]:
    """Pieces of a character class that holds whatever a match may consist of. Raises: ValueError."""
    for kind, said in tree:
        match kind:
            case op.LITERAL:
                yield re.escape(chr(said))
            case op.NOT_LITERAL | op.ANY:
                yield _ANYTHING
            case op.IN:
                yield from _members(said)
            case op.BRANCH:
                for branch in said[1]:
                    yield from _alphabet(branch)
            case op.SUBPATTERN:
                yield from _alphabet(said[-1])
            case op.ATOMIC_GROUP:
                yield from _alphabet(said)
            case op.MAX_REPEAT | op.MIN_REPEAT | op.POSSESSIVE_REPEAT:
                yield from _alphabet(said[2])
            case op.ASSERT | op.ASSERT_NOT:
                if int(said[1].getwidth()[1]) > 1:
                    raise ValueError("look ahead or behind by one character at most")
                list(_alphabet(said[1]))
            case op.AT:
                if said in _ADVICE:
                    raise ValueError(f"^ and $ mean lines in some places: {_ADVICE[said]}")
            case _:
                raise ValueError("back references and conditions are not supported; write the text out")


def _members(said: Any) -> Iterator[str]:
    for kind, what in said:
        match kind:
            case op.LITERAL:
                yield re.escape(chr(what))
            case op.RANGE:
                yield f"{re.escape(chr(what[0]))}-{re.escape(chr(what[1]))}"
            case op.CATEGORY:
                yield _CLASSES[str(what)]
            case _:  # Everything but what follows.
                yield _ANYTHING


def _ways(tree: Any, *, inside: bool) -> int:
    """A bound on how many ways a match from one place on is tried. Raises: ValueError for a repeat within a repeat."""
    ways = 1
    for kind, said in tree:
        match kind:
            case op.BRANCH:
                if inside:
                    raise ValueError("no alternatives within a repeat: write the repeat out, or use [...]")
                ways *= sum(_ways(branch, inside=inside) for branch in said[1])
            case op.SUBPATTERN:
                ways *= _ways(said[-1], inside=inside)
            case op.ATOMIC_GROUP:
                ways *= _ways(said, inside=inside)
            case _ if kind in _REPEATS:
                least, most, below = said
                if inside and least != most and not _clear(tree, below):
                    raise ValueError("no repeat of varying length within a repeat: it may take for ever")
                ways *= int(most) - int(least) + 1
                ways *= _ways(below, inside=inside or int(most) > 1)
    return ways


def _clear(tree: Any, optional: Any) -> bool:
    """Whether what may be left out shares no character with its neighbours: then there is one way to read it."""
    own = re.compile(f"[{''.join(set(_alphabet(optional)))}]")
    rest = [item for item in tree if not (item[0] in _REPEATS and item[1][2] is optional)]
    if not rest or len(rest) != len(tree) - 1:
        return False
    others = re.compile(f"[{''.join(set(_alphabet(rest)))}]")
    return not any(own.match(chr(c)) and others.match(chr(c)) for c in range(0x250))
