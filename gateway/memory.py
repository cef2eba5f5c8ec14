"""How a process that runs for months holds its memory."""

import ctypes
import gc
import sys
from typing import Final

# Source: mallopt(3), glibc's malloc.h, read 2026-11.
_M_ARENA_MAX: Final = -8


def share_one_arena() -> None:
    """glibc gives each of the first 8 threads a core an arena of its own, and what is free in one is of no use to
    another: SQLite's, the executor's and the journal's threads held 8 to 12 MB so, and more with each 100,000 requests.
    They wait for a lock instead that is hardly ever taken: one of them at a time has the interpreter.

    To be called before there are threads. Other C libraries have no arenas, and no such call."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_ARENA_MAX, 1)


def spare_the_collector() -> None:
    """Whatever the start has made stays until the end, so no collection need look at it again. A request's own objects
    die by reference count; cycles (tasks, tracebacks) wait for one of the rarer rounds, some MB later at most."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
