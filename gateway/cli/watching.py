"""`--watch`: a command again and again, each time on a clean screen."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

from gateway.cli.common import OK, WRONG_USAGE, Problem

LEAST_S: Final = 0.2
_CLEAR: Final = "\x1b[H\x1b[2J"


def again_and_again(once: Callable[[], object], every_s: float, *, changes: bool, as_json: bool) -> int:
    """Until Ctrl-C, which is how one leaves it: exit code 0. Raises: what `once` raises; Problem for what is not to be
    done twice."""
    if changes:
        raise Problem("--watch would do it again and again", fix="only for what changes nothing", code=WRONG_USAGE)
    if not every_s >= LEAST_S:
        raise Problem(f"--watch {every_s:g} is too often", fix=f"at least {LEAST_S:g} seconds", code=WRONG_USAGE)
    try:
        while True:
            if sys.stdout.isatty() and not as_json:
                sys.stdout.write(_CLEAR)
            once()
            sys.stdout.flush()
            time.sleep(every_s)
    except (KeyboardInterrupt, BrokenPipeError):
        return OK
