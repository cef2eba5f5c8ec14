"""Does a gateway grow? `python -m tests.bench.growth [--requests 1000000] [--postgres] [--json]`.

A worker with everything on is asked in rounds, an eighth of each for streams; after each round its rows are in SQL and
its resident memory is read. Growth counts from the first tenth on: until then the allocator finds its size."""

from __future__ import annotations

import argparse
import json
import time

from tests.bench.hotpath import drained, load, stack

ROUNDS = 20
STREAMS_EACH = 8


def measure(requests: int, *, postgres: bool, quiet: bool) -> dict[str, object]:
    each = requests // ROUNDS
    points: list[tuple[int, float]] = []
    asked = 0
    began = time.monotonic()
    with stack(postgres=postgres, pin=False) as (gateway, _):
        for _ in range(ROUNDS):
            streams = each // STREAMS_EACH
            common = ("--connections", 64, "--seconds", 3600)
            found = load(gateway.port, *common, "--count", each - streams, pin=False)
            more = load(gateway.port, *common, "--count", streams, "--stream", "--model", "mock-n4-t0-d0", pin=False)
            asked += int(found["answers"]) + int(more["answers"])
            drained(gateway)
            points.append((asked, round(gateway.rss_mb, 2)))
            if not quiet:
                print(f"{asked:>10,} requests {points[-1][1]:>8.2f} MB", flush=True)
        rows = gateway.rows()
    first = next(mb for count, mb in points if count >= requests // 10)
    return {
        "requests": asked,
        "rows": rows,
        "rss_mb_after_first_tenth": first,
        "rss_mb": points[-1][1],
        "growth_mb": round(points[-1][1] - first, 2),
        "most_mb": max(mb for _, mb in points),
        "seconds": round(time.monotonic() - began),
        "points": points,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--postgres", action="store_true", help="rows go to a PostgreSQL of its own, not to SQLite")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.requests, postgres=args.postgres, quiet=args.json)
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        if name != "points":
            print(f"{name:26} {value!s:>12}")


if __name__ == "__main__":
    main()
