"""Two trees of this code beside each other: `python -m tests.bench.versus OTHER [--rounds 6] [--postgres]`.

One gateway of each, of which one at a time is asked, in turns: whatever else the machine does meets both alike. CPU is
by schedstat, of a request with its row shipped; `loop` is the event loop's thread alone. OTHER: a checkout, for example
of `git worktree add`. Differences below 2 % want more rounds."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from tests.bench.hotpath import Gateway, drained, load, stack


def measure(other: Path, rounds: int, connections: int, seconds: float, postgres: bool) -> dict[str, Any]:
    with stack(postgres=postgres, pin=True, tree=other) as (old, _), stack(postgres=postgres, pin=True) as (new, _):
        gateways = {"other": old, "here": new}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in gateways}
        for gateway in gateways.values():
            load(gateway.port, "--connections", connections, "--seconds", 1.5, pin=True)
            drained(gateway)
        for turn in range(rounds):
            for name, gateway in list(gateways.items())[:: 1 if turn % 2 else -1]:
                found[name].append(_cost_us(gateway, connections, seconds))
    figures: dict[str, Any] = {}
    for name, costs in found.items():
        figures[name] = {
            "cpu_us": round(statistics.median(whole for whole, _ in costs), 1),
            "loop_us": round(statistics.median(loop for _, loop in costs), 1),
            "each": [round(whole) for whole, _ in costs],
        }
    figures["ratio"] = round(figures["here"]["cpu_us"] / figures["other"]["cpu_us"], 3)
    figures["loop_ratio"] = round(figures["here"]["loop_us"] / figures["other"]["loop_us"], 3)
    return figures


def _cost_us(gateway: Gateway, connections: int, seconds: float) -> tuple[float, float]:
    whole_s, loop_s = gateway.cpu_s, gateway.loop_cpu_s
    answers = load(gateway.port, "--connections", connections, "--seconds", seconds, pin=True)["answers"]
    drained(gateway)
    return (gateway.cpu_s - whole_s) / answers * 1e6, (gateway.loop_cpu_s - loop_s) / answers * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--postgres", action="store_true")
    args = parser.parse_args()
    found = measure(args.other.resolve(), args.rounds, args.connections, args.seconds, args.postgres)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
