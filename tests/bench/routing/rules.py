"""Five rules that choose a replica, and an oracle. Ours is the product's own code on simulated time; the other four are
written from their sources (read 2026-11) and see what a router sees: their own requests, nothing inside an engine. Whom
a replica refuses, every rule asks its next choice for."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
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
from providers.errors import Overloaded
from tests.bench.routing.replicas import BLOCK_TOKENS, KV_TOKENS, Fleet, Job

OURS, ORACLE = "ours", "oracle"


class Rule(Protocol):
    def order(self, job: Job) -> Iterable[int]:
        """Whom to ask: the next one where one refuses."""

    def sent(self, job: Job) -> None:
        """To `job.replica`."""

    def refused(self, job: Job) -> None: ...

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

    def refused(self, job: Job) -> None:
        self.busy[job.replica] -= 1

    def first(self, job: Job) -> None:
        pass

    def ended(self, job: Job) -> None:
        self.busy[job.replica] -= 1

    def idlest(self) -> list[int]:
        return sorted(range(self.count), key=lambda n: (self.busy[n], self.rng.random()))


class RoundRobin(_Counting):
    _next = 0

    def order(self, job: Job) -> Iterator[int]:
        self._next += 1
        return ((self._next + step) % self.count for step in range(self.count))


class LeastLoad(_Counting):
    def order(self, job: Job) -> list[int]:
        return self.idlest()


class BoundedHash(_Counting):
    """Consistent hashing with bounded load on the prompt's first 256 tokens, 1.25 x the mean at most, 100 points a
    replica: KubeAI's rule and SGLang's `prefix_hash`. Source: Mirrokni et al., arXiv 1608.01350."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        super().__init__(fleet, rng)
        self._ring = sorted((_hash((n, point)), n) for n in range(self.count) for point in range(100))

    def order(self, job: Job) -> Iterator[int]:
        key = job.blocks[min(len(job.blocks), 256 // BLOCK_TOKENS) - 1] if job.blocks else job.session
        at = bisect_left(self._ring, (_hash(key), 0))
        most = 1.25 * (sum(self.busy) + 1) / self.count
        asked: set[int] = set()
        for step in range(len(self._ring)):
            n = self._ring[(at + step) % len(self._ring)][1]
            if n not in asked and self.busy[n] + 1 <= most:
                asked.add(n)
                yield n
        yield from (n for n in self.idlest() if n not in asked)


class SglangRule(_Counting):
    """`cache_aware` with its defaults: shortest queue when the loads differ by more than 32 and 1.1 x; else the replica
    with the longest match if more than half of the prompt matches; else the least loaded.

    Source: sgl-project/sglang sgl-model-gateway/src/policies/cache_aware.rs. Its tree holds text; here blocks, which
    favours neither. Its sweep of old leaves is the cache's own least-recently-used order here, which favours it."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        super().__init__(fleet, rng)
        self._seen: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(self.count)]

    def order(self, job: Job) -> Iterator[int]:
        idlest = self.idlest()
        least, most = idlest[0], max(self.busy)
        if most - self.busy[least] > 32 and most > 1.1 * self.busy[least]:
            chosen = least
        else:
            matches = [self._match(n, job) for n in range(self.count)]
            best = max(range(self.count), key=lambda n: matches[n])
            chosen = best if job.blocks and matches[best] / len(job.blocks) > 0.5 else least
        for n in dict.fromkeys((chosen, *idlest)):
            self._insert(n, job)
            yield n

    def _insert(self, n: int, job: Job) -> None:
        seen = self._seen[n]
        for block in job.blocks:
            seen[block] = None
            seen.move_to_end(block)
        while len(seen) > KV_TOKENS // BLOCK_TOKENS:
            seen.popitem(last=False)

    def _match(self, n: int, job: Job) -> int:
        count = 0
        for block in job.blocks:
            if block not in self._seen[n]:
                break
            count += 1
        return count


_PRICES = {Meter.INPUT_TOKENS: 5, Meter.OUTPUT_TOKENS: 20}
FULL = Overloaded("too many wait", status=503, retry_after_s=1.0)
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

    def order(self, job: Job) -> Iterator[int]:
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
        self._keep(route.legs[0].deployment, job)
        for leg in route.legs:
            self._trips[job] = Trip(self._health.of(leg.deployment.id), now, leg.fresh_tokens)
            yield int(leg.deployment.provider)

    def _keep(self, place: Deployment, job: Job) -> None:
        self._warmth.keep(place.id, place.cache, job.blocks, self._fleet.now)

    def sent(self, job: Job) -> None:
        pass

    def refused(self, job: Job) -> None:
        trip, now = self._trips.pop(job), self._fleet.now
        trip.failed(FULL, now)
        trip.end(now)

    def first(self, job: Job) -> None:
        self._keep(self._places[job.replica], job)
        self._trips[job].answered(self._fleet.now, streams=True)

    def ended(self, job: Job) -> None:
        self._trips.pop(job).end(self._fleet.now, job.output_tokens)


class Oracle:
    """No rule for a router: it looks into every engine, at its cache, its queue and its step under way, and takes the
    one whose first token comes soonest."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self._fleet = fleet

    def order(self, job: Job) -> list[int]:
        soonest = self._fleet.first_token_s
        return sorted(range(len(self._fleet.replicas)), key=lambda n: soonest(job, n))

    def sent(self, job: Job) -> None:
        pass

    def refused(self, job: Job) -> None:
        pass

    def first(self, job: Job) -> None:
        pass

    def ended(self, job: Job) -> None:
        pass


RULES: dict[str, Callable[[Fleet, random.Random], Rule]] = {
    "round robin": RoundRobin,
    "least load": LeastLoad,
    "bounded hash": BoundedHash,
    "sglang": SglangRule,
    OURS: Ours,
}


def _hash(key: object) -> int:
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big")
