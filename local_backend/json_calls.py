"""JSON read as it comes, far enough to stream the arguments of a call before the call is whole."""

from __future__ import annotations

import json


class Balance:
    """Finds the end of one JSON object or array, character by character."""

    def __init__(self) -> None:
        self.depth = 0
        self.in_string = False
        self._escaped = False

    @property
    def done(self) -> bool:
        """True once what was opened first is closed."""
        return self._closed

    _closed = False

    def feed(self, text: str) -> int:
        """Returns: how many characters belong to the value; fewer than all once it is done."""
        for used, char in enumerate(text, 1):
            self.step(char)
            if self._closed:
                return used
        return len(text)

    def step(self, char: str) -> None:
        """One character."""
        if self.in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self.in_string = False
        elif char == '"':
            self.in_string = True
        elif char in "{[":
            self.depth += 1
        elif char in "}]":
            self.depth -= 1
            self._closed = self.depth <= 0


class CallObject:
    """`{"name": "...", "arguments": {...}}`, the keys in any order, `parameters` for `arguments` as Llama has it.

    `pending` holds what has come of the arguments since the last `take`."""

    NAMES = ("name",)
    ARGUMENTS = ("arguments", "parameters")

    def __init__(self) -> None:
        self.raw = ""
        self.name: str | None = None
        self.pending = ""
        self.begun = False
        self._taken = False
        self._balance = Balance()
        self._token = ""  # the string or bare value that is read at depth 1
        self._key: str | None = None
        self._inside = False  # within the arguments' own braces

    @property
    def done(self) -> bool:
        """True once the object is closed."""
        return self._balance.done

    def feed(self, text: str) -> int:
        """Returns: how many characters belong to the object."""
        for used, char in enumerate(text, 1):
            self._step(char)
            if self.done:
                self.raw += text[:used]
                return used
        self.raw += text
        return len(text)

    def take(self) -> str:
        """The arguments since the last time; of a call that has none, `{}` when it is done."""
        text, self.pending = self.pending, ""
        if text:
            self._taken = True
        elif self.done and not self._taken:
            self._taken, text = True, "{}"
        return text

    def _step(self, char: str) -> None:
        balance = self._balance
        was_string, was_depth = balance.in_string, balance.depth
        balance.step(char)
        if was_depth == 1 and balance.depth == 2 and self._key in self.ARGUMENTS:
            self._inside = True
        if self._inside:
            self.pending += char
            self._inside = balance.depth > 1
        elif was_depth == 1:
            if was_string or balance.in_string:
                self._token += char
            elif char == ":":
                self._key, self._token = _text(self._token), ""
            elif char in ",}":
                self._value()

    def _value(self) -> None:
        """A value at depth 1 is whole."""
        if self._key in self.NAMES and (name := _text(self._token)):
            self.name = name
        elif self._key in self.ARGUMENTS and self._token:
            self.pending += _text(self._token) or ""  # some models write the arguments as a text of their own
        self._key, self._token = None, ""


def _text(token: str) -> str | None:
    """The content of a JSON string, None if it is none."""
    try:
        value = json.loads(token)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
