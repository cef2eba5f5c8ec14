"""Several tenants at one scheduler: nobody starves, nobody fills it, no step is wasted, under every interleaving."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from local_backend.engine import Engine
from local_backend.errors import DeadlineExceeded
from local_backend.fairness import OUTPUT_COST, REMEMBERED, Fairness
from local_backend.messages import Abort, AddRequest, Sampling, Terms
from local_backend.sampler import Sampled
from local_backend.scheduler import PRIORITY_STEP, Step
from tests.local_backend.test_scheduler import MAX_LEN, FakeRunner, expected, make, prompts, samplings

TENANTS = ["", "a", "b", "c"]


class TenantMachine(RuleBasedStateMachine):
    """Requests of several tenants and priorities come, go and step in any order."""

    @initialize(
        block_size=st.integers(1, 5),
        spare=st.integers(0, 12),
        budget=st.integers(1, 30),
        running=st.integers(1, 6),
        caching=st.booleans(),
    )
    def start(self, block_size: int, spare: int, budget: int, running: int, caching: bool) -> None:
        self.engine = make(-(-MAX_LEN // block_size) + spare, block_size, budget, running, caching=caching)
        self.scheduler = self.engine.scheduler
        self.engine.runner = self
        self.runner = FakeRunner(self.scheduler.blocks.total_blocks, block_size, self.scheduler.token_budget)
        self.preemptions = 0
        self.next_id = 0
        self.open: dict[int, tuple[list[int], Sampling]] = {}
        self.outputs: dict[int, list[int]] = {}

    @rule(prompt=prompts, sampling=samplings, tenant=st.sampled_from(TENANTS), priority=st.integers(-2, 2))
    def add(self, prompt: list[int], sampling: Sampling, tenant: str, priority: int) -> None:
        terms = Terms(tenant=tenant, priority=priority)
        self.engine.take(AddRequest(self.next_id, prompt, sampling, tenant, terms))
        self.open[self.next_id] = (prompt, sampling)
        self.outputs[self.next_id] = []
        self.next_id += 1

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(sorted(self.open)))
        self.engine.take(Abort(id_))
        del self.open[id_]

    @precondition(lambda self: self.open)
    @rule()
    def step(self) -> None:
        steps = len(self.runner.steps)
        output = self.engine.step()
        assert len(self.runner.steps) == steps + 1, "work is open, and the step did none"
        for token in output.tokens:
            self.outputs[token.id].append(token.token)
            want, reason = expected(*self.open[token.id])
            assert self.outputs[token.id] == want[: len(self.outputs[token.id])]
            if token.finish is not None:
                assert (self.outputs[token.id], token.finish) == (want, reason)
                del self.open[token.id]

    def run(self, step: Step) -> list[Sampled | None]:
        """The runner, as the engine sees it: here the plan is made, and what it gave has changed nobody's turn yet."""
        preempted, self.preemptions = self.scheduler.preemptions > self.preemptions, self.scheduler.preemptions
        if step.room and len(self.scheduler.running) < self.scheduler.max_running and not preempted:
            # Somebody who waits beside free places and budget waits for blocks.
            head = self.scheduler._next()
            assert head is None or not self.scheduler._fits(head)
        return self.runner.run(step)

    @invariant()
    def nothing_leaks(self) -> None:
        if hasattr(self, "scheduler"):
            sequences = [*self.scheduler.running, *self.scheduler.waiting]
            self.scheduler.blocks.check(sequences)
            assert {s.id for s in sequences} == self.open.keys()
            assert len(self.scheduler.running) <= self.scheduler.max_running
            assert self.scheduler.fairness.active == len({s.tenant for s in sequences})

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for _ in range(5_000):
                if not self.open:
                    break
                self.step()
            assert not self.open, "every request ends"


TenantMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestTenantMachine = TenantMachine.TestCase


def flood(engine: Engine, tenant: str, first_id: int, count: int, *, prompt: int = 8, tokens: int = 12) -> None:
    for n in range(count):
        request = AddRequest(first_id + n, [n % 5] * prompt, Sampling(max_tokens=tokens), tenant, Terms(tenant=tenant))
        engine.take(request)


