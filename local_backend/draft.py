"""Guesses by a small model of the same vocabulary, which runs ahead and is checked by the large one.

It has a cache of its own under the same block tables: block n holds a token's keys and values of both models, so the
block manager serves both and knows nothing of it. What the draft model has not computed of a sequence it makes up for
before it guesses. Should a block hold something else than we think, guesses get worse; answers cannot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from msgspec import structs

from local_backend.block_manager import BlockManager
from local_backend.config import Settings
from local_backend.errors import ModelUnavailable
from local_backend.forward import Pass, Span, arranged
from local_backend.memory import CachePlan
from local_backend.messages import Sampling
from local_backend.model_config import ModelConfig, read_model_config
from local_backend.model_runner import ModelRunner
from local_backend.parallel import Company
from local_backend.sampler import DRAWN, GREEDY_BELOW, odds_of, pick, uniform
from local_backend.sequence import Sequence

CATCH_UP = {"cpu": 512, "cuda": 4096}  # tokens in one go: a long prompt must not hold up the others' steps


class RoomForDraft(Company):
    """Leaves a part of the target's cache to the draft model's, which has as many blocks; else asks the other ranks."""

    def __init__(self, company: Company, model_dir: Path, settings: Settings) -> None:
        """Raises ModelUnavailable if the draft model knows other tokens."""
        assert settings.draft_model is not None
        self.ranks, self._company, self._block_size = company.ranks, company, settings.block_size
        target, draft = read_model_config(model_dir), read_model_config(Path(settings.draft_model))
        if target.vocab_size != draft.vocab_size:
            raise ModelUnavailable(
                f"a draft model must have the model's own vocabulary: {draft.vocab_size} tokens are not "
                f"{target.vocab_size}"
            )
        mine = _width(target) // self.ranks.size
        self._share = mine / (mine + _width(draft))

    def agree(self, plan: CachePlan) -> CachePlan:
        """See Company. Raises ModelUnavailable if too little is left for one context."""
        blocks = int(plan.blocks * self._share)
        if blocks < 2:
            raise ModelUnavailable("the KV cache has no room for a draft model's beside it: give it more bytes")
        return self._company.agree(
            replace(plan, blocks=blocks, max_model_len=min(plan.max_model_len, blocks * self._block_size))
        )

    def tell(self, whole: Pass) -> None:
        """See Company."""
        self._company.tell(whole)


class SamePlan(Company):
    """Makes the draft model's cache as long as the target's."""

    def __init__(self, plan: CachePlan) -> None:
        self._plan = plan

    def agree(self, plan: CachePlan) -> CachePlan:
        """See Company."""
        return replace(self._plan, host_slots=0)


@dataclass(slots=True)
class Ahead:
    """How far the draft model is with one sequence; until `preemptions` change, for then its blocks are others."""

    preemptions: int
    computed: int


class DraftModel:
    """A Guesser with a model of its own."""

    def __init__(self, target: ModelRunner, settings: Settings, blocks: BlockManager) -> None:
        """Raises ModelUnavailable."""
        assert settings.draft_model is not None
        device = str(target.device)
        self.limit = min(target.plan.max_model_len, read_model_config(Path(settings.draft_model)).max_position)
        own = structs.replace(
            settings,
            quantization=settings.draft_quantization,
            device=device,
            adapters=None,
            tensor_parallel=1,
            threads=torch.get_num_threads() if target.device.type == "cpu" else settings.threads,
            max_model_len=self.limit,
            kv_cache_bytes=target.cache.keys.nbytes,  # SamePlan knows better; only to pass the check
        )
        self.runner = ModelRunner(Path(settings.draft_model), own, SamePlan(target.plan))
        self.blocks = blocks
        self.pays_from = 0.0
        self._budget = CATCH_UP[target.device.type]
        self._ahead: dict[int, Ahead] = {}
        self._filled: dict[int, bytes] = {}  # block -> hash of what this model has computed in it

    def measure(self, target: ModelRunner, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Find out from which share of guesses on it pays, by the time that both models take on this device.

        Without guessing a token takes one step of the target; a round of `most` guesses takes as many of the draft
        model and one longer of the target, and gives one token and those that hold."""
        seq = Sequence(-1, [0] * (most + 2), Sampling(max_tokens=1))
        if not self.blocks.grow(seq, len(seq.tokens)):
            return

        def seconds(runner: ModelRunner, tokens: int) -> float:
            whole = Pass([Span([0] * tokens, 1, seq.block_table)], list(range(tokens)))
            best = float("inf")
            for _ in range(4):
                begun = clock()
                with torch.inference_mode():
                    runner.forward(whole)[0, 0].item()
                best = min(best, clock() - begun)
            return best

        one, round_ = seconds(target, 1), seconds(target, 1 + most) + most * seconds(self.runner, 1)
        self.blocks.release(seq)
        self.pays_from = min(1.0, max(0.0, (round_ - one) / (most * one)))

    def guess(self, wanted: list[tuple[Sequence, int]]) -> None:
        """See Guesser. Draws as the sequence itself would; greedily for one that is to be repeatable by its seed."""
        todo = [(seq, room) for seq, most in wanted if (room := self._room(seq, most))]
        room = self._budget
        spans: list[tuple[Span, int]] = []
        for seq, _ in todo:
            state = self._state(seq)
            end = min(len(seq.tokens), state.computed + max(1, room))
            spans.append(
                (Span(seq.tokens[state.computed : end], state.computed, seq.block_table), int(end == len(seq.tokens)))
            )
            room -= end - state.computed
            state.computed = end
            self._mark(seq, end)
        while todo:
            with torch.inference_mode():
                whole, owners = arranged(spans)
                logits = self.runner.forward(whole)
                for row, index in zip(logits, owners, strict=True):
                    self._draw(row, todo[index][0])
            todo = [todo[index] for index in owners if 0 < len(todo[index][0].draft) < todo[index][1]]
            spans = [
                (Span([seq.draft[-1]], len(seq.tokens) + len(seq.draft) - 1, seq.block_table), 1) for seq, _ in todo
            ]

    def learn(self, seq: Sequence, accepted: int) -> None:
        """See Guesser. The last guess has not been through the draft model; all before it that hold have."""
        self._ahead[seq.id].computed += min(accepted, len(seq.draft) - 1)

    def keep(self, ids: set[int]) -> None:
        """See Guesser."""
        self._ahead = {id_: ahead for id_, ahead in self._ahead.items() if id_ in ids}

    def _room(self, seq: Sequence, most: int) -> int:
        """How many guesses there are positions and blocks for; blocks are taken, for the target wants them next."""
        most = min(most, self.limit - len(seq.tokens))
        while most > 0 and not self.blocks.grow(seq, seq.uncomputed_tokens + most):
            most //= 2
        return max(0, most)

    def _state(self, seq: Sequence) -> Ahead:
        """How far we are; with blocks that are new to us as far as we have filled them for others."""
        state = self._ahead.get(seq.id)
        if state is None or state.preemptions != seq.preemptions:
            full = 0
            for block, hash_ in zip(seq.block_table, seq.block_hashes, strict=False):
                if self._filled.get(block) != hash_:
                    break
                full += 1
            state = self._ahead[seq.id] = Ahead(seq.preemptions, full * self.blocks.block_size)
        # The last token is computed in any case, for its logits: the target may not have had room for it last time.
        state.computed = min(state.computed, len(seq.tokens) - 1)
        return state

    def _mark(self, seq: Sequence, computed: int) -> None:
        """Blocks that are full and whose content has a name."""
        for at in range(min(computed // self.blocks.block_size, len(seq.block_hashes)) - 1, -1, -1):
            if self._filled.get(seq.block_table[at]) == seq.block_hashes[at]:
                return
            self._filled[seq.block_table[at]] = seq.block_hashes[at]

    def _draw(self, row: torch.Tensor, seq: Sequence) -> None:
        """One more guess. Nothing is guessed from numbers that are none."""
        if not bool(row.amax().isfinite()):
            return
        if seq.sampling.temperature < GREEDY_BELOW or seq.sampling.repeatable:
            seq.draft.append(int(row.argmax()))
            return
        odds = odds_of(row, seq.sampling)
        seq.draft.append(pick(odds, uniform(seq.sampling.seed ^ DRAWN, seq.output_tokens + len(seq.draft))))
        seq.odds.append(odds)


def build_draft(target: ModelRunner, settings: Settings, blocks: BlockManager) -> DraftModel:
    """Load the draft model beside the target, and see what it costs."""
    draft = DraftModel(target, settings, blocks)
    draft.measure(target, settings.draft_tokens)
    return draft


def _width(config: ModelConfig) -> int:
    """Numbers that one token takes in the cache."""
    return 2 * config.layers * config.kv_heads * config.head_dim
