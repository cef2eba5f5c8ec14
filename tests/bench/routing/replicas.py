"""Engine replicas on simulated time: continuous batching, chunked prefill, a prefix cache of blocks, a bounded queue.

One replica is one H100 with Llama-3.1-8B in bf16. Its figures are published ones or follow from them (read 2026-11):
a step reads 15 GB of weights at 3.0 TB/s and 128 KiB of KV for each token of context, and prefill runs at 55 % of the
56,000 tokens/s that a full-rate GEMM would give. What they leave out (kernel launches, sampling) is OVERHEAD_S."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

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
    first_token: float | None = None
    replica: int = -1


class Replica:
    """What one engine does in a step, and how long that takes. Answers in the making are sums, and lists by the step
    they end with, so that a step costs what changes in it."""

    def __init__(self, kv_tokens: int = KV_TOKENS) -> None:
        self._cache: OrderedDict[int, None] = OrderedDict()
        self._kv_blocks = kv_tokens // BLOCK_TOKENS
        self.waiting: deque[Job] = deque()
        self.running: dict[Job, None] = {}
        self.prefilled = 0
        self.cached = 0
        self._reading: list[Job] = []
        self._decoding = 0
        self._context = 0
        self._steps = 0
        self._ending: dict[int, list[Job]] = {}
        self._ends: list[int] = []

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

    def foreseen_s(self, job: Job, steps: int) -> float:
        """To this job's first token, were it the last to come and nobody's answer to end, after so many steps alike."""
        known = min(self.hit(job.blocks) * BLOCK_TOKENS, job.tokens - 1)
        ahead = [(each.tokens, each.fresh) for each in self._reading]
        ahead += [(each.tokens, each.tokens - self.hit(each.blocks) * BLOCK_TOKENS) for each in self.waiting]
        seconds, decoding, base = 0.0, self._decoding, self._context + steps * self._decoding
        queue = deque([*ahead, (job.tokens, job.tokens - known)])
        while queue:
            budget, read, context = STEP_TOKENS - decoding, 0, base
            base += decoding
            while queue and budget > 0:
                tokens, fresh = queue.popleft()
                chunk = min(fresh, budget)
                budget -= chunk
                read += chunk
                context += tokens - fresh + chunk
                if chunk < fresh:
                    queue.appendleft((tokens, fresh - chunk))
                    break
                decoding += 1
                base += tokens + 1
            seconds += step_s(read, context)
        return seconds

    def alike(self) -> int:
        """How many of the next steps only write and change nobody's place: each is one token of each answer longer."""
        if self._reading or self.waiting or not self._ends:
            return 0
        return self._ends[0] - self._steps - 1

    def alike_s(self, steps: int) -> float:
        """Seconds of so many of them."""
        context = steps * self._context + self._decoding * (steps * (steps - 1) // 2)
        return steps * step_s(0, 0) + context * KV_S_PER_TOKEN

    def skip(self, steps: int) -> None:
        self._steps += steps
        self._context += steps * self._decoding

    def step(self) -> tuple[float, list[Job], list[Job]]:
        """Returns: seconds; who has a first token at its end; who has ended."""
        while self.waiting and len(self.running) < RUNNING_MAX:
            job = self.waiting.popleft()
            hit = min(self.hit(job.blocks) * BLOCK_TOKENS, job.tokens - 1)
            job.fresh = job.tokens - hit
            self.cached += hit
            self.prefilled += job.fresh
            self.running[job] = None
            self._reading.append(job)
        self._steps += 1
        budget, read, context = STEP_TOKENS - self._decoding, 0, self._context
        self._context += self._decoding
        ended: list[Job] = []
        if self._ends and self._ends[0] == self._steps:
            ended = self._ending.pop(heapq.heappop(self._ends))
            self._decoding -= len(ended)
            self._context -= sum(job.tokens + job.output_tokens for job in ended)
        first: list[Job] = []
        for job in self._reading:
            if budget <= 0:
                break
            chunk = min(job.fresh, budget)
            job.fresh -= chunk
            budget -= chunk
            read += chunk
            context += job.tokens - job.fresh
            if job.fresh == 0:
                first.append(job)
                self._keep(job.blocks)
                if job.output_tokens <= 1:
                    ended.append(job)
                else:
                    self._write(job)
        del self._reading[: len(first)]
        for job in ended:
            del self.running[job]
        return step_s(read, context), first, ended

    def _write(self, job: Job) -> None:
        """From the next step on: its first token is made by this one."""
        self._decoding += 1
        self._context += job.tokens + 1
        last = self._steps + job.output_tokens - 1
        if last not in self._ending:
            self._ending[last] = []
            heapq.heappush(self._ends, last)
        self._ending[last].append(job)

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


def least_s(job: Job, cached: Container[int]) -> float:
    """No replica gives this first token sooner, however idle, if nothing but these blocks was ever read: so many steps
    are needed at least, each takes its weights' time or its tokens', and goes over what has been read by then."""
    known = next((at for at, block in enumerate(job.blocks) if block not in cached), len(job.blocks))
    fresh = job.tokens - min(known * BLOCK_TOKENS, job.tokens - 1)
    steps = -(-fresh // STEP_TOKENS)
    context = sum(job.tokens - step * STEP_TOKENS for step in range(steps))
    return max(steps * WEIGHTS_S, fresh / PREFILL_TOKENS_PER_S) + context * KV_S_PER_TOKEN + steps * OVERHEAD_S


class Fleet:
    """Replicas and arrivals on one clock."""

    def __init__(self, count: int, kv_tokens: int = KV_TOKENS) -> None:
        self.replicas = [Replica(kv_tokens) for _ in range(count)]
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._stepping = [False] * count
        self._step_ends = [0.0] * count
        self._gliding: dict[int, _Glide] = {}
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
            return False
        job.replica = replica
        chosen.waiting.append(job)
        if not self._stepping[replica]:
            self._step(replica)
        elif (glide := self._gliding.pop(replica, None)) is not None:
            self._land(replica, glide)
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
        if (steps := engine.alike()) > 1:
            glide = self._gliding[replica] = _Glide(self.now, steps)
            self.at(self.now + engine.alike_s(steps), lambda: self._glided(replica, glide))
            return
        seconds, first, ended = engine.step()
        self._step_ends[replica] = self.now + seconds

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

    def _glided(self, replica: int, glide: _Glide) -> None:
        if self._gliding.get(replica) is glide:
            del self._gliding[replica]
            self.replicas[replica].skip(glide.steps)
            self._step(replica)

    def _land(self, replica: int, glide: _Glide) -> None:
        """Somebody came in the middle of steps taken at once: whoever is under way is the last before its turn."""
        steps, ends = self._under_way(replica, glide)
        self.replicas[replica].skip(steps)
        self._step_ends[replica] = ends
        self.at(ends, lambda: self._step(replica))

    def _under_way(self, replica: int, glide: _Glide) -> tuple[int, float]:
        """Which step of them is, and when it ends."""
        engine = self.replicas[replica]
        steps = 1 + bisect_left(range(1, glide.steps), self.now - glide.began, key=engine.alike_s)
        return steps, max(self.now, glide.began + engine.alike_s(steps))

    def first_token_s(self, job: Job, replica: int) -> float:
        """Seconds to this job's first token there, were nobody else to come."""
        steps, begins = 0, self._step_ends[replica] if self._stepping[replica] else self.now
        if (glide := self._gliding.get(replica)) is not None:
            steps, begins = self._under_way(replica, glide)
        return begins - self.now + self.replicas[replica].foreseen_s(job, steps)


@dataclass(frozen=True, eq=False)
class _Glide:
    began: float
    steps: int
