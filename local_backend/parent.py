"""Ending with the process that started us, so that no engine is left behind by a killed gateway or test."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # Source: prctl(2)
CHECK_EVERY_S = 0.5


def die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent ends; `parent_gone` covers other systems."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


async def parent_gone(stop: Callable[[], None]) -> None:
    """Calls `stop` once our parent is another process than it was; the kernel hands orphans to init or a subreaper.

    A parent with id 1 is a parent like others: in a container that is who starts us."""
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(CHECK_EVERY_S)
    stop()
