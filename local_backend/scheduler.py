"""Plans each step with integers alone, and books what came of it. No torch here.

Prefill and decode are one case: tokens not computed yet. Source of the idea: vllm/v1/core/sched/scheduler.py, read
2026-11.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from local_backend.block_manager import BlockManager
from local_backend.errors import QueueFull
from local_backend.sequence import Sequence, State


@dataclass(slots=True, frozen=True)
class Chunk:
    """A run of one sequence's tokens to compute: `start` to `start + count`."""

    seq: Sequence
    start: int
    count: int

    @property
    def end(self) -> int:
        """Tokens of the sequence that are computed after this chunk; also the context its last token sees."""
        return self.start + self.count

    @property
    def samples(self) -> bool:
        """True if the chunk reaches the last known token, so that a new one follows from it."""
        return self.end == len(self.seq.tokens)


@dataclass(slots=True)
class Step:
    """One forward pass, as the runner gets it."""

    token_budget: int
    chunks: list[Chunk] = field(default_factory=list)
    tokens: int = 0

    @property
    def room(self) -> int:
        """Tokens that may still be added."""
        return self.token_budget - self.tokens

    def add(self, seq: Sequence, count: int) -> None:
        """Compute the next `count` tokens of the sequence in this step."""
        assert 0 < count <= self.room
        self.chunks.append(Chunk(seq, seq.computed, count))
        self.tokens += count


class Scheduler:
    """First come, first served; running answers before newcomers; the youngest gives way when blocks run short."""

    def __init__(
        self, blocks: BlockManager, *, token_budget: int, max_running: int, max_waiting: int, max_model_len: int
    ) -> None:
        # One sequence alone must always fit, or the oldest could wait for blocks that will never be free.
        assert blocks.blocks_for(max_model_len) <= blocks.total_blocks
        self.blocks = blocks
        self.token_budget = token_budget
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.max_model_len = max_model_len
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self.preemptions = 0
        self._by_id: dict[int, Sequence] = {}

    @property
    def has_work(self) -> bool:
        """True while some sequence is not finished."""
        return bool(self._by_id)

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. Raises QueueFull; then nothing is kept."""
        assert 0 < len(seq.tokens) < self.max_model_len
        if len(self._by_id) >= self.max_running + self.max_waiting:
            raise QueueFull(f"{len(self._by_id)} requests are running or waiting; try again later")
        assert seq.id not in self._by_id
        self._by_id[seq.id] = seq
        self.waiting.append(seq)

    def abort(self, id_: int) -> bool:
        """Drop a sequence wherever it stands and free its blocks. Returns: False if it is not here (any more)."""
        seq = self._by_id.get(id_)
        if seq is None:
            return False
        self.finish(seq)
        return True

    def plan(self) -> Step:
        """Choose the next forward pass of at most `token_budget` tokens.

        Oldest first, so a newcomer takes no room from a running answer."""
        step, preempted = Step(self.token_budget), False
        for seq in list(self.running):  # a copy: preempt() edits the list
            while seq.is_running and step.room:
                count = min(seq.uncomputed_tokens, step.room)
                if self.blocks.grow(seq, count):
                    step.add(seq, count)
                    break
                self.preempt(self.running[-1])  # the youngest, perhaps seq itself, back to the head of the queue
                preempted = True
        # After a preemption nothing is admitted: it would only be preempted again.
        while self.waiting and step.room and not preempted and len(self.running) < self.max_running:
            if not self._admit(step):
                break  # the head waits; letting short prompts overtake would starve long ones
        return step

    def preempt(self, seq: Sequence) -> None:
        """Take a running sequence's blocks; it keeps its tokens and computes them again when there is room."""
        self.running.remove(seq)
        self.blocks.release(seq)
        seq.state = State.WAITING
        seq.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(seq)

    def commit(self, chunk: Chunk, token: int | None) -> str | None:
        """Book one chunk of a step that has run, with the token sampled from its last position.

        Returns: why the sequence ended, or None while it goes on. A sequence that ended is gone from here."""
        seq = chunk.seq
        if seq.state is State.FINISHED:
            return None
        self.blocks.commit(seq, chunk.end)
        if token is None:
            return None
        seq.tokens.append(token)
        reason = seq.finish_reason(self.max_model_len)
        if reason is not None:
            self.finish(seq)
        return reason

    def finish(self, seq: Sequence) -> None:
        """Forget a sequence and free its blocks."""
        (self.running if seq.is_running else self.waiting).remove(seq)
        self.blocks.release(seq)
        seq.state = State.FINISHED
        del self._by_id[seq.id]

    def _admit(self, step: Step) -> bool:
        """Move the head of the queue into the step. Returns: False, with nothing changed, if it does not fit."""
        seq = self.waiting[0]
        self.blocks.match(seq)
        matched = seq.computed
        # All known tokens must fit, not only the first chunk: half a prompt would be preempted before it is of use.
        if not self.blocks.can_hold(seq) or not self.blocks.grow(seq, min(seq.uncomputed_tokens, step.room)):
            self.blocks.release(seq)
            return False
        self.waiting.popleft()
        self.running.append(seq)
        seq.state = State.RUNNING
        self.blocks.query_tokens += len(seq.tokens)
        self.blocks.hit_tokens += matched
        if not seq.preemptions:
            seq.cached_tokens = matched
        step.add(seq, min(seq.uncomputed_tokens, step.room))
        return True
