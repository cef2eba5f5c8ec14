"""The engine as a service, with SmolLM2: start, prefix cache, many clients, what is not the model's time, a soak.

Each figure comes from one run, both sides of a ratio in turn: other programs on the machine then cost both alike.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import torch

from local_backend.block_manager import BlockManager
from local_backend.catalogue import pull
from local_backend.engine import Engine
from local_backend.forward import pass_of
from local_backend.kernels.cache import AttentionBatch
from local_backend.messages import AddRequest, Sampling
from local_backend.model_runner import sampled_from
from local_backend.sampler import Sampled
from local_backend.scheduler import Chunk, Scheduler, Step
from local_backend.sequence import Sequence
from tests.local_backend.support import SMOLLM2, EngineProcess, cache_dir, children_of, running_engine

CLIENTS, TOKENS = 200, 32
SHARED, OWN = 900, 100  # tokens of a prompt, nearly
ROUNDS = 5
STREAMS = 16
SOAKERS = 12
TICK = os.sysconf("SC_CLK_TCK")


def figures(*, quick: bool) -> dict[str, Any]:
    """Everything but the soak."""
    model = pull(SMOLLM2, cache_dir(), lambda done, total, note: None)
    with running_engine(model):
        pass  # kernels are compiled, files are in memory
    begun = time.monotonic()
    with running_engine(model, "--served-name", SMOLLM2, "--max-running", "64") as engine:
        found: dict[str, Any] = {"ready_s": round(time.monotonic() - begun, 2)}
        found |= asyncio.run(ask(engine, 2 if quick else ROUNDS, 40 if quick else CLIENTS))
    for sequences in (256, 16):
        found[f"us_a_step_of_{sequences}"] = round(planning_us(sequences))
        found[f"us_of_inputs_of_{sequences}"] = round(inputs_us(sequences))
    return found


async def ask(engine: EngineProcess, rounds: int, clients: int) -> dict[str, Any]:
    """What clients see of a running engine."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=engine.url, timeout=600, limits=limits) as http:
        with_cache, without = [], []
        beginning = "The story so far, word for word. " * (SHARED // 8)
        await arrivals(http, beginning, 1)
        for n in range(rounds):
            prompt = f"{beginning} {n} " + "and on " * (OWN // 2)
            with_cache.append((await arrivals(http, prompt, 1))[0])
            without.append((await arrivals(http, prompt, 1, cache_salt=str(n)))[0])
        front, core = engine.process.pid, children_of(engine.process.pid)[0]
        before = cpu_s(front), cpu_s(core)
        await asyncio.gather(*(arrivals(http, f"Count from {n}", 64) for n in range(STREAMS)))
        spent = cpu_s(front) - before[0], cpu_s(core) - before[1]
        many = await asyncio.gather(
            *(arrivals(http, f"The number {n} is", TOKENS) for n in range(clients)), return_exceptions=True
        )
    gaps = sorted(b - a for times in many if isinstance(times, list) for a, b in itertools.pairwise(times[1:]))
    return {
        "first_token_s": {"prefix cached": median(with_cache), "not cached": median(without)},
        "prefix_gain": round(statistics.median(without) / statistics.median(with_cache), 1),
        "server_share_of_cpu": round(spent[0] / sum(spent), 3),
        "clients": clients,
        "failed": sum(not isinstance(times, list) or len(times) != TOKENS + 1 for times in many),
        "gap_s": {"p50": round(gaps[len(gaps) // 2], 4), "p99": round(gaps[len(gaps) * 99 // 100], 4)},
        "p99_over_p50": round(gaps[len(gaps) * 99 // 100] / gaps[len(gaps) // 2], 2),
    }


async def arrivals(http: httpx.AsyncClient, prompt: str, tokens: int, **more: Any) -> list[float]:
    """Seconds from the request to each event with text, and to the last one, which says how it ended."""
    body = {"model": SMOLLM2, "prompt": prompt, "max_tokens": tokens, "stream": True, "ignore_eos": True, "logprobs": 0}
    begun, times = time.monotonic(), []
    async with http.stream("POST", "/v1/completions", json=body | {"temperature": 0} | more) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                found = json.loads(line[6:])["choices"][0]["logprobs"]
                times += [time.monotonic() - begun] * len(found["tokens"] if found else ())
    return [times[0], *times] if times else []


def planning_us(sequences: int) -> float:
    """CPU time of a decode step that is not the model's nor the sampler's, with so many sequences; the best of many."""
    blocks = BlockManager(sequences * 8, 16)
    scheduler = Scheduler(blocks, token_budget=4096, max_running=sequences, max_waiting=0, max_model_len=128)
    engine = Engine(scheduler, Constant())
    for i in range(sequences):
        engine.take(AddRequest(i, [5, 6, 7, i], Sampling(max_tokens=100, temperature=0.0)))
    best = float("inf")
    engine.step()
    for _ in range(90):
        begun = time.perf_counter()
        engine.step()
        best = min(best, time.perf_counter() - begun)
    return best * 1e6


def inputs_us(sequences: int) -> float:
    """CPU time from a decode step's integers to what the model takes, and from a few logits to tokens; best of many."""
    made = [Sequence(i, [5] * (100 + i % 7), Sampling(max_tokens=9, temperature=0.0)) for i in range(sequences)]
    for i, seq in enumerate(made):
        seq.block_table = list(range(7 * i, 7 * i + 7))
    step = Step(0, [Chunk(seq, len(seq.tokens) - 1, 1) for seq in made])
    logits, best = torch.zeros(sequences, 8), float("inf")
    for _ in range(90):
        begun = time.perf_counter()
        whole, owners = pass_of(step)
        batch = AttentionBatch(whole.spans, 16, torch.device("cpu"), torch.float32)
        batch.inputs, batch.slots, batch.contexts  # noqa: B018 - made when asked for
        sampled_from(logits, owners, step.chunks)
        best = min(best, time.perf_counter() - begun)
    return best * 1e6


class Constant:
    """A runner that takes no time."""

    def run(self, step: Step) -> list[Sampled | None]:
        """See Runner."""
        return [Sampled(9)] * len(step.chunks)


def soak(minutes: float, say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Mixed traffic for so long: streams, long prompts, constraints, clients that leave, bad requests.

    Says a line now and then. Returns: requests, failures with the first reasons, and of the second half, when the cache
    is full of touched pages, resident memory at its start and end and its slope."""
    model = pull(SMOLLM2, cache_dir(), lambda done, total, note: None)
    with running_engine(model, "--served-name", SMOLLM2, "--kv-cache-bytes", "128MiB") as engine:
        return asyncio.run(_soak(engine, 60 * minutes, say))


async def _soak(engine: EngineProcess, seconds: float, say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    begun = time.monotonic()
    counts = {"asked": 0, "refused as they should": 0, "left": 0, "failed": 0}
    seen: list[dict[str, Any]] = []
    why: list[str] = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=engine.url, timeout=600, limits=limits) as http:

        async def client(number: int) -> None:
            for n in itertools.count():
                if time.monotonic() - begun > seconds:
                    return
                counts["asked"] += 1
                try:
                    await _one(http, number, n, counts)
                except (AssertionError, httpx.HTTPError) as error:
                    counts["failed"] += 1
                    why.append(f"{(number + n) % 5}: {error!r}"[:300])

        async def watch() -> None:
            pids = [engine.process.pid, *children_of(engine.process.pid)]
            while time.monotonic() - begun < seconds:
                await asyncio.sleep(seconds / 20)
                line = {"s": round(time.monotonic() - begun, 2), "rss_mib": [rss_mib(pid) for pid in pids]} | counts
                seen.append(line)
                say(line)

        await asyncio.gather(watch(), *map(client, range(SOAKERS)))
        until = time.monotonic() + 60
        while True:
            text = (await http.get("/metrics")).text
            held = [line for line in text.splitlines() if line.startswith("vllm:kv_cache_usage_perc")]
            if held and held[0].endswith(" 0.0"):
                break
            assert time.monotonic() < until, "blocks are still held when nobody asks any more"
            await asyncio.sleep(0.05)
    late = seen[len(seen) // 2 :]
    slope = statistics.linear_regression([line["s"] for line in late], [sum(line["rss_mib"]) for line in late]).slope
    return counts | {
        "why": why[:10],
        "minutes": round(seconds / 60, 1),
        "rss_mib_half": late[0]["rss_mib"],
        "rss_mib_end": late[-1]["rss_mib"],
        "rss_mib_h": round(3600 * slope, 1),
        "blocks_held": 0,
    }


async def _one(http: httpx.AsyncClient, number: int, n: int, counts: dict[str, int]) -> None:
    """One request of a soak. Raises AssertionError if it is not answered as it should be."""
    body: dict[str, Any] = {"model": SMOLLM2, "prompt": f"{number} {n} once upon a time", "max_tokens": 16}
    match (number + n) % 5:
        case 0:
            assert len(await arrivals(http, body["prompt"], 24)) == 25
        case 1:
            body["prompt"] *= 60
            assert (await http.post("/v1/completions", json=body)).status_code == 200
        case 2:
            format_ = {"guided_regex": "[a-z]{4}( [a-z]{3})*"}
            assert (await http.post("/v1/completions", json=body | format_)).status_code == 200
        case 3:
            async with http.stream("POST", "/v1/completions", json=body | {"stream": True, "max_tokens": 500}) as reply:
                async for line in reply.aiter_lines():
                    if line:
                        break
            counts["left"] += 1
        case _:
            assert (await http.post("/v1/completions", json=body | {"temperature": -1})).status_code == 400
            counts["refused as they should"] += 1


def cpu_s(pid: int) -> float:
    """CPU seconds of a process. Source: proc(5), stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rss_mib(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


def median(times: list[float]) -> float:
    """In seconds, to the millisecond."""
    return round(statistics.median(times), 3)
