"""Several gateway processes on one Valkey: budgets and parallel limits hold over all of them together."""

import asyncio
import json
import sys
from pathlib import Path

from redis.asyncio import Redis

from tests.gateway.admission.support import limiter, scopes, total

PROCESSES, REQUESTS, PARALLEL = 4, 250, 7
HOLD = 2**53 + 11
# Enough for about half of what is asked.
BUDGET = HOLD * 500 + 5


async def test_four_processes_never_overdraw(redis: Redis, redis_url: str) -> None:
    root = Path(__file__).parents[3]
    settings = [str(n) for n in (REQUESTS, BUDGET, HOLD, PARALLEL)]
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.gateway.admission.hammer", redis_url, f"p{i}", *settings,
            cwd=root, stdout=asyncio.subprocess.PIPE,
        )
        for i in range(PROCESSES)
    ]  # fmt: skip
    try:
        async with asyncio.timeout(60):
            outputs = [(await process.communicate())[0] for process in processes]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
    seen = [json.loads(output) for output in outputs]
    charged = sum(s["charged"] for s in seen)
    admitted = sum(s["admitted"] for s in seen)
    assert charged <= BUDGET < charged + HOLD, "overdrawn, or refused although it fitted"
    assert 500 <= admitted <= 501
    assert 1 < max(s["most_running"] for s in seen) <= PARALLEL
    assert sum(s["out_of_money"] for s in seen) > 0
    async with limiter(redis) as limits:
        assert await limits.available_pusd(scopes(budgets=(total(BUDGET),))) == (BUDGET - charged,)
