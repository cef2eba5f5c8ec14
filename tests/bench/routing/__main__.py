"""`python -m tests.bench.routing`: the rules side by side on simulated replicas, as a table and, with --json, one line.

    python -m tests.bench.routing [--replicas 8 32 64] [--seconds 60] [--json] [--svg FILE]
    python -m tests.bench.routing --real [--json]      4 engine processes on this machine, through a gateway

Ratios are of mean first-token time, ours to the best of the others in the same mix, load and number of replicas. Where
the load is more than the fleet can bear, every first token waits for a full queue; `soon` is then ours to the best of
the others in the share of requests that had a first token within a second."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.routing.drawing import drawn
from tests.bench.routing.simulation import RATES, Outcome, table
from tests.bench.routing.workloads import MIXES


def ratios(outcomes: list[Outcome]) -> dict[str, float]:
    """By "replicas/mix/load"."""
    found = {}
    for (replicas, mix, load), group in groupby(outcomes, key=lambda o: (o.replicas, o.mix, o.load)):
        by_rule = {o.rule: o.first_token_s for o in group}
        ours = by_rule.pop("ours")
        found[f"{replicas}/{mix}/{load}"] = round(ours / min(by_rule.values()), 3)
    return found


def soon(outcomes: list[Outcome]) -> dict[str, float]:
    """By "replicas/mix/overload": share of ours that came soon, to the best of the others."""
    found = {}
    for (replicas, mix, load), group in groupby(outcomes, key=lambda o: (o.replicas, o.mix, o.load)):
        by_rule = {o.rule: o.soon for o in group}
        ours = by_rule.pop("ours")
        if load == "overload":
            found[f"{replicas}/{mix}/{load}"] = round(ours / max(0.001, *by_rule.values()), 3)
    return found


def shown(outcomes: list[Outcome]) -> Table:
    made = Table(
        "replicas",
        "mix",
        "load",
        "rule",
        "first token ms",
        "p99 ms",
        "soon",
        "refused",
        "cached",
        "floor ms",
        "requests",
    )
    for o in outcomes:
        style = "bold" if o.rule == "ours" else ""
        made.add_row(
            str(o.replicas),
            o.mix,
            o.load,
            o.rule,
            f"{o.first_token_s * 1e3:,.1f}",
            f"{o.p99_s * 1e3:,.1f}",
            f"{o.soon:.1%}",
            f"{o.refused:.1%}",
            f"{o.hit:.1%}",
            f"{o.floor_s * 1e3:,.1f}",
            f"{o.requests:,}",
            style=style,
        )
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.routing", description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[8])
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated; the first third warms up")
    parser.add_argument("--mixes", nargs="+", default=list(MIXES), choices=list(MIXES))
    parser.add_argument("--loads", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 11], help="each cell is their mean")
    parser.add_argument("--json", action="store_true", help="one line: ratios and every outcome")
    parser.add_argument("--svg", type=Path, help="also draw the outcomes")
    parser.add_argument("--real", action="store_true", help="engines in place of simulated ones")
    said = parser.parse_args()
    if said.real:
        from tests.bench.routing.real import main as real  # on use: it brings the engine, and torch

        return real(said.json)
    outcomes = table(said.replicas, said.seconds, said.mixes, said.loads, said.seeds)
    if said.svg is not None:
        said.svg.write_text(drawn(outcomes))
    if said.json:
        told = {"ratios": ratios(outcomes), "soon": soon(outcomes), "outcomes": [asdict(o) for o in outcomes]}
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        Console().print(shown(outcomes))
        Console().print(ratios(outcomes), soon(outcomes))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
