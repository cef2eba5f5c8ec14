"""Five rules that choose a replica. Ours is the product's own code on simulated time; the others are written from their
sources (read 2026-11) and see what a router sees: their own requests, nothing inside an engine."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Protocol

from billing.prices import Rates, make_sheet
from billing.usage import Meter
from gateway.routing.catalog import Deployment, Terms
from gateway.routing.health import HealthTable, Trip
from gateway.routing.policy import plan
from gateway.routing.strategies import Load
from gateway.routing.warmth import Cache, Warmth
from providers.base import Capabilities
from tests.bench.routing.replicas import BLOCK_TOKENS, KV_TOKENS, Fleet, Job


class Rule(Protocol):
    def choose(self, job: Job) -> int: ...

    def first(self, job: Job) -> None: ...

    def ended(self, job: Job) -> None: ...


class _Counting:
    """What every rule knows: how many of its own requests are at each replica."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self.count = len(fleet.replicas)
        self.busy = [0] * self.count
        self.rng = rng

    def sent(self, job: Job) -> None:
        self.busy[job.replica] += 1

    def first(self, job: Job) -> None:
        pass

    def ended(self, job: Job) -> None:
        self.busy[job.replica] -= 1


class RoundRobin(_Counting):
    _next = 0

    def choose(self, job: Job) -> int:
        self._next += 1
        return self._next % self.count


class LeastLoad(_Counting):
    def choose(self, job: Job) -> int:
        return min(range(self.count), key=lambda n: (self.busy[n], self.rng.random()))


class BoundedHash(_Counting):
    """Consistent hashing with bounded load on the prompt's first 256 tokens, 1.25 x the mean at most, 100 points a
    replica: KubeAI's rule and SGLang's `prefix_hash`. Source: Mirrokni et al., arXiv 1608.01350."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        super().__init__(fleet, rng)
        self._ring = sorted((_hash((n, point)), n) for n in range(self.count) for point in range(100))

    def choose(self, job: Job) -> int:
        key = job.blocks[min(len(job.blocks), 256 // BLOCK_TOKENS) - 1] if job.blocks else job.session
        at = bisect_left(self._ring, (_hash(key), 0))
        most = 1.25 * (sum(self.busy) + 1) / self.count
        for step in range(len(self._ring)):
            n = self._ring[(at + step) % len(self._ring)][1]
            if self.busy[n] + 1 <= most:
                return n
        return min(range(self.count), key=lambda n: self.busy[n])


class SglangRule(_Counting):
    """`cache_aware` with its defaults: shortest queue when the loads differ by more than 32 and 1.1 x; else the replica
    with the longest match if more than half of the prompt matches; else the least loaded.

    Source: sgl-project/sglang sgl-model-gateway/src/policies/cache_aware.rs. Its tree holds text; here blocks, which
    favours neither. Its sweep of old leaves is the cache's own least-recently-used order here, which favours it."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        super().__init__(fleet, rng)
        self._seen: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(self.count)]

    def choose(self, job: Job) -> int:
        least = min(range(self.count), key=lambda n: (self.busy[n], self.rng.random()))
        most = max(self.busy)
        if most - self.busy[least] > 32 and most > 1.1 * self.busy[least]:
            chosen = least
        else:
            matches = [self._match(n, job) for n in range(self.count)]
            best = max(range(self.count), key=lambda n: matches[n])
            chosen = best if job.blocks and matches[best] / len(job.blocks) > 0.5 else least
        for block in job.blocks:
            self._seen[chosen][block] = None
            self._seen[chosen].move_to_end(block)
        while len(self._seen[chosen]) > KV_TOKENS // BLOCK_TOKENS:
            self._seen[chosen].popitem(last=False)
        return chosen

    def _match(self, n: int, job: Job) -> int:
        count = 0
        for block in job.blocks:
            if block not in self._seen[n]:
                break
            count += 1
        return count


_PRICES = {Meter.INPUT_TOKENS: 5, Meter.OUTPUT_TOKENS: 20}
_SHEET = make_sheet("price", "x", "m", 0, Rates(_PRICES, _PRICES), "operator")


class Ours:
    """`prefix`, as the gateway runs it: the same plan, health and index, told of the same events."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self._fleet = fleet
        self._rng = rng
        self._places = tuple(
            Deployment(str(n), "local", "m", cache=Cache(KV_TOKENS)) for n in range(len(fleet.replicas))
        )
        self._caches = {d.id: d.cache for d in self._places}
        self._health = HealthTable()
        self._warmth = Warmth(entries_max=50_000_000)
        self._trips: dict[Job, Trip] = {}

    def choose(self, job: Job) -> int:
        now = self._fleet.now
        route = plan(
            "m",
            frozenset({"chat"}),
            self._places,
            lambda _: Capabilities(),
            lambda _: _SHEET,
            self._rng.random,
            terms=Terms("prefix"),
            outlook=self._health.outlook(self._caches, now),
            load=Load(job.tokens, None),
            warm=self._warmth.tokens(self._caches, job.blocks, now),
        )
        leg = route.legs[0]
        name = leg.deployment.id
        self._warmth.keep(name, leg.deployment.cache, job.blocks, now)
        self._trips[job] = Trip(self._health.of(name), now, leg.fresh_tokens)
        return int(leg.deployment.provider)

    def sent(self, job: Job) -> None:
        pass

    def first(self, job: Job) -> None:
        self._trips[job].answered(self._fleet.now, streams=True)

    def ended(self, job: Job) -> None:
        self._trips.pop(job).end(self._fleet.now, job.output_tokens)


RULES: dict[str, Callable[[Fleet, random.Random], RoundRobin | LeastLoad | BoundedHash | SglangRule | Ours]] = {
    "round robin": RoundRobin,
    "least load": LeastLoad,
    "bounded hash": BoundedHash,
    "sglang": SglangRule,
    "ours": Ours,
}


def _hash(key: object) -> int:
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big")