def test_a_quiet_tenant_is_served_at_once_beside_a_flood() -> None:
    engine = make(blocks=200, block_size=2, budget=32, running=8)
    flood(engine, "loud", 0, 300)
    for _ in range(10):
        engine.step()
    flood(engine, "quiet", 1000, 1)
    assert 1000 in {token.id for token in engine.step().tokens}, "its first token comes with the next step"
    engine.scheduler.blocks.check(engine.scheduler.sequences)


def test_a_quiet_tenant_finds_blocks_where_the_flood_holds_them_all() -> None:
    engine = make(blocks=30, block_size=2, budget=64, running=8, caching=False)
    flood(engine, "loud", 0, 50)
    for _ in range(4):
        engine.step()
    assert engine.scheduler.blocks.free_blocks < 6
    flood(engine, "quiet", 1000, 1, prompt=12)
    assert any(1000 in {token.id for token in engine.step().tokens} for _ in range(3))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 12), st.integers(2, 40))
def test_who_always_wants_more_gets_as_much_as_the_other(running: int, few: int, many: int, budget: int) -> None:
    engine = make(blocks=100, block_size=2, budget=budget, running=running)
    flood(engine, "a", 0, 150, prompt=few, tokens=many)
    flood(engine, "b", 1000, 150, prompt=many, tokens=few)
    fairness = engine.scheduler.fairness
    bound = 2 * max(MAX_LEN, OUTPUT_COST * MAX_LEN * running)
    for _ in range(80):
        engine.step()
        if fairness.active < 2:
            break
        assert abs(fairness.of("a") - fairness.of("b")) <= bound


def test_priority_goes_first_within_a_tenant_and_is_overtaken_in_the_end() -> None:
    engine = make(blocks=100, block_size=2, budget=64, running=1)
    for id_, priority in ((0, 0), (1, 1), (2, 0), (3, -1)):
        engine.take(AddRequest(id_, [1], Sampling(max_tokens=1), "", Terms(priority=priority)))
    order = [token.id for _ in range(4) for token in engine.step().tokens]
    assert order == [3, 0, 2, 1]
    engine.take(AddRequest(10, [1], Sampling(max_tokens=1), "", Terms(priority=1)))
    for n in range(2 * PRIORITY_STEP):
        engine.take(AddRequest(100 + n, [1], Sampling(max_tokens=1)))
    assert 10 in {token.id for _ in range(PRIORITY_STEP + 1) for token in engine.step().tokens}


def test_who_was_away_comes_back_at_the_level_of_those_who_stayed() -> None:
    fairness = Fairness()
    fairness.arrive("a")
    fairness.charge("a", 100)
    fairness.arrive("b")
    assert fairness.of("b") == 100, "no credit for hours away"
    fairness.charge("b", 500)
    fairness.leave("b")
    fairness.arrive("b")
    assert fairness.of("b") == 600, "a short pause is no pardon"
    for n in range(2 * REMEMBERED):
        fairness.arrive(f"t{n}")
        fairness.leave(f"t{n}")
    assert len(fairness._service) <= REMEMBERED + 3, "strangers do not fill the memory"


def test_what_a_tenant_took_while_nobody_else_wanted_it_is_not_held_against_it() -> None:
    fairness = Fairness()
    fairness.arrive("a")
    fairness.charge("a", 5000)
    fairness.leave("a")
    fairness.arrive("flood")
    fairness.arrive("a")
    assert fairness.of("a") == fairness.of("flood")


def test_a_deadline_ends_who_waits_and_who_runs() -> None:
    engine = make(blocks=40, block_size=2, budget=64, running=1)
    now = 0.0
    engine.clock = lambda: now
    engine.take(AddRequest(0, [1], Sampling(max_tokens=20), "", Terms(timeout_s=5.0)))
    engine.take(AddRequest(1, [2], Sampling(max_tokens=20), "", Terms(timeout_s=4.0)))
    assert {t.id for t in engine.step().tokens} == {0}
    now = 4.5
    assert [(f.id, f.code) for f in engine.step().failed] == [(1, DeadlineExceeded.code)]
    now = 5.5
    failed = engine.step().failed
    assert [(f.id, f.code) for f in failed] == [(0, DeadlineExceeded.code)]
    assert "after 2 tokens" in failed[0].message
    assert engine.scheduler.blocks.used_blocks == 0
