"""Speculation changes when tokens come, never which: equal tokens, equal distribution, no block lost."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from local_backend.messages import AddRequest, Sampling
from local_backend.model_runner import held
from local_backend.sampler import sample
from local_backend.sequence import Sequence
from local_backend.speculative import Lookup, Speculation
from tests.local_backend.support import make_engine

VOCAB = 4


def outputs(folder: Path, guess: Speculation | None, seed: int, **changes: int) -> tuple[list[list[int]], int]:
    """Tokens of some repetitive requests, and the steps they took."""
    chance = random.Random(seed)
    engine = make_engine(folder, block_size=4, **changes)
    engine.speculation = guess
    results: dict[int, list[int]] = {}
    for i in range(4):
        phrase = [chance.randrange(3, 259) for _ in range(chance.randrange(2, 6))]
        temperature = chance.choice([0.0, 0.05])
        sampling = Sampling(max_tokens=chance.randrange(1, 40), temperature=temperature, seed=i, stop_token_ids=(9,))
        results[i] = []
        engine.take(AddRequest(i, phrase * 3, sampling))
    while engine.has_work:
        for token in engine.step().tokens:
            results[token.id].append(token.token)
        engine.scheduler.blocks.check(engine.scheduler.running)
    assert engine.scheduler.blocks.free_blocks == engine.scheduler.blocks.total_blocks
    return list(results.values()), engine.steps


@pytest.mark.parametrize("seed", range(6))
def test_tokens_are_those_without_guessing_in_no_more_steps(tiny: Path, seed: int) -> None:
    plain, steps = outputs(tiny, None, seed)
    guess = Speculation(most=8, max_batch=8)
    guessed, fewer = outputs(tiny, guess, seed)
    assert guessed == plain
    assert fewer <= steps  # not always fewer: the longest answer decides


def test_some_guesses_hold_and_a_small_budget_takes_what_fits(tiny: Path) -> None:
    accepted = 0
    for seed in range(6):
        guess = Speculation(most=8, max_batch=8)
        assert outputs(tiny, guess, seed, token_budget=5)[0] == outputs(tiny, None, seed)[0]
        accepted += guess.accepted
    assert accepted > 20


def test_preemption_amid_guesses_loses_nothing(tiny: Path) -> None:
    guess = Speculation(most=8, max_batch=8)
    assert outputs(tiny, guess, 3, blocks=20, max_model_len=70)[0] == outputs(tiny, None, 3)[0]


def test_the_distribution_is_the_models_own() -> None:
    """Chi-square over 20,000 pairs of tokens: one guess, right or wrong, leaves the joint distribution as it is."""
    torch.manual_seed(0)
    first, second = torch.randn(VOCAB), torch.randn(VOCAB, VOCAB)
    draws = 20_000
    for guess in range(VOCAB):
        seen: Counter[tuple[int, int]] = Counter()
        seqs = [Sequence(i, [0], Sampling(max_tokens=2, seed=i)) for i in range(draws)]
        ones = sample(first.repeat(draws, 1), seqs)
        twos = sample(second[guess].repeat(draws, 1), [seq.ahead([guess]) for seq in seqs])
        # Where the guess failed, the next step draws the second token from what really came first.
        again = sample(
            torch.stack([second[one.token or 0] for one in ones]),
            [seq.ahead([one.token or 0]) for seq, one in zip(seqs, ones, strict=True)],
        )
        for one, two, later in zip(ones, twos, again, strict=True):
            out = held([one, two], (guess,))
            assert out.token is not None
            assert bool(out.more) == (out.token == guess)
            follower = out.more[0].token if out.more else later.token
            assert follower is not None
            seen[out.token, follower] += 1
        expected = first.softmax(0).unsqueeze(1) * second.softmax(1)
        chi = sum(
            (seen[a, b] - draws * float(expected[a, b])) ** 2 / (draws * float(expected[a, b]))
            for a in range(VOCAB)
            for b in range(VOCAB)
        )
        assert chi < 37.7, chi  # 15 degrees of freedom: one in a thousand


def test_guesses_come_from_the_longest_end_seen_before() -> None:
    lookup = Lookup()
    assert lookup.guess([1, 2, 3, 4, 9, 2, 3], 4) == [4, 9, 2, 3]
    assert lookup.guess([1, 2, 3, 4, 9, 2, 3, 7, 1, 2, 3], 2) == [4, 9]
    assert Lookup().guess([1, 2, 3], 4) == []


def test_guessing_rests_where_it_does_not_pay_and_grows_where_it_does() -> None:
    lookup = Lookup()
    for _ in range(3):
        lookup.learn(4, 4)
    assert lookup.length == 16
    rests = []
    for _ in range(20):
        lookup.learn(4, 0)
        if lookup.rest:
            rests.append(lookup.rest)
            lookup.rest = 0
    assert rests[:3] == [8, 16, 32]
    assert max(rests) == 128
    assert lookup.length == 1
    crowd = [Sequence(i, [1, 2, 1, 2], Sampling(max_tokens=9)) for i in range(5)]
    for seq in crowd:
        seq.computed = 3
    Speculation(most=4, max_batch=4).propose(crowd, 100)
    assert not any(seq.draft for seq in crowd)
