"""`python -m tests.bench.routing`: the rules side by side on simulated replicas, as a table and, with --json, one line.

    python -m tests.bench.routing [--replicas 8 32 64] [--seconds 60] [--json] [--svg FILE]
    python -m tests.bench.routing --real [--json]      4 engine processes on this machine, through a gateway

Ratios are of mean first-token time, ours to the best of the four others in the same mix, load and number of replicas.
Where the load is more than the fleet can bear, every first token waits for a full queue; `soon` is then ours to the
best of the four in the share of requests that had a first token within a second. `oracle` is no router: it sees into
every engine. `bound` is what no router can beat, however much it knows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.routing.drawing import drawn
from tests.bench.routing.rules import ORACLE, OURS, RULES
from tests.bench.routing.simulation import RATES, Outcome, table
from tests.bench.routing.workloads import MIXES

OTHERS = RULES.keys() - {OURS}


Cells = Iterator[tuple[str, dict[str, Outcome]]]


def cells(outcomes: list[Outcome]) -> Cells:
    """By "replicas/mix/load": each rule's."""
    for (replicas, mix, load), group in groupby(outcomes, key=lambda o: (o.replicas, o.mix, o.load)):
        yield f"{replicas}/{mix}/{load}", {o.rule: o for o in group}


def to_the_best_other(outcomes: list[Outcome], of: Callable[[dict[str, Outcome]], float]) -> dict[str, float]:
    """First-token times: this one's to the best of the four."""
    return {
        name: round(of(cell) / min(o.first_token_s for rule, o in cell.items() if rule in OTHERS), 3)
        for name, cell in cells(outcomes)
    }


def soon(outcomes: list[Outcome]) -> dict[str, float]:
    """Where there is more than the fleet can bear: share of ours that came soon, to the best of the four."""
    return {
        name: round(cell[OURS].soon / max(0.001, *(cell[rule].soon for rule in OTHERS)), 3)
        for name, cell in cells(outcomes)
        if name.endswith("/overload")
    }


def bound(cell: dict[str, Outcome]) -> float:
    return min(o.bound_s for o in cell.values())


def told(outcomes: list[Outcome]) -> dict[str, Any]:
    """ratios: ours. oracle, bounds: what one who sees into the engines gets, and what nobody can beat: where a bound is
    above 0.5, no router halves the best of the four."""
    return {
        "ratios": to_the_best_other(outcomes, lambda cell: cell[OURS].first_token_s),
        "oracle": to_the_best_other(
            [o for o in outcomes if o.load != "overload"], lambda cell: cell[ORACLE].first_token_s
        ),
        "bounds": to_the_best_other(outcomes, bound),
        "soon": soon(outcomes),
    }


def shown(outcomes: list[Outcome]) -> Table:
    made = Table("replicas", "mix", "load", "rule", "first token ms", "p99 ms", "soon", "refused", "cached", "requests")
    for _, cell in cells(outcomes):
        for o in cell.values():
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
                f"{o.requests:,}",
                style="bold" if o.rule == OURS else "",
            )
        made.add_row(str(o.replicas), o.mix, o.load, "bound", f"{bound(cell) * 1e3:,.1f}", end_section=True)
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
        sys.stdout.write(json.dumps(told(outcomes) | {"outcomes": [asdict(o) for o in outcomes]}) + "\n")
    else:
        Console().print(shown(outcomes))
        Console().print(told(outcomes))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
