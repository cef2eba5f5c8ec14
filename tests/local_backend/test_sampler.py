"""The sampler: what each parameter rules out, how often each token comes, and that neighbours change nothing."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from local_backend.messages import Sampling
from local_backend.sampler import CANDIDATES, sample, uniform
from local_backend.sequence import Sequence

PROBS = torch.tensor([0.40, 0.25, 0.15, 0.10, 0.06, 0.04])


def seq(prompt: list[int] | None = None, output: list[int] | None = None, **params: Any) -> Sequence:
    made = Sequence(0, prompt or [0], Sampling(max_tokens=100, **params))
    made.tokens += output or []
    return made


def choose(logits: torch.Tensor, sequence: Sequence) -> int:
    (sampled,) = sample(logits.clone().unsqueeze(0), [sequence])
    assert sampled.token is not None
    return sampled.token


def draw(times: int, probs: torch.Tensor = PROBS, **params: Any) -> Counter[int]:
    """One token from each of many seeds, all in one batch."""
    rows = [seq(seed=i, **params) for i in range(times)]
    return Counter(s.token for s in sample(probs.log().repeat(times, 1), rows) if s.token is not None)


def chi_square(counts: Counter[int], probs: dict[int, float]) -> float:
    total = sum(counts.values())
    assert counts.keys() <= probs.keys(), "a token came that is ruled out"
    return sum((counts[t] - total * p) ** 2 / (total * p) for t, p in probs.items())


def renormalised(tokens: list[int], power: float = 1.0) -> dict[int, float]:
    kept = {t: float(PROBS[t]) ** power for t in tokens}
    return {t: p / sum(kept.values()) for t, p in kept.items()}


@pytest.mark.parametrize(
    ("params", "kept", "power"),
    [
        ({}, [0, 1, 2, 3, 4, 5], 1.0),
        ({"temperature": 0.5}, [0, 1, 2, 3, 4, 5], 2.0),
        ({"temperature": 2.0}, [0, 1, 2, 3, 4, 5], 0.5),
        ({"top_k": 2}, [0, 1], 1.0),
        ({"top_p": 0.7}, [0, 1, 2], 1.0),
        ({"top_p": 0.64}, [0, 1], 1.0),
        ({"top_p": 0.01}, [0], 1.0),
        ({"min_p": 0.2}, [0, 1, 2, 3], 1.0),
        ({"top_k": 4, "top_p": 0.7}, [0, 1], 1.0),  # 0.7 of the 0.9 that top_k left: 0.63
        ({"top_k": 3, "min_p": 0.5}, [0, 1], 1.0),
        ({"top_k": 50, "top_p": 0.999999}, [0, 1, 2, 3, 4, 5], 1.0),
    ],
)
def test_distribution_is_what_the_parameters_say(params: dict[str, Any], kept: list[int], power: float) -> None:
    # 24 is beyond the 99.9 % quantile of chi-square with five degrees of freedom; seeds are fixed, so no luck is asked.
    assert chi_square(draw(8000, **params), renormalised(kept, power)) < 24


def test_zero_temperature_takes_the_likeliest() -> None:
    assert draw(50, temperature=0.0) == {0: 50}


def test_a_nucleus_wider_than_the_candidates_is_still_whole() -> None:
    vocab = 4 * CANDIDATES
    counts = draw(3000, torch.full((vocab,), 1.0 / vocab), top_p=0.999)
    assert max(counts) > 3 * CANDIDATES
    assert max(counts.values()) < 12


def test_seed_gives_the_same_token_alone_in_a_crowd_and_in_any_order() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 500)
    kinds: list[dict[str, Any]] = [
        {},
        {"top_p": 0.9},
        {"top_k": 20, "temperature": 0.7},
        {"min_p": 0.05},
        {"temperature": 0.0},
    ]
    rows = [seq(seed=i, **kinds[i % 5]) for i in range(40)]
    crowd = [s.token for s in sample(logits.clone(), rows)]
    assert [choose(logits[i], rows[i]) for i in range(40)] == crowd
    order = torch.randperm(40).tolist()
    assert [s.token for s in sample(logits[order].clone(), [rows[i] for i in order])] == [crowd[i] for i in order]


def test_chance_depends_on_seed_and_position_alone() -> None:
    assert uniform(7, 3) == uniform(7, 3)
    assert len({uniform(s, p) for s in range(30) for p in range(30)}) == 900
    assert 0 <= min(uniform(s, 0) for s in range(1000)) < 0.01
    assert math.isclose(sum(uniform(s, 1) for s in range(4000)) / 4000, 0.5, abs_tol=0.02)
    assert 0 <= uniform(2**64 - 1, 0) < 1


def test_penalties_count_what_they_should() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0, 0.0])
    assert choose(logits, seq([0, 0], temperature=0.0)) == 0
    assert choose(logits, seq([0, 0], [0], temperature=0.0, presence_penalty=0.2)) == 1
    assert choose(logits, seq([0, 0], temperature=0.0, presence_penalty=2.0)) == 0, "the prompt does not count"
    assert choose(logits, seq([3], [0, 0], temperature=0.0, frequency_penalty=0.06)) == 1, "twice 0.06 passes 0.1"
    assert choose(logits, seq([3], [0], temperature=0.0, frequency_penalty=0.06)) == 0
    assert choose(logits, seq([0], temperature=0.0, repetition_penalty=1.2)) == 1, "here the prompt counts"
    assert choose(torch.tensor([-1.0, -1.1]), seq([0], temperature=0.0, repetition_penalty=1.2)) == 1, "away from zero"


def test_bias_forces_and_forbids() -> None:
    logits = torch.tensor([5.0, 1.0, 0.0])
    assert choose(logits, seq(temperature=0.0, logit_bias={2: 100.0})) == 2
    assert choose(logits, seq(temperature=0.0, logit_bias={0: -100.0})) == 1


def test_logprobs_are_the_models_own() -> None:
    logits = PROBS.log() + 3.0
    (sampled,) = sample(
        logits.clone().unsqueeze(0), [seq(temperature=0.0, logprobs=2, logit_bias={4: 100.0}, presence_penalty=1.0)]
    )
    assert sampled.token == 4
    assert sampled.logprobs is not None
    assert sampled.logprobs.chosen == pytest.approx(math.log(0.06), abs=1e-5)
    assert sampled.logprobs.top_ids == [0, 1]
    assert sampled.logprobs.top_logprobs == pytest.approx([math.log(0.40), math.log(0.25)], abs=1e-5)
    (none,) = sample(logits.clone().unsqueeze(0), [seq(temperature=0.0)])
    assert none.logprobs is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_of_no_numbers_fails_alone(bad: float) -> None:
    logits = PROBS.log().repeat(3, 1)
    logits[1, 3] = bad
    results = sample(logits, [seq(temperature=0.0), seq(temperature=0.8), seq(temperature=0.0)])
    assert [r.token for r in results] == [0, None, 0]
