"""Plans each step with integers alone, and books what came of it. No torch here.

Prefill and decode are one case: tokens not computed yet. Source of the idea: vllm/v1/core/sched/scheduler.py, read
2026-11. Among tenants the least served goes first (`fairness.py`); within a tenant the oldest, where each step of
priority counts like so many requests that came earlier: it moves up, and nobody waits for ever.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from msgspec import Struct

from local_backend.block_manager import BlockManager
from local_backend.errors import QueueFull
from local_backend.fairness import INPUT_COST, OUTPUT_COST, Fairness
from local_backend.prefix_cache import Move
from local_backend.sequence import Sequence, State

PRIORITY_STEP = 256
"""A request with priority 0 is served before one with priority 1 that came up to so many requests earlier."""


class Chunk(Struct, frozen=True, gc=False):
    """A run of one sequence's tokens to compute: `start` to `start + count`."""

    seq: Sequence
    start: int
    count: int
    draft: tuple[int, ...] = ()  # guesses to compute after them, and to check

    @property
    def end(self) -> int:
        """Tokens of the sequence that are computed after this chunk; also the context its last token sees."""
        return self.start + self.count

    @property
    def samples(self) -> bool:
        """True if the chunk reaches the last known token, so that a new one follows from it."""
        return self.start + self.count == len(self.seq.tokens)


@dataclass(slots=True)
class Step:
    """One forward pass, as the runner gets it."""

    room: int  # tokens that may still be added
    chunks: list[Chunk] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)  # between device and host memory, before all else

    def add(self, seq: Sequence, count: int, draft: tuple[int, ...] = ()) -> None:
        """Compute the next `count` tokens of the sequence in this step, and what is guessed to follow them."""
        self.chunks.append(Chunk(seq, seq.computed, count, draft))
        self.room -= count + len(draft) if draft else count
        assert count > 0
        assert self.room >= 0


