"""Batch-invariant mode: what a request gets at temperature 0 does not depend, to the bit, on who else is there."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from local_backend.errors import ModelUnavailable
from local_backend.kernels.cpu import CpuOps
from local_backend.messages import AddRequest, Sampling
from local_backend.quantization.run import PlanesLinear
from tests.local_backend.support import cache_dir, make_engine, make_tiny_model

SHUFFLES = 50
PROBE = [7, 30, 99, 200, 41, 13, 77, 150, 8, 64, 33, 250, 19, 90, 111, 5, 6]


def probe(folder: Path, chance: random.Random, neighbours: int, **changes: Any) -> list[list[float]]:
    """Run the probe amid random neighbours, budgets and arrivals. Returns: its logprobs, with all their bits."""
    engine = make_engine(folder, token_budget=chance.choice([8, 16, 64]), block_size=4, **changes)
    others = [
        AddRequest(
            i + 1,
            # Some share the probe's beginning, so that its blocks may come from the prefix cache.
            PROBE[: chance.choice([0, 0, 8, 12])] + [chance.randrange(3, 259) for _ in range(chance.randrange(1, 40))],
            Sampling(max_tokens=chance.randrange(1, 12), temperature=chance.choice([0.0, 1.0]), seed=i),
        )
        for i in range(neighbours)
    ]
    requests = [AddRequest(0, list(PROBE), Sampling(max_tokens=8, temperature=0.0, logprobs=5)), *others]
    chance.shuffle(requests)
    seen: list[list[float]] = []
    while requests or engine.has_work:
        for _ in range(min(len(requests), chance.randrange(0, 4))):
            engine.take(requests.pop())
        for token in engine.step().tokens if engine.has_work else []:
            if token.id == 0:
                assert token.logprobs is not None
                seen.append([float(token.token), token.logprobs.chosen, *token.logprobs.top_logprobs])
    return seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("invariant")
    make_tiny_model(made, seed=8, hidden_size=64, intermediate_size=96, num_attention_heads=4)
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization": "int8"},
        {"quantization": "none"},
        {"quantization": "int16"},
        {"quantization": "int4wo"},
    ],
    ids=str,
)
def test_fifty_shuffled_mixes_leave_every_bit_of_an_answer_alone(changes: dict[str, str], folder: Path) -> None:
    if changes["quantization"] == "int16" and not PlanesLinear.available(CpuOps(cache_dir() / "kernels")):
        pytest.skip("NO VNNI HERE: int16 does not run")
    chance = random.Random(str(changes))
    alone = probe(folder, chance, 0, **changes, batch_invariant=True)
    assert len(alone) == 8
    for _ in range(SHUFFLES if changes["quantization"] == "int8" else 10):
        assert probe(folder, chance, chance.randrange(1, 12), **changes, batch_invariant=True) == alone


def test_it_is_refused_where_it_cannot_be_kept(folder: Path) -> None:
    with pytest.raises(ModelUnavailable, match="batch-invariant mode needs"):
        make_engine(folder, batch_invariant=True, kernels="plain")
    with pytest.raises(ModelUnavailable, match="batch-invariant mode needs"):
        make_engine(folder, batch_invariant=True, dtype="bfloat16")
