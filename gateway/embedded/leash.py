"""Ends one process when standard input does: what ties a child to its parent on kernels without PR_SET_PDEATHSIG.

A script of its own with nothing imported from the house: `python leash.py PID`, standard input a pipe from the parent.
"""

import os
import signal
import sys


def main(pid: int) -> None:
    while sys.stdin.buffer.read(1024):
        pass
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main(int(sys.argv[1]))
