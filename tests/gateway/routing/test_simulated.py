"""The `prefix` strategy against the rules of others, on simulated replicas: the same seeds give the same figures."""

from __future__ import annotations

import pytest

from tests.bench.routing.rules import RULES
from tests.bench.routing.simulation import simulate


@pytest.mark.parametrize(
    ("mix", "load", "most"), [("chat", "spare", 1.0), ("chat", "saturated", 0.9), ("cold", "spare", 1.05)]
)
def test_first_tokens_come_no_later_than_by_the_best_of_the_others(mix: str, load: str, most: float) -> None:
    outcomes = {rule: simulate(rule, mix, load, replicas=4, seconds=45.0) for rule in RULES}
    ours = outcomes.pop("ours")
    assert ours.requests > 200
    assert ours.refused == 0
    assert ours.first_token_s <= most * min(o.first_token_s for o in outcomes.values())
