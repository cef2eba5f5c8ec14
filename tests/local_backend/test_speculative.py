"""Speculation changes when tokens come, never which: equal tokens, equal distribution, no block lost."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from local_backend.draft import DraftModel, RoomForDraft
from local_backend.engine import Engine
from local_backend.errors import ModelUnavailable
from local_backend.memory import CachePlan
from local_backend.messages import AddRequest, Sampling
from local_backend.model_runner import ModelRunner, held
from local_backend.parallel import Company
from local_backend.sampler import DRAWN, accept, odds_of, pick, sample, uniform
from local_backend.sequence import Sequence
from local_backend.speculative import Lookup, Lookups, Luck, Speculation
from tests.local_backend.support import make_engine, make_tiny_model, settings

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
    guess = Speculation(Lookups(), most=8, max_batch=8)
    guessed, fewer = outputs(tiny, guess, seed)
    assert guessed == plain
    assert fewer <= steps  # not always fewer: the longest answer decides


def test_some_guesses_hold_and_a_small_budget_takes_what_fits(tiny: Path) -> None:
    accepted = 0
    for seed in range(6):
        guess = Speculation(Lookups(), most=8, max_batch=8)
        assert outputs(tiny, guess, seed, token_budget=5)[0] == outputs(tiny, None, seed)[0]
        accepted += guess.accepted
    assert accepted > 20


def test_preemption_amid_guesses_loses_nothing(tiny: Path) -> None:
    guess = Speculation(Lookups(), most=8, max_batch=8)
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
    luck = Luck()
    for _ in range(3):
        luck.learn(4, 4, 0.4)
    assert luck.length == 16
    rests = []
    for _ in range(20):
        luck.learn(4, 0, 0.4)
        if luck.rest:
            rests.append(luck.rest)
            luck.rest = 0
    assert rests[:3] == [8, 16, 32]
    assert max(rests) == 128
    assert luck.length == 1
    crowd = [Sequence(i, [1, 2, 1, 2], Sampling(max_tokens=9)) for i in range(5)]
    for seq in crowd:
        seq.computed = 3
    Speculation(Lookups(), most=4, max_batch=4).propose(crowd, 100)
    assert not any(seq.draft for seq in crowd)


CHI_15 = 37.7  # 15 degrees of freedom: one in a thousand; seeds are fixed, so no luck is asked


@pytest.mark.parametrize("params", [{}, {"temperature": 0.6, "top_p": 0.8}], ids=str)
def test_rejection_sampling_gives_the_models_own_distribution(params: dict[str, float]) -> None:
    """Chi-square over 5,000 pairs: a draft model with odds of its own, whatever they are, changes nothing."""
    torch.manual_seed(3)
    first, second = torch.randn(VOCAB) * 1.5, torch.randn(VOCAB, VOCAB) * 1.5
    theirs = torch.randn(VOCAB) * 1.5
    draws, accepted = 5_000, 0
    seen: Counter[tuple[int, int]] = Counter()
    for seed in range(draws):
        seq = Sequence(0, [0], Sampling(max_tokens=4, seed=seed, **params))  # type: ignore[arg-type]
        q = odds_of(theirs, seq.sampling)
        guess = pick(q, uniform(seed ^ DRAWN, 0))
        seq.odds = [q]
        out = accept(torch.stack([first, second[guess]]), seq, (guess,))
        assert out.token is not None
        if out.more:
            accepted += 1
            assert out.more[0].token is not None
            seen[out.token, out.more[0].token] += 1
        else:
            (later,) = sample(second[out.token].clone().unsqueeze(0), [seq.ahead([out.token])])
            assert later.token is not None
            seen[out.token, later.token] += 1
    p = odds_of(first, seq.sampling)
    joint = p.unsqueeze(1) * torch.stack([odds_of(row, seq.sampling) for row in second])
    cells = [(a, b) for a in range(VOCAB) for b in range(VOCAB) if float(joint[a, b])]
    assert set(seen) <= set(cells)
    chi = sum((seen[c] - draws * float(joint[c])) ** 2 / (draws * float(joint[c])) for c in cells)
    assert chi < CHI_15, chi
    overlap = float(torch.minimum(p, q).sum())  # what rejection sampling accepts, and no scheme more
    assert accepted / draws == pytest.approx(overlap, abs=0.03)


def test_numbers_that_are_none_end_a_chain_of_guesses() -> None:
    seq = Sequence(0, [0], Sampling(max_tokens=4, seed=1))
    seq.odds = [torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)]
    sure = torch.tensor([50.0, 0, 0, 0])
    broken = torch.full((VOCAB,), float("nan"))
    out = accept(torch.stack([sure, broken]), seq, (0,))
    assert (out.token, out.more) == (0, ())
    assert accept(torch.stack([broken, sure]), seq, (0,)).token is None


def with_draft(folder: Path, draft: Path, most: int = 4, **changes: int) -> tuple[Engine, DraftModel]:
    """An engine whose guesses come from another folder's model."""
    engine = make_engine(folder, block_size=4, **changes)
    runner = engine.runner
    assert isinstance(runner, ModelRunner)
    given = settings(speculation="draft", draft_model=str(draft), block_size=4)
    guesser = DraftModel(runner, given, engine.scheduler.blocks)
    engine.speculation = Speculation(guesser, most=most, max_batch=8)
    return engine, guesser


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's weights with some noise: it often guesses right, and often not."""
    folder = tmp_path_factory.mktemp("other")
    model = make_tiny_model(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * weight.std() * 0.05)
    model.save_pretrained(folder)
    return folder


