"""`python -m tests.fuzz --seconds 600 [--seed N]`: rounds until the time is up; the first fault ends it with 1 and its
seed, which `--seed N --rounds 1` plays again."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time

from tests.fuzz.decoders import Fault, one_round, seeds

ROUND_S = 30
"""A round takes milliseconds: one that takes this long hangs, and is told with its stack."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=time.time_ns() // 10**6)
    asked = parser.parse_args()
    known, until, done = seeds(), time.monotonic() + asked.seconds, 0
    while done < asked.rounds and time.monotonic() < until:
        faulthandler.dump_traceback_later(ROUND_S, exit=True)
        try:
            one_round(asked.seed + done, known)
        except Fault as fault:
            print(fault, file=sys.stderr)
            return 1
        done += 1
    faulthandler.cancel_dump_traceback_later()
    print(f"{done} rounds from seed {asked.seed}, no fault")
    return 0


if __name__ == "__main__":
    sys.exit(main())
