"""A quiet tenant's first-token time alone, beside a flood of another tenant, and in the same queue as the flood.

`python -m tests.bench.tenants [--json] [--svg FILE]` starts the engine with SmolLM2, asks one long question after the
other, with the flood and without it in turn, and prints one line of figures. The third case is what the second would be
without fairness.

Quiet means: asks for less than its share. Between questions the tenant thinks twice as long as an answer takes alone;
one that asks without a pause wants the whole engine, and of two such tenants each gets half.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from local_backend.catalogue import pull
from tests.local_backend.support import SMOLLM2, EngineProcess, cache_dir, running_engine

ALONE, BESIDE, AMONG = "alone", "beside a flood", "in the flood's queue"
ROUNDS = 6
THINKS = 2.0  # times as long as a first token takes alone
WORDS = 500
FLOOD = 48
RUNNING = 16
GAUGE = "vllm:num_requests_running"


def question(n: int) -> dict[str, Any]:
    """About 500 tokens that no cache knows."""
    prompt = f"{n} {time.monotonic_ns()} " + "and then they went on " * (WORDS // 5)
    return {"model": SMOLLM2, "prompt": prompt, "max_tokens": 2, "stream": True, "ignore_eos": True}


async def first_token_s(http: httpx.AsyncClient, tenant: str, n: int) -> float:
    """From the request to its first event."""
    began = time.monotonic()
    async with http.stream("POST", "/v1/completions", json=question(n), headers={"x-farebox-tenant": tenant}) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("data:"):
                return time.monotonic() - began
    raise AssertionError(f"no token came: {reply.status_code}")


@asynccontextmanager
async def flood(http: httpx.AsyncClient) -> AsyncIterator[None]:
    """Clients that ask again as soon as they have their answer, from when they hold every place."""

    async def client() -> None:
        body = {"model": SMOLLM2, "prompt": "Once upon a time", "max_tokens": 64, "ignore_eos": True}
        while True:
            await http.post("/v1/completions", json=body, headers={"x-farebox-tenant": "loud"})

    loud = [asyncio.create_task(client()) for _ in range(FLOOD)]
    try:
        while running((await http.get("/metrics")).text) < RUNNING:
            await asyncio.sleep(0.05)
        yield
    finally:
        for task in loud:
            task.cancel()
        await asyncio.gather(*loud, return_exceptions=True)
        while running((await http.get("/metrics")).text):
            await asyncio.sleep(0.05)


def running(metrics: str) -> float:
    """Sequences in the engine's steps, from its metrics."""
    return next(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(GAUGE))


async def measure(engine: EngineProcess) -> dict[str, list[float]]:
    """Seconds to the first token, by case."""
    times: dict[str, list[float]] = {ALONE: [], BESIDE: [], AMONG: []}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=engine.url, timeout=300, limits=limits) as http:
        await first_token_s(http, "quiet", -1)
        for n in range(ROUNDS):  # in turn: other programs on the machine then cost both alike
            times[ALONE].append(await first_token_s(http, "quiet", n))
            async with flood(http):
                await asyncio.sleep(THINKS * statistics.median(times[ALONE]))
                times[BESIDE].append(await first_token_s(http, "quiet", n))
                if n % 3 == 0:
                    times[AMONG].append(await first_token_s(http, "loud", n))
    return times


def svg(cases: dict[str, Sequence[float]]) -> str:
    """Each case a row of dots over a scale of seconds."""
    most = max(max(times) for times in cases.values()) * 1.05
    rows = [
        f'<text x="8" y="{40 * at + 44}">{name}</text>'
        + "".join(f'<circle cx="{180 + 440 * t / most:.1f}" cy="{40 * at + 40}" r="4"/>' for t in times)
        for at, (name, times) in enumerate(cases.items())
    ]
    marks = "".join(
        f'<text x="{170 + 110 * n}" y="{40 * len(cases) + 40}">{most * n / 4:.2f} s</text>' for n in range(5)
    )
    size = f'width="680" height="{40 * len(cases) + 60}" font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(rows)}{marks}</svg>\n'


def main(argv: list[str]) -> int:
    """Prints medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--svg", type=Path)
    given = parser.parse_args(argv)
    model = pull(SMOLLM2, cache_dir(), lambda done, total, note: None)
    with running_engine(model, "--served-name", SMOLLM2, "--max-running", str(RUNNING)) as engine:
        cases = asyncio.run(measure(engine))
    medians = {name: statistics.median(times) for name, times in cases.items()}
    ratios = {name: round(median / medians[ALONE], 2) for name, median in medians.items()}
    if given.svg is not None:
        given.svg.write_text(svg(cases))
    if given.json:
        sys.stdout.write(json.dumps({"first_token_s": cases, "ratio_of_medians": ratios}) + "\n")
    else:
        for name, median in medians.items():
            sys.stdout.write(f"{name:22} {median:7.3f} s  {ratios[name]:5.2f} x alone\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
