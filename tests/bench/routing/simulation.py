"""Every rule under every mix at two loads, on the same arrivals."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from statistics import fmean

from tests.bench.routing.replicas import Fleet, Job, least_s
from tests.bench.routing.rules import ORACLE, RULES, Oracle
from tests.bench.routing.workloads import MIXES

# Requests (chat: conversations) a second and replica: about half of what round robin can bear, about all of it, and so
# much that it refuses a part.
RATES = {
    "spare": {"chat": 0.8, "system": 4.0, "rag": 4.0, "cold": 3.0, "agents": 0.5},
    "saturated": {"chat": 2.6, "system": 22.0, "rag": 10.0, "cold": 7.5, "agents": 2.5},
    "overload": {"chat": 9.0, "system": 36.0, "rag": 20.0, "cold": 16.0, "agents": 12.0},
}
SOON_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """first_token_s, p99_s: of those that were taken. soon: share of all that had their first token within SOON_S.
    refused: share, by every replica. hit: share of prompt tokens found cached. bound_s: the mean if each request had
    met an idle replica that holds all that anybody has ever asked: no router is sooner, knew it the future."""

    rule: str
    mix: str
    load: str
    replicas: int
    requests: int
    first_token_s: float
    p99_s: float
    refused: float
    hit: float
    soon: float
    bound_s: float


def simulate(rule: str, mix: str, load: str, replicas: int, seconds: float, seed: int = 7) -> Outcome:
    """The first third of the time warms up and is not counted."""
    fleet = Fleet(replicas)
    chooser = (Oracle if rule == ORACLE else RULES[rule])(fleet, random.Random(seed + 1))
    fleet.on_first, fleet.on_end = chooser.first, chooser.ended
    refused_late = asked_late = 0
    asked: set[int] = set()
    bounds: list[float] = []

    def send(job: Job) -> bool:
        nonlocal refused_late, asked_late
        late = fleet.now >= seconds / 3
        asked_late += late
        if late:
            bounds.append(least_s(job, asked))
        asked.update(job.blocks)
        for replica in chooser.order(job):
            job.replica = replica
            chooser.sent(job)
            if fleet.submit(job, replica):
                return True
            chooser.refused(job)
        refused_late += late
        return False

    MIXES[mix](fleet, send, RATES[load][mix] * replicas, seconds, random.Random(seed))
    fleet.run(seconds)
    # Who still waits at the end has waited that long already: leaving them out would flatter who lets them wait.
    waits = [j.first_token - j.began for j in fleet.served if j.first_token is not None and j.began >= seconds / 3]
    waits += [fleet.now - j.began for r in fleet.replicas for j in (*r.waiting, *r.running) if j.first_token is None]
    waits.sort()
    prefilled, cached = (sum(getattr(r, what) for r in fleet.replicas) for what in ("prefilled", "cached"))
    return Outcome(
        rule,
        mix,
        load,
        replicas,
        asked_late,
        fmean(waits),
        waits[int(len(waits) * 0.99)],
        refused_late / max(1, asked_late),
        cached / max(1, cached + prefilled),
        sum(wait <= SOON_S for wait in waits) / max(1, asked_late),
        fmean(bounds),
    )


def table(
    replicas: Iterable[int],
    seconds: float,
    mixes: Iterable[str] = MIXES,
    loads: Iterable[str] = RATES,
    seeds: Sequence[int] = (7,),
) -> list[Outcome]:
    """In as many processes as there are cores; the figures are the same in any number of them."""
    cells = [
        (rule, mix, load, count, seconds, seed)
        for count in replicas
        for mix in mixes
        for load in loads
        for rule in (*RULES, *(() if load == "overload" else (ORACLE,)))  # With long queues it counts for minutes.
        for seed in seeds
    ]
    with ProcessPoolExecutor() as pool:
        outcomes = list(pool.map(simulate, *zip(*cells, strict=True)))
    return [merged(outcomes[at : at + len(seeds)]) for at in range(0, len(outcomes), len(seeds))]


def merged(same: Sequence[Outcome]) -> Outcome:
    """One cell's runs with several seeds as their means."""
    measured = ("first_token_s", "p99_s", "refused", "hit", "soon", "bound_s")
    means = {name: fmean(getattr(each, name) for each in same) for name in measured}
    return replace(same[0], requests=sum(each.requests for each in same), **means)
