"""The `prefix` strategy against the rules of others, on simulated replicas: the same seeds give the same figures."""

from __future__ import annotations

import random

import pytest

from tests.bench.routing.replicas import Fleet, Job
from tests.bench.routing.rules import OURS, RULES, Oracle
from tests.bench.routing.simulation import simulate


@pytest.mark.parametrize(
    ("mix", "load", "most"), [("chat", "spare", 1.0), ("chat", "saturated", 0.9), ("cold", "spare", 1.05)]
)
def test_first_tokens_come_no_later_than_by_the_best_of_the_others(mix: str, load: str, most: float) -> None:
    outcomes = {rule: simulate(rule, mix, load, replicas=4, seconds=45.0) for rule in RULES}
    assert all(each.first_token_s >= each.bound_s > 0 for each in outcomes.values()), "nobody beats the bound"
    ours = outcomes.pop(OURS)
    assert ours.requests > 200
    assert ours.refused == 0
    assert ours.first_token_s <= most * min(o.first_token_s for o in outcomes.values())


@pytest.mark.parametrize("rule", [*RULES.values(), Oracle])
def test_whom_one_refuses_every_rule_asks_everybody_else_for(rule: type[Oracle]) -> None:
    chance = random.Random(3)
    fleet = Fleet(5)
    chooser = rule(fleet, chance)
    for number in range(50):
        job = Job(640, tuple(range(number % 3, 10)), 10, 0.0, session=number)
        asked = []
        for replica in chooser.order(job):
            asked.append(replica)
            job.replica = replica
            chooser.sent(job)
            chooser.refused(job)
        assert sorted(asked) == [0, 1, 2, 3, 4]


def test_the_oracle_foresees_what_comes() -> None:
    """To the step, as long as nobody comes afterwards and no answer ends."""
    chance = random.Random(5)
    for _ in range(20):
        fleet = Fleet(1)
        for number in range(chance.randint(0, 12)):
            fleet.run(fleet.now + chance.expovariate(20))
            job = Job(chance.randint(1, 9000), (number,), 100_000, fleet.now)
            fleet.submit(job, 0)
        fleet.run(fleet.now + chance.expovariate(5))
        last = Job(chance.randint(1, 9000), (), 100_000, fleet.now)
        foreseen_s = fleet.first_token_s(last, 0)
        fleet.submit(last, 0)
        fleet.run(fleet.now + foreseen_s + 1.0)
        assert last.first_token is not None
        assert last.first_token - last.began == pytest.approx(foreseen_s)
