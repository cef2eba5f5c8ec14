"""Scheduler and block manager under every interleaving that hypothesis thinks of, with a runner that only counts."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from local_backend.block_manager import BlockManager
from local_backend.engine import Engine
from local_backend.errors import BadLogits, QueueFull
from local_backend.messages import Abort, AddRequest, Sampling
from local_backend.prefix_cache import block_hash, root_hash
from local_backend.sampler import Sampled
from local_backend.scheduler import Scheduler, Step
from local_backend.sequence import Sequence

VOCAB = 5  # few tokens: many shared prefixes
MAX_LEN = 24


def next_token(tokens: list[int]) -> int:
    """A 'model': depends on all tokens and their order, so a lost or doubled one shows in all that follow."""
    state = 7
    for token in tokens:
        state = (state * 31 + token + 1) % 1_000_003
    return state % VOCAB


class FakeRunner:
    """Keeps per block slot the token 'computed' there, and reads the context back from the blocks alone.

    So a block given to two owners, or reused while it is read, changes the output."""

    def __init__(self, blocks: int, block_size: int, token_budget: int) -> None:
        self.slots: list[int | None] = [None] * (blocks * block_size)
        self.block_size, self.token_budget = block_size, token_budget
        self.host: dict[int, list[int | None]] = {}
        self.steps: list[list[tuple[int, int, int]]] = []

    def run(self, step: Step) -> list[Sampled | None]:
        assert 0 < sum(c.count for c in step.chunks) <= self.token_budget
        assert len({c.seq.id for c in step.chunks}) == len(step.chunks)
        for move in step.moves:
            own = slice(move.block * self.block_size, (move.block + 1) * self.block_size)
            if move.out:
                self.host[move.slot] = self.slots[own]
            else:
                self.slots[own] = self.host[move.slot]
        self.steps.append([(c.seq.id, c.start, c.count) for c in step.chunks])
        for chunk in step.chunks:
            assert chunk.start == chunk.seq.computed
            for position in range(chunk.start, chunk.end):
                self.slots[self._slot(chunk.seq, position)] = chunk.seq.tokens[position]
        results: list[Sampled | None] = []
        for chunk in step.chunks:
            context = [self.slots[self._slot(chunk.seq, p)] for p in range(chunk.end)]
            assert context == chunk.seq.tokens[: chunk.end], "the cache does not hold this sequence's context"
            results.append(Sampled(next_token(chunk.seq.tokens)) if chunk.samples else None)
        return results

    def _slot(self, seq: Sequence, position: int) -> int:
        return seq.block_table[position // self.block_size] * self.block_size + position % self.block_size


def expected(prompt: list[int], sampling: Sampling) -> tuple[list[int], str]:
    """What the sequence must give, worked out without any of the machinery."""
    tokens = list(prompt)
    while True:
        tokens.append(next_token(tokens))
        if tokens[-1] in sampling.stop_token_ids:
            return tokens[len(prompt) :], "stop"
        if len(tokens) - len(prompt) >= sampling.max_tokens or len(tokens) >= MAX_LEN:
            return tokens[len(prompt) :], "length"


def make(
    blocks: int,
    block_size: int,
    budget: int,
    running: int,
    *,
    caching: bool = True,
    waiting: int = 1000,
    host: int = 0,
    prompt_tokens: int | None = None,
    rows: int = 1,
) -> Engine:
    manager = BlockManager(blocks, block_size, prefix_caching=caching, host_slots=host)
    scheduler = Scheduler(
        manager,
        token_budget=budget,
        max_running=running,
        max_waiting=waiting,
        max_model_len=MAX_LEN,
        prompt_tokens=prompt_tokens,
        rows_at_a_time=rows,
    )
    return Engine(scheduler, FakeRunner(blocks, block_size, budget))


def drain(engine: Engine, outputs: dict[int, list[int]]) -> None:
    """Step until nothing is left, and fail if that takes longer than any plan of one token a step would."""
    for _ in range(5_000):
        if not engine.has_work:
            return
        for token in engine.step().tokens:
            outputs[token.id].append(token.token)
    pytest.fail("some request never ends")


prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=MAX_LEN - 1)
samplings = st.builds(
    Sampling,
    max_tokens=st.integers(1, 12),
    stop_token_ids=st.one_of(st.just(()), st.tuples(st.integers(0, VOCAB - 1))),
)


class EngineMachine(RuleBasedStateMachine):
    """Requests come, go and step in any order."""

    @initialize(
        block_size=st.integers(1, 5),
        spare=st.integers(0, 12),
        budget=st.integers(1, 30),
        running=st.integers(1, 6),
        caching=st.booleans(),
        host=st.integers(0, 6),
        prompt_tokens=st.sampled_from([None, 1, 3, 9]),
        rows=st.sampled_from([1, 4]),
    )
    def start(
        self,
        block_size: int,
        spare: int,
        budget: int,
        running: int,
        caching: bool,
        host: int,
        prompt_tokens: int | None,
        rows: int,
    ) -> None:
        blocks = -(-MAX_LEN // block_size) + spare
        given: dict[str, Any] = {"caching": caching, "host": host, "prompt_tokens": prompt_tokens, "rows": rows}
        self.engine = make(blocks, block_size, budget, running, **given)
        self.scheduler = self.engine.scheduler
        self.next_id = 0
        self.open: dict[int, tuple[list[int], Sampling, str]] = {}
        self.outputs: dict[int, list[int]] = {}
        self.arrivals: deque[int] = deque()  # not started yet, oldest first

    @rule(prompt=prompts, sampling=samplings, salt=st.sampled_from(["", "a", "b"]))
    def add(self, prompt: list[int], sampling: Sampling, salt: str) -> None:
        self.engine.take(AddRequest(self.next_id, prompt, sampling, salt))
        self.open[self.next_id] = (prompt, sampling, salt)
        self.outputs[self.next_id] = []
        self.arrivals.append(self.next_id)
        self.next_id += 1

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.open)))
        before = self.scheduler.blocks.used_blocks
        held = next(s for s in [*self.scheduler.running, *self.scheduler.waiting] if s.id == id_).block_table
        only_its_own = sum(self.scheduler.blocks._references[b] == 1 for b in held)
        self.engine.take(Abort(id_))
        assert self.scheduler.blocks.used_blocks == before - only_its_own, "blocks are free at once"
        del self.open[id_]
        if id_ in self.arrivals:
            self.arrivals.remove(id_)

    @precondition(lambda self: self.open)
    @rule()
    def step(self) -> None:
        oldest = min(self.open)
        computed = self._by_id()[oldest].computed if self._by_id()[oldest].is_running else 0
        length = len(self._by_id()[oldest].tokens)
        output = self.engine.step()
        runner = self.engine.runner
        assert isinstance(runner, FakeRunner)
        for id_, _, _ in runner.steps[-1]:
            if id_ in self.arrivals:
                assert self.arrivals.popleft() == id_, "admitted out of turn"
        for token in output.tokens:
            self.outputs[token.id].append(token.token)
            prompt, sampling, _ = self.open[token.id]
            want, reason = expected(prompt, sampling)
            assert self.outputs[token.id] == want[: len(self.outputs[token.id])], "a token was lost, doubled or changed"
            if token.finish is not None:
                assert (self.outputs[token.id], token.finish) == (want, reason)
                del self.open[token.id]
        if oldest in self.open:
            now = self._by_id()[oldest]
            assert now.computed > computed or len(now.tokens) > length, "the oldest must move in every step"

    @invariant()
    def blocks_add_up(self) -> None:
        if hasattr(self, "scheduler"):
            sequences = [*self.scheduler.running, *self.scheduler.waiting]
            self.scheduler.blocks.check(sequences)
            assert {s.id for s in sequences} == self.open.keys()
            assert len(self.scheduler.running) <= self.scheduler.max_running
            assert [s.id for s in self.scheduler.running] == sorted(s.id for s in self.scheduler.running)

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for _ in range(5_000):
                if not self.open:
                    break
                self.step()
            assert not self.open, "every request ends"
            self.scheduler.blocks.check([])

    def _by_id(self) -> dict[int, Sequence]:
        return {s.id: s for s in [*self.scheduler.running, *self.scheduler.waiting]}


EngineMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestEngineMachine = EngineMachine.TestCase


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(prompts, samplings), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(0, 6),
    st.integers(1, 9),
    st.permutations(range(8)),
)
def test_output_does_not_depend_on_order_blocks_or_budget(
    requests: list[tuple[list[int], Sampling]], block_size: int, spare: int, budget: int, order: list[int]
) -> None:
    engine = make(-(-MAX_LEN // block_size) + spare, block_size, budget, 4)
    for i in order:
        if i < len(requests):
            engine.take(AddRequest(i, *requests[i]))
    outputs: dict[int, list[int]] = {i: [] for i in range(len(requests))}
    drain(engine, outputs)
    assert [outputs[i] for i in outputs] == [expected(*request)[0] for request in requests]


def test_preemption_happens_in_these_tests_and_loses_nothing() -> None:
    engine = make(blocks=8, block_size=3, budget=16, running=6, caching=False)
    sampling = Sampling(max_tokens=12)
    for i in range(6):
        engine.take(AddRequest(i, [i % VOCAB] * 6, sampling))
    outputs: dict[int, list[int]] = {i: [] for i in range(6)}
    drain(engine, outputs)
    assert engine.scheduler.preemptions > 0
    assert all(outputs[i] == expected([i % VOCAB] * 6, sampling)[0] for i in range(6))


def test_running_answers_are_not_held_up_by_a_long_newcomer() -> None:
    engine = make(blocks=100, block_size=2, budget=4, running=4)
    engine.take(AddRequest(0, [1], Sampling(max_tokens=20)))
    engine.step()
    engine.take(AddRequest(1, [2] * 20, Sampling(max_tokens=1)))
    for _ in range(5):
        assert 0 in {t.id for t in engine.step().tokens}, (
            "one token each step while the newcomer is prefilled in chunks"
        )


def test_beside_running_answers_prompts_are_computed_in_smaller_pieces() -> None:
    engine = make(blocks=100, block_size=2, budget=50, running=9, prompt_tokens=4)
    runner = engine.runner
    assert isinstance(runner, FakeRunner)

    def steps(count: int) -> list[list[int]]:
        for _ in range(count):
            engine.step()
        return [[tokens for _, _, tokens in step] for step in runner.steps[-count:]]

    engine.take(AddRequest(0, [1] * 20, Sampling(max_tokens=4)))
    assert steps(2) == [[20], [1]], "alone: as much as the budget allows"
    engine.take(AddRequest(1, [2] * 8, Sampling(max_tokens=9)))
    assert steps(1) == [[1, 6]], "four, and two for the answer"
    engine.take(AddRequest(2, [3] * 20, Sampling(max_tokens=1)))
    assert steps(1) == [[1, 2, 4]]
    assert steps(2) == [[1, 6], [1, 6]]
    engine.scheduler.rows_at_a_time = 8
    engine.take(AddRequest(3, [4] * 15, Sampling(max_tokens=1)))
    assert steps(1) == [[1, 4, 3]], "what was left of the one before, and as much as fills eight rows"


def test_queue_is_bounded_and_says_so() -> None:
    engine = make(blocks=24, block_size=1, budget=4, running=1, waiting=1)
    for i in range(3):
        engine.take(AddRequest(i, [1, 2], Sampling(max_tokens=1)))
    failed = engine.step().failed
    assert [(f.id, f.code) for f in failed] == [(2, QueueFull.code)]
    engine.scheduler.blocks.check([*engine.scheduler.running, *engine.scheduler.waiting])


def test_prefix_is_found_again_but_not_under_another_salt() -> None:
    engine = make(blocks=50, block_size=4, budget=100, running=2)
    prompt = [1, 2, 3, 4, 0, 1, 2, 3, 4]

    def cached(id_: int, salt: str) -> int:
        engine.take(AddRequest(id_, prompt, Sampling(max_tokens=1), salt))
        return engine.step().tokens[0].cached_tokens

    assert cached(0, "") == 0
    assert cached(1, "") == 8
    assert cached(2, "other tenant") == 0
    assert cached(3, "other tenant") == 8


def test_a_prompt_known_whole_still_computes_its_last_token() -> None:
    engine = make(blocks=50, block_size=4, budget=100, running=2)
    for i in range(2):
        engine.take(AddRequest(i, [1, 2, 3, 4], Sampling(max_tokens=1)))
        (token,) = engine.step().tokens
        assert token.token == next_token([1, 2, 3, 4])
        assert token.cached_tokens == 0


def test_beginnings_outlive_tails_in_the_cache() -> None:
    blocks = BlockManager(4, 2)
    first = Sequence(0, [1, 2, 3, 4, 5, 6, 7, 8], Sampling(max_tokens=1))
    assert blocks.grow(first, 8)
    blocks.commit(first, 8)
    blocks.release(first)
    other = Sequence(1, [9, 9, 9], Sampling(max_tokens=1))
    assert blocks.grow(other, 3)
    again = Sequence(2, [1, 2, 3, 4, 5, 6, 7, 8, 9], Sampling(max_tokens=1))
    blocks.match(again)
    assert again.computed == 4, "two blocks had to go, and they were the last two"
    blocks.check([other, again])


def test_what_the_cache_gave_up_comes_back_from_host_memory() -> None:
    engine = make(blocks=6, block_size=4, budget=100, running=1, host=8)
    first, other = [1, 2, 3, 4] * 5, [4, 3, 2, 1] * 5

    def cached(id_: int, prompt: list[int]) -> int:
        engine.take(AddRequest(id_, prompt, Sampling(max_tokens=1)))
        (token,) = engine.step().tokens
        assert token.token == next_token(prompt)
        return token.cached_tokens

    # Six blocks hold one prompt of five; what they held of the one before it is in host memory.
    assert [cached(n, prompt) for n, prompt in enumerate([first, other, first, other])] == [0, 0, 16, 16]
    without = make(blocks=6, block_size=4, budget=100, running=1)
    for n, prompt in enumerate([first, other]):
        without.take(AddRequest(n, prompt, Sampling(max_tokens=1)))
        without.step()
    without.take(AddRequest(9, first, Sampling(max_tokens=1)))
    assert without.step().tokens[0].cached_tokens < 16


def test_what_led_to_numbers_that_are_none_is_not_found_again() -> None:
    """A prompt in chunks: all but the last are in the cache by then, and on the host what another time left there."""
    engine = make(blocks=6, block_size=4, budget=4, running=1, host=8)
    first, other = [1, 2, 3, 4] * 5, [4, 3, 2, 1] * 5
    engine.scheduler.blocks.events = []
    sound = engine.runner

    def ask(id_: int, prompt: list[int]) -> int | str:
        engine.take(AddRequest(id_, prompt, Sampling(max_tokens=1)))
        while True:
            output = engine.step()
            if output.failed:
                return output.failed[0].code
            if output.tokens:
                return output.tokens[0].cached_tokens

    class Broken:
        def run(self, step: Step) -> list[Sampled | None]:
            return [one and Sampled(None) for one in sound.run(step)]

    assert [ask(0, first), ask(1, other), ask(2, first)] == [0, 0, 16]
    engine.runner = Broken()
    assert ask(3, first) == BadLogits.code
    engine.runner = sound
    assert [ask(4, first), ask(5, first)] == [0, 16]
    assert not engine.scheduler.blocks.used_blocks


def test_hash_depends_on_everything_before_the_block() -> None:
    seen = {
        block_hash(root_hash(salt), tokens) for salt in (b"", b"a", b"b" * 100) for tokens in ([1, 2], [2, 1], [1, 3])
    }
    assert len(seen) == 9
    assert block_hash(block_hash(root_hash(b""), [1]), [2]) != block_hash(block_hash(root_hash(b""), [2]), [2])


def test_a_context_that_never_fits_is_ruled_out_at_start() -> None:
    with pytest.raises(AssertionError):
        make(blocks=2, block_size=4, budget=4, running=1)
