"""Where the time of one request goes while little is asked: `python -m tests.bench.stages [--rate 50] [--json]`.

CPU does not tell: at 50 requests a second most of a latency is waiting, and code that nobody has run for 20 ms is cold.
The gateway notes the clock where a request passes from one hand to the next; told are medians over the requests that
had the gateway to themselves, of whole answers, with every limit, the journal and the rows on."""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.bench.hotpath import drained, load, stack

_WHERE = "FAREBOX_BENCH_STAGES"
Mark = tuple[str, int]

# What ends at each mark, in the order in which a request comes by.
STAGES = {
    "in": "the client's bytes are here",
    "limits asked": "head, body, key, plan, worst case; the script leaves for Valkey",
    "limits told": "Valkey, and two wake-ups",
    "intent": "the intent is in the page cache",
    "upstream asked": "body and head for the provider; they leave",
    "upstream told": "the provider, and two wake-ups",
    "settled": "the answer is read, rated, its record made",
    "sync begun": "the journal's thread has the record",
    "sync ended": "the disk has it",
    "out": "the loop is woken; the answer leaves",
}


def marked() -> None:
    """The `farebox` command, whose requests leave marks between two SIGUSR1."""
    from billing import journal
    from gateway.admission import link
    from gateway.cli import main as farebox
    from gateway.ingress.connection import Exchange
    from gateway.ingress.guard import Guard
    from providers.transport.http1_connection import Connection

    marks: list[Mark] = []

    def note(owner: Any, name: str, begun: str | None = None, ended: str | None = None) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def noting(*args: Any, **named: Any) -> Any:
            if begun:
                marks.append((begun, time.perf_counter_ns()))
            result = inner(*args, **named)
            if ended:
                marks.append((ended, time.perf_counter_ns()))
            return result

        setattr(owner, name, noting)

    note(Guard, "data_received", begun="in")
    note(link._Wire, "_flush", ended="limits asked")
    note(link._Wire, "data_received", begun="limits told")
    note(journal.Journal, "intent", ended="intent")
    note(Connection, "begin", ended="upstream asked")
    note(Connection, "data_received", begun="upstream told")
    note(journal.Journal, "settle", begun="settled")
    note(journal, "_sync", begun="sync begun", ended="sync ended")
    note(Exchange, "_send", ended="out")

    def leave(*_: object) -> None:
        where = Path(os.environ[_WHERE])
        where.with_suffix(".part").write_text(json.dumps(marks))
        where.with_suffix(".part").rename(where)
        marks.clear()

    signal.signal(signal.SIGUSR1, leave)
    farebox()


def between(marks: Sequence[Mark]) -> dict[str, float]:
    """Medians in us of what passes from each mark to the next, over requests whose marks came in order, and how many
    those were."""
    asked: list[dict[str, int]] = []
    for name, at_ns in sorted(marks, key=lambda mark: mark[1]):
        if name == "in":
            asked.append({})
        if asked:
            asked[-1].setdefault(name, at_ns)  # The first: a settlement asks Valkey, too, and is told.
    names = list(STAGES)
    alone = [seen for seen in asked if list(seen) == names]
    if not alone:
        raise SystemExit("no request had the gateway to itself: ask for a lower --rate")
    found = {to: statistics.median(seen[to] - seen[at] for seen in alone) / 1000 for at, to in pairwise(names)}
    whole = statistics.median(seen["out"] - seen["in"] for seen in alone) / 1000
    return found | {"whole": whole, "requests": len(alone)}


def measure(rate: float, seconds: float, postgres: bool) -> dict[str, float]:
    asked = ("--connections", 8, "--rate", rate, "--seconds", seconds)
    with tempfile.TemporaryDirectory(prefix="fbx-stages-") as name:
        left, program = Path(name) / "marks", ("-m", "tests.bench.stages", "--gateway")
        with stack(postgres=postgres, pin=True, extra={_WHERE: str(left)}, program=program) as (gateway, upstream):
            load(gateway.port, "--connections", 16, "--seconds", 1.5, pin=True)
            drained(gateway)
            _marks(gateway.process.pid, left)  # Those of warming up.
            through, alone = load(gateway.port, *asked, pin=True), load(upstream, *asked, pin=True)
            found = between(_marks(gateway.process.pid, left))
    added_us = (through["latency_ms_p50"] - alone["latency_ms_p50"]) * 1000
    return found | {"added_p50": added_us}


def _marks(pid: int, left: Path) -> list[Mark]:
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + 60
    while not left.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    found = [(name, at_ns) for name, at_ns in json.loads(left.read_text())]
    left.unlink()
    return found


def main() -> None:
    if sys.argv[1:2] == ["--gateway"]:
        del sys.argv[1]
        return marked()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.rate, args.seconds, args.postgres)
    if args.json:
        print(json.dumps(found))
        return None
    for name, what in STAGES.items():
        if name in found:
            print(f"{name:16} {found[name]:7.0f} us  {what}")
    print(f"{'in all':16} {found['whole']:7.0f} us  inside the gateway, median of {found['requests']:.0f} requests")
    print(f"{'added':16} {found['added_p50']:7.0f} us  to the median that a client sees")
    return None


if __name__ == "__main__":
    main()
