"""Guesses next tokens, so that one step may yield several: who guesses, how many, and when it does not pay. No torch.

The model itself checks each guess, so what comes out has exactly the distribution it has without guessing. Two forms:
a guess that is certain (of a `Lookup`, or greedy) counts as long as it is what was sampled at its place; one drawn from
a draft model's distribution is accepted or drawn anew by rejection sampling (`sampler.accept`). Sources: Leviathan et
al., "Fast Inference from Transformers via Speculative Decoding", 2023; prompt lookup: Saxena, 2023.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from local_backend.sequence import Sequence

LONGEST_KEY, SHORTEST_KEY = 4, 2  # tokens of the end that are looked up, the longer first
LOOKUP_PAYS_FROM = 0.4  # of guesses accepted; below, a step costs more than the tokens it wins
MARGIN = 0.1  # above what pays: with so little luck guessing starts again after a rest
REST, LONGEST_REST = 8, 128  # steps without guessing after it did not pay; doubled each time


@dataclass(slots=True)
class Luck:
    """How guessing has fared with one sequence."""

    length: int = 4  # tokens to guess; follows what is accepted
    share: float = 1.0  # of guesses accepted, recent ones weigh more
    rest: int = 0
    next_rest: int = REST

    def learn(self, proposed: int, accepted: int, pays_from: float) -> None:
        """Guess longer after success, shorter after failure, and not at all for a while when it does not pay."""
        self.share = 0.8 * self.share + 0.2 * accepted / proposed
        self.length = min(2 * self.length, 16) if accepted == proposed else max(1, accepted + 1)
        if self.share < pays_from:
            self.rest, self.next_rest = self.next_rest, min(2 * self.next_rest, LONGEST_REST)
            self.share = pays_from + MARGIN
        elif self.share > (1 + pays_from) / 2:
            self.next_rest = REST


class Guesser(Protocol):
    """Where guesses come from."""

    @property
    def pays_from(self) -> float:
        """The share of guesses that must hold for guessing to be worth its time."""
        ...

    def guess(self, wanted: list[tuple[Sequence, int]]) -> None:
        """Set `draft` of each sequence, at most so many tokens; and `odds`, if they were drawn by chance."""
        ...

    def learn(self, seq: Sequence, accepted: int) -> None:
        """So many of the sequence's last guesses are part of it now."""
        ...

    def keep(self, ids: set[int]) -> None:
        """Only these sequences are still here."""
        ...


@dataclass(slots=True)
class Lookup:
    """Where each short run of a sequence's tokens was last seen."""

    places: dict[tuple[int, ...], int] = field(default_factory=dict)  # run -> index of the token after it
    indexed: int = 0

    def guess(self, tokens: list[int], most: int) -> list[int]:
        """What followed the longest end of `tokens` that was seen before; empty if none was."""
        # All runs but the end itself, which would find itself.
        for end in range(max(self.indexed, SHORTEST_KEY), len(tokens)):
            for size in range(SHORTEST_KEY, min(LONGEST_KEY, end) + 1):
                self.places[tuple(tokens[end - size : end])] = end
        self.indexed = len(tokens)
        found = 0
        for size in range(LONGEST_KEY, SHORTEST_KEY - 1, -1):
            found = self.places.get(tuple(tokens[-size:]), 0)
            if found:
                break
        return tokens[found : found + most] if found else []


class Lookups:
    """Guesses from each sequence's own text, prompt included: answers that quote, edit and repeat."""

    pays_from = LOOKUP_PAYS_FROM

    def __init__(self) -> None:
        self._lookups: dict[int, Lookup] = {}

    def guess(self, wanted: list[tuple[Sequence, int]]) -> None:
        """See Guesser."""
        for seq, most in wanted:
            seq.draft = self._lookups.setdefault(seq.id, Lookup()).guess(seq.tokens, most)

    def learn(self, seq: Sequence, accepted: int) -> None:
        """See Guesser."""

    def keep(self, ids: set[int]) -> None:
        """See Guesser."""
        self._lookups = {id_: lookup for id_, lookup in self._lookups.items() if id_ in ids}


class Speculation:
    """Asks for guesses where they may pay; remembers each sequence's luck until it is gone."""

    def __init__(self, guesser: Guesser, *, most: int, max_batch: int) -> None:
        """`most` tokens guessed at once; none with more than `max_batch` sequences, when the device is busy anyway."""
        self.guesser = guesser
        self.most, self.max_batch = most, max_batch
        self.proposed = 0
        self.accepted = 0
        self._luck: dict[int, Luck] = {}

    def propose(self, running: list[Sequence], max_model_len: int) -> None:
        """Set `draft` of each sequence that may be guessed ahead; the scheduler takes what fits."""
        few = len(running) <= self.max_batch
        wanted: list[tuple[Sequence, int]] = []
        for seq in running:
            seq.draft, seq.odds = [], []
            most = min(self.most, max_model_len - len(seq.tokens) - 1, seq.sampling.max_tokens - seq.output_tokens - 1)
            # A grammar or a penalty depends on each token before: such rows are taken one by one.
            if not few or most < 1 or seq.uncomputed_tokens != 1 or seq.constraint or seq.sampling.edits_logits:
                continue
            luck = self._luck.setdefault(seq.id, Luck())
            if luck.rest:
                luck.rest -= 1
                continue
            wanted.append((seq, min(luck.length, most)))
        if wanted:
            self.guesser.guess(wanted)
        if len(self._luck) > 2 * len(running) + 16:
            self._forget(seq.id for seq in running)

    def learn(self, seq: Sequence, proposed: int, accepted: int) -> None:
        """Book how a guess fared."""
        self.proposed += proposed
        self.accepted += accepted
        self._luck[seq.id].learn(proposed, accepted, self.guesser.pays_from)
        self.guesser.learn(seq, accepted)

    def _forget(self, here: Iterable[int]) -> None:
        ids = set(here)
        self._luck = {id_: luck for id_, luck in self._luck.items() if id_ in ids}
        self.guesser.keep(ids)
