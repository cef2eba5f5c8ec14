"""One of several gateway processes in test_processes.py: reserves and settles as fast as it can, then says what it got.

Run as `python -m tests.gateway.admission.hammer REDIS_URL NAME REQUESTS BUDGET HOLD PARALLEL`; prints one JSON object.
"""

import asyncio
import json
import sys

from redis.asyncio import Redis

from gateway.admission.limits import Limiter, Scopes
from gateway.admission.link import Link
from gateway.admission.principal import Limit
from gateway.errors import QuotaExceeded, RateLimited
from tests.gateway.admission.support import limiter, scopes, total

AT_ONCE = 12
RUNNING = "test:running"


async def hammer(url: str, name: str, requests: int, budget: int, hold: int, parallel: int) -> dict[str, int]:
    where = scopes(Limit("key", "key_1", "parallel", parallel), budgets=(total(budget),))
    seen = {"admitted": 0, "charged": 0, "out_of_money": 0, "most_running": 0}
    names = iter(range(requests))
    async with Redis.from_url(url) as redis, limiter(redis) as limits:
        # A counter of our own, raised after the reservation and lowered before its end: never above the truth.
        watch = Link(redis)
        workers = (_work(limits, watch, where, name, names, hold, seen) for _ in range(AT_ONCE))
        await asyncio.gather(*workers)
        await watch.aclose()
    return seen


async def _work(
    limits: Limiter, watch: Link, where: Scopes, name: str, names: object, hold: int, seen: dict[str, int]
) -> None:
    for number in names:  # type: ignore[attr-defined]
        request_id = f"{name}-{number}"
        while True:
            try:
                await limits.reserve(request_id, where, tokens=0, hold_pusd=hold)
                break
            except RateLimited:
                await asyncio.sleep(0.001)
            except QuotaExceeded:
                seen["out_of_money"] += 1
                return
        seen["admitted"] += 1
        seen["most_running"] = max(seen["most_running"], await watch.call("INCR", RUNNING))
        await watch.call("DECR", RUNNING)
        charge = hold - number % 7
        seen["charged"] += charge
        await limits.settle(request_id, where, tokens=0, charge_pusd=charge)


if __name__ == "__main__":
    url, name, *numbers = sys.argv[1:]
    print(json.dumps(asyncio.run(hammer(url, name, *map(int, numbers)))))
