"""Engine replicas on simulated time: continuous batching, chunked prefill, a prefix cache of blocks, a bounded queue.

One replica is one H100 with Llama-3.1-8B in bf16. Its figures are published ones or follow from them (read 2026-11):
a step reads 15 GB of weights at 3.0 TB/s and 128 KiB of KV for each token of context, and prefill runs at 55 % of the
56,000 tokens/s that a full-rate GEMM would give. What they leave out (kernel launches, sampling) is OVERHEAD_S."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

BLOCK_TOKENS = 64
WEIGHTS_S = 15.0e9 / 3.0e12
OVERHEAD_S = 0.001
KV_S_PER_TOKEN = 131_072 / 3.0e12
PREFILL_TOKENS_PER_S = 0.55 * 56_000
STEP_TOKENS = 2048
"""A quarter of vLLM's default for a server on an H100 (8,192): decoding stays even beside long prompts."""
RUNNING_MAX = 256
WAITING_MAX = 256
KV_TOKENS = 430_000


@dataclass(eq=False)
class Job:
    """One request. blocks: of its prompt, each naming its whole prefix. then: told when the last token is out."""

    tokens: int
    blocks: tuple[int, ...]
    output_tokens: int
    began: float
    then: Callable[[float], None] | None = None
    session: int = 0
    fresh: int = 0
    made: int = 0
    first_token: float | None = None
    replica: int = -1
    guessed: int = field(default=0, compare=False)


class Replica:
    """What one engine does in a step, and how long that takes."""

    def __init__(self, kv_tokens: int = KV_TOKENS) -> None:
        self._cache: OrderedDict[int, None] = OrderedDict()
        self._kv_blocks = kv_tokens // BLOCK_TOKENS
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.prefilled = 0
        self.cached = 0

    @property
    def load(self) -> int:
        return len(self.waiting) + len(self.running)

    @property
    def full(self) -> bool:
        return len(self.waiting) >= WAITING_MAX

    def hit(self, blocks: Sequence[int]) -> int:
        count = 0
        for block in blocks:
            if block not in self._cache:
                break
            count += 1
        return count

    def step(self) -> tuple[float, list[Job], list[Job]]:
        """Returns: seconds; who has a first token at its end; who has ended."""
        while self.waiting and len(self.running) < RUNNING_MAX:
            job = self.waiting.popleft()
            hit = min(self.hit(job.blocks) * BLOCK_TOKENS, job.tokens - 1)
            job.fresh = job.tokens - hit
            self.cached += hit
            self.prefilled += job.fresh
            self.running.append(job)
        budget, read, context = STEP_TOKENS, 0, 0
        first: list[Job] = []
        ended: list[Job] = []
        for job in self.running:
            if job.fresh == 0:
                budget -= 1
                context += job.tokens + job.made
                job.made += 1
                if job.made >= job.output_tokens:
                    ended.append(job)
        for job in self.running:
            if job.fresh and budget > 0:
                chunk = min(job.fresh, budget)
                job.fresh -= chunk
                budget -= chunk
                read += chunk
                context += job.tokens - job.fresh
                if job.fresh == 0:
                    job.made = 1
                    first.append(job)
                    self._keep(job.blocks)
                    if job.made >= job.output_tokens:
                        ended.append(job)
        for job in ended:
            self.running.remove(job)
        return step_s(read, context), first, ended

    def _keep(self, blocks: Sequence[int]) -> None:
        """Least recently used by depth: the deepest block of the oldest prompt goes first."""
        for block in reversed(blocks):
            self._cache[block] = None
            self._cache.move_to_end(block)
        while len(self._cache) > self._kv_blocks:
            self._cache.popitem(last=False)


def step_s(read: int, context: int) -> float:
    """read: tokens of prompts. context: tokens of KV that the step's attention goes over."""
    return max(WEIGHTS_S, read / PREFILL_TOKENS_PER_S) + context * KV_S_PER_TOKEN + OVERHEAD_S


def alone_s(job: Job, cached: Container[int]) -> float:
    """To the first token on an idle replica that holds these blocks."""
    known = next((at for at, block in enumerate(job.blocks) if block not in cached), len(job.blocks))
    done = min(known * BLOCK_TOKENS, job.tokens - 1)
    seconds = 0.0
    while done < job.tokens:
        chunk = min(STEP_TOKENS, job.tokens - done)
        done += chunk
        seconds += step_s(chunk, done)
    return seconds


class Fleet:
    """Replicas and arrivals on one clock."""

    def __init__(self, count: int, kv_tokens: int = KV_TOKENS) -> None:
        self.replicas = [Replica(kv_tokens) for _ in range(count)]
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._stepping = [False] * count
        self.refused = 0
        self.served: list[Job] = []
        self.on_first: Callable[[Job], None] = lambda _: None
        self.on_end: Callable[[Job], None] = lambda _: None

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._due, (when, self._order, what))

    def submit(self, job: Job, replica: int) -> bool:
        """Whether it was taken: a full queue refuses, as a server says 503."""
        chosen = self.replicas[replica]
        if chosen.full:
            self.refused += 1
            return False
        job.replica = replica
        chosen.waiting.append(job)
        if not self._stepping[replica]:
            self._step(replica)
        return True

    def run(self, until: float) -> None:
        while self._due and self._due[0][0] <= until:
            self.now, _, what = heapq.heappop(self._due)
            what()
        self.now = until

    def _step(self, replica: int) -> None:
        engine = self.replicas[replica]
        if not engine.load:
            self._stepping[replica] = False
            return
        self._stepping[replica] = True
        seconds, first, ended = engine.step()

        def done() -> None:
            for job in first:
                job.first_token = self.now
                self.served.append(job)
                self.on_first(job)
            for job in ended:
                self.on_end(job)
                if job.then is not None:
                    job.then(self.now)
            self._step(replica)

        self.at(self.now + seconds, done)