class Scheduler:
    """Running answers before newcomers; when blocks run short, whoever stands last in this step's order gives way."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        token_budget: int,
        max_running: int,
        max_waiting: int,
        max_model_len: int,
        prompt_tokens: int | None = None,
        rows_at_a_time: int = 1,
    ) -> None:
        """prompt_tokens: of prompts beside running answers in one step, and two more for each of those; None: as many
        as the budget leaves. rows_at_a_time: of products; what fills the last group of such a step is free."""
        # One sequence alone must always fit, or the oldest could wait for blocks that will never be free.
        assert blocks.blocks_for(max_model_len) <= blocks.total_blocks
        self.blocks = blocks
        self.token_budget = token_budget
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.max_model_len = max_model_len
        self.prompt_tokens = prompt_tokens
        self.rows_at_a_time = rows_at_a_time
        self.running: list[Sequence] = []  # in the order of their rank
        self.fairness = Fairness()
        self.preemptions = 0
        self._queues: dict[str, list[Sequence]] = {}  # who waits, by tenant, in the order of their rank
        self._held: Counter[str] = Counter()  # running sequences, by tenant
        self._by_id: dict[int, Sequence] = {}
        self._arrivals = 0

    @property
    def has_work(self) -> bool:
        """True while some sequence is not finished."""
        return bool(self._by_id)

    @property
    def waiting(self) -> list[Sequence]:
        """Who has no place in the running list."""
        return [seq for queue in self._queues.values() for seq in queue]

    @property
    def queued_tokens(self) -> int:
        """Of prompts, that are still to be computed."""
        return sum([more for seq in self._by_id.values() if (more := len(seq.tokens) - seq.computed) > 1])

    @property
    def sequences(self) -> Iterator[Sequence]:
        """All that are not finished."""
        return iter(self._by_id.values())

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. Raises QueueFull; then nothing is kept."""
        assert 0 < len(seq.tokens) < self.max_model_len
        if len(self._by_id) >= self.max_running + self.max_waiting:
            raise QueueFull(f"{len(self._by_id)} requests are running or waiting; try again later")
        assert seq.id not in self._by_id
        seq.rank = self._arrivals + PRIORITY_STEP * seq.priority
        seq.length_max = min(seq.prompt_tokens + seq.sampling.max_tokens, self.max_model_len)
        self._arrivals += 1
        self._by_id[seq.id] = seq
        self.fairness.arrive(seq.tenant)
        self._enqueue(seq)

    def abort(self, id_: int) -> bool:
        """Drop a sequence wherever it stands and free its blocks. Returns: False if it is not here (any more)."""
        seq = self._by_id.get(id_)
        if seq is None:
            return False
        self.finish(seq)
        return True

    def plan(self) -> Step:
        """Choose the next forward pass of at most `token_budget` tokens."""
        self._rebalance()
        order, grow = self._order(), self.blocks.grow
        step, preempted = Step(self._budget(order)), False
        for at, seq in enumerate(order):
            while seq.state is State.RUNNING and step.room:
                count = min(len(seq.tokens) - seq.computed, step.room)
                if seq.draft and self._add_with_guesses(step, seq, count):
                    break
                if grow(seq, count):
                    step.add(seq, count)
                    break
                # The last in the order, perhaps seq itself; never one that this step has planned already.
                self.preempt(next(other for other in reversed(order[at:]) if other.is_running))
                preempted = True
        # After a preemption nothing is admitted: it would only be preempted again.
        while step.room and not preempted and len(self.running) < self.max_running:
            newcomer = self._next()
            if newcomer is None or not self._admit(newcomer, step):
                break  # the head waits; letting short prompts overtake would starve long ones
        if step.chunks:
            step.moves = self.blocks.take_moves()
        return step

    def _add_with_guesses(self, step: Step, seq: Sequence, count: int) -> bool:
        """False if there is no room for them, or would have to be made: nobody gives way to a guess."""
        draft = tuple(seq.draft[: step.room - count])
        if not draft or not self.blocks.grow(seq, count + len(draft)):
            return False
        step.add(seq, count, draft)
        return True

    def preempt(self, seq: Sequence) -> None:
        """Take a running sequence's blocks; it keeps its tokens and computes them again when there is room."""
        self._stop_running(seq)
        self.blocks.release(seq)
        seq.state = State.WAITING
        seq.preemptions += 1
        self.preemptions += 1
        self._enqueue(seq)

    def commit(self, chunk: Chunk, token: int | None) -> str | None:
        """Book one chunk of a step that has run, with the token sampled from its last position.

        Returns: why the sequence ended, or None while it goes on. A sequence that ended is gone from here."""
        seq = chunk.seq
        if seq.state is State.FINISHED:
            return None
        self.blocks.commit(seq, chunk.start + chunk.count)
        if token is None:
            return None
        seq.tokens.append(token)
        self.fairness.charge(seq.tenant, OUTPUT_COST)
        reason = seq.finish_reason()
        if reason is not None:
            self.finish(seq)
        return reason

    def finish(self, seq: Sequence) -> None:
        """Forget a sequence and free its blocks."""
        if seq.is_running:
            self._stop_running(seq)
        else:
            self._dequeue(seq)
        self.blocks.release(seq)
        seq.state = State.FINISHED
        self.fairness.leave(seq.tenant)
        del self._by_id[seq.id]

    def _order(self) -> list[Sequence]:
        """The running sequences as they are to be planned: first those who need one token, then the least served.

        Should single tokens alone fill half the budget, they have no such privilege: prompts would never end."""
        order = list(self.running)  # by rank, and it stays so among equals
        if self.fairness.active > 1:
            order.sort(key=lambda seq: self.fairness.of(seq.tenant))
        several = [seq for seq in order if len(seq.tokens) - seq.computed > 1]
        if not several or 2 * (len(order) - len(several)) > self.token_budget:
            return order
        return [seq for seq in order if len(seq.tokens) - seq.computed == 1] + several

    def _budget(self, order: list[Sequence]) -> int:
        """Tokens of this step: where answers go on, prompts get so much that it takes a few times as long as one
        without any. Who reads along then sees an answer slow down, not stand still."""
        if self.prompt_tokens is None:
            return self.token_budget
        going = sum([1 + len(seq.draft) for seq in order if len(seq.tokens) - seq.computed == 1])
        if not going:
            return self.token_budget
        groups = -(-(self.prompt_tokens + 3 * going) // self.rows_at_a_time)
        return min(self.token_budget, groups * self.rows_at_a_time)

    def _next(self) -> Sequence | None:
        """Who is to be admitted next."""
        heads = [queue[0] for queue in self._queues.values()]
        # Who comes back is at the level of who stayed: then whoever has less running.
        return min(
            heads, key=lambda seq: (self.fairness.of(seq.tenant), self._held[seq.tenant], seq.rank), default=None
        )

    def _rebalance(self) -> None:
        """Make room for the next newcomer if its tenant has less than its share and another has more.

        Who came first may use the whole engine, but gives back what is over its share when somebody else comes: else
        a flood of long answers would keep all others waiting until the first of them ends."""
        newcomer = self._next()
        if newcomer is None or self.fairness.active < 2:
            return
        share = max(1, self.max_running // self.fairness.active)
        held = self._held
        if held[newcomer.tenant] >= share:
            return
        while len(self.running) >= self.max_running or not self._fits(newcomer):
            tenant, most = max(held.items(), key=lambda item: item[1], default=("", 0))
            # Never somebody's only one: whoever has begun alone comes to an end.
            if most <= max(share, held[newcomer.tenant] + 1) or tenant == newcomer.tenant:
                return
            self.preempt(next(seq for seq in reversed(self.running) if seq.tenant == tenant))

    def _fits(self, seq: Sequence) -> bool:
        """True if all its known tokens would find blocks, even if none of them were shared."""
        return self.blocks.blocks_for(len(seq.tokens)) <= self.blocks.free_blocks

    def _admit(self, seq: Sequence, step: Step) -> bool:
        """Move a waiting sequence into the step. Returns: False, with nothing changed, if it does not fit."""
        self.blocks.match(seq)
        matched = seq.computed
        # All known tokens must fit, not only the first chunk: half a prompt would be preempted before it is of use.
        if not self.blocks.can_hold(seq) or not self.blocks.grow(seq, min(seq.uncomputed_tokens, step.room)):
            self.blocks.release(seq)
            return False
        self._dequeue(seq)
        insort(self.running, seq, key=_rank)
        self._held[seq.tenant] += 1
        seq.state = State.RUNNING
        self.blocks.query_tokens += len(seq.tokens)
        self.blocks.hit_tokens += matched
        if not seq.preemptions:
            seq.cached_tokens = matched
            # Computing again after a preemption is not the tenant's wish, so it costs nothing.
            self.fairness.charge(seq.tenant, INPUT_COST * seq.uncomputed_tokens)
        step.add(seq, min(seq.uncomputed_tokens, step.room))
        return True

    def _stop_running(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._held[seq.tenant] -= 1
        if not self._held[seq.tenant]:
            del self._held[seq.tenant]

    def _enqueue(self, seq: Sequence) -> None:
        insort(self._queues.setdefault(seq.tenant, []), seq, key=_rank)

    def _dequeue(self, seq: Sequence) -> None:
        queue = self._queues[seq.tenant]
        queue.remove(seq)
        if not queue:
            del self._queues[seq.tenant]


def _rank(seq: Sequence) -> int:
    return seq.rank