def served(engine: Engine, seed: int, count: int = 4, **sampling: Any) -> list[list[int]]:
    """Tokens of some requests, some of whose prompts share a beginning."""
    chance = random.Random(seed)
    beginning = [chance.randrange(3, 259) for _ in range(13)]
    results: dict[int, list[int]] = {}
    for i in range(count):
        prompt = beginning[: chance.choice([0, 13])] + [chance.randrange(3, 259) for _ in range(chance.randrange(1, 9))]
        id_ = 100 * seed + i  # as in the real thing no id comes twice
        results[id_] = []
        engine.take(AddRequest(id_, prompt, Sampling(max_tokens=chance.randrange(2, 30), seed=i, **sampling)))
    while engine.has_work:
        for token in engine.step().tokens:
            results[token.id].append(token.token)
        engine.scheduler.blocks.check(engine.scheduler.running)
    assert engine.scheduler.blocks.free_blocks == engine.scheduler.blocks.total_blocks
    return list(results.values())


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.3, "repeatable": True}], ids=str)
def test_a_draft_model_changes_no_token_that_is_to_be_repeatable(
    tiny: Path, other: Path, sampling: dict[str, Any]
) -> None:
    proposed = accepted = 0
    for seed, changes in enumerate([{}, {"token_budget": 5}, {"blocks": 20, "max_model_len": 60}]):
        engine, _ = with_draft(tiny, other, **changes)
        assert engine.speculation is not None
        for again in range(2):  # the second time prompts come from the cache, filled by both models
            ours = served(engine, 10 * seed + again, **sampling)
            assert ours == served(make_engine(tiny, block_size=4, **changes), 10 * seed + again, **sampling)
        proposed += engine.speculation.proposed
        accepted += engine.speculation.accepted
    assert 20 < accepted < proposed


def test_a_model_that_guesses_for_itself_is_nearly_always_right(tiny: Path) -> None:
    """Also drawn by chance: equal odds are accepted whatever came. A few sums are rounded otherwise in a batch."""
    engine, guesser = with_draft(tiny, tiny)
    guesser.pays_from = 0.0
    assert engine.speculation is not None
    for seed in range(3):
        served(engine, seed, temperature=1.0)
    assert engine.speculation.accepted > 0.95 * engine.speculation.proposed > 20


def test_what_a_guess_must_be_worth_is_measured(tiny: Path, other: Path) -> None:
    engine, guesser = with_draft(tiny, other)
    ticks = iter(range(1000))
    assert isinstance(engine.runner, ModelRunner)
    # Every pass takes one tick: a round of 4 takes 4 of the draft model and one of the target, and saves 4 at best.
    guesser.measure(engine.runner, 4, clock=lambda: float(next(ticks)))
    assert guesser.pays_from == 1.0
    assert engine.scheduler.blocks.free_blocks == engine.scheduler.blocks.total_blocks


def test_a_draft_model_of_other_tokens_is_refused(tiny: Path, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, vocab_size=300)
    with pytest.raises(ModelUnavailable, match="300 tokens are not 259"):
        RoomForDraft(Company(), tiny, settings(speculation="draft", draft_model=str(tmp_path)))
    half = RoomForDraft(Company(), tiny, settings(speculation="draft", draft_model=str(tiny)))
    assert half.agree(CachePlan(100, 512)).blocks == 50
    with pytest.raises(ModelUnavailable, match="no room"):
        half.agree(CachePlan(2, 32))
