"""Log lines that strangers can cause: one now and then, with how many were left out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

EVERY_S: Final = 10.0


class Seldom:
    def __init__(self, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._next = 0.0
        self._unsaid = 0

    def unsaid(self) -> int | None:
        """How many lines were left out since the last; None: leave this one out too."""
        now = self._clock()
        if now < self._next:
            self._unsaid += 1
            return None
        unsaid, self._unsaid, self._next = self._unsaid, 0, now + self._every_s
        return unsaid


class SeldomFilter(logging.Filter):
    """Of a library's logger: the same line is not said again for a while."""

    def __init__(self, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s = every_s
        self._clock = clock
        self._lines: dict[object, Seldom] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        seldom = self._lines.get(record.msg)
        if seldom is None:
            if len(self._lines) > 100:  # Lines that are all different are no flood of one.
                return True
            seldom = self._lines[record.msg] = Seldom(self._every_s, self._clock)
        unsaid = seldom.unsaid()
        if unsaid:
            record.msg = f"{record.msg} ({unsaid} more like it)"
        return unsaid is not None
