"""How a process behaves whose parent decides: it ends with it, so that no engine is left behind by a killed gateway."""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import os
import signal
import sys
from collections.abc import Callable
from typing import BinaryIO

PR_SET_PDEATHSIG = 1  # Source: prctl(2)
CHECK_EVERY_S = 0.5


def die_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Ask Linux for a signal when the parent ends; `parent_gone` covers other systems."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, by, 0, 0, 0)


async def parent_gone(stop: Callable[[], None]) -> None:
    """Calls `stop` once our parent is another process than it was; the kernel hands orphans to init or a subreaper.

    A parent with id 1 is a parent like others: in a container that is who starts us."""
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(CHECK_EVERY_S)
    stop()


def quiet_child() -> BinaryIO:
    """Make this process one that speaks frames: stdout is theirs alone, signals for the whole group are the parent's.

    Returns: where the frames go."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a library that prints must not cut into the frames
    faulthandler.enable()
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1)  # the watchdog asks for stacks before it kills
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the front decides when we end
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return out
