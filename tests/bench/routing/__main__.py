"""`python -m tests.bench.routing`: the rules side by side on simulated replicas, as a table and, with --json, one line.

    python -m tests.bench.routing [--replicas 8 32] [--seconds 150] [--json] [--quick]

Ratios are of mean first-token time, ours to the best of the others in the same mix, load and number of replicas."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from itertools import groupby

from rich.console import Console
from rich.table import Table

from tests.bench.routing.simulation import Outcome, table


def ratios(outcomes: list[Outcome]) -> dict[str, float]:
    """By "replicas/mix/load"."""
    found = {}
    for (replicas, mix, load), group in groupby(outcomes, key=lambda o: (o.replicas, o.mix, o.load)):
        by_rule = {o.rule: o.first_token_s for o in group}
        ours = by_rule.pop("ours")
        found[f"{replicas}/{mix}/{load}"] = round(ours / min(by_rule.values()), 3)
    return found


def shown(outcomes: list[Outcome]) -> Table:
    made = Table("replicas", "mix", "load", "rule", "first token ms", "p99 ms", "refused", "cached", "requests")
    for o in outcomes:
        style = "bold" if o.rule == "ours" else ""
        made.add_row(
            str(o.replicas),
            o.mix,
            o.load,
            o.rule,
            f"{o.first_token_s * 1e3:,.1f}",
            f"{o.p99_s * 1e3:,.1f}",
            f"{o.refused:.1%}",
            f"{o.hit:.1%}",
            f"{o.requests:,}",
            style=style,
        )
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.routing", description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--seconds", type=float, default=150.0, help="simulated; the first third warms up")
    parser.add_argument("--quick", action="store_true", help="4 replicas, 60 seconds")
    parser.add_argument("--json", action="store_true", help="one line: ratios and every outcome")
    said = parser.parse_args()
    if said.quick:
        said.replicas, said.seconds = [4], 60.0
    outcomes = table(said.replicas, said.seconds)
    if said.json:
        told = {"ratios": ratios(outcomes), "outcomes": [asdict(o) for o in outcomes]}
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        Console().print(shown(outcomes))
        Console().print(ratios(outcomes))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
