"""Guesses the next tokens from the sequence's own text, so that one step may yield several. No torch here.

A guess is checked by the model itself: each guessed position is sampled as it would have been, with its own chance, and
the guess counts as long as it is what was sampled. So what comes out has exactly the distribution it has without
guessing; with a deterministic guess that is also all that rejection sampling could accept. Source: Leviathan et al.,
"Fast Inference from Transformers via Speculative Decoding", 2023; prompt lookup: Saxena, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from local_backend.sequence import Sequence

LONGEST_KEY, SHORTEST_KEY = 4, 2  # tokens of the end that are looked up, the longer first
PAYS_FROM = 0.4  # of guesses accepted; below, a step costs more than the tokens it wins
REST, LONGEST_REST = 8, 128  # steps without guessing after it did not pay; doubled each time


@dataclass(slots=True)
class Lookup:
    """Where each short run of a sequence's tokens was last seen, and how guessing has fared with it."""

    places: dict[tuple[int, ...], int] = field(default_factory=dict)  # run -> index of the token after it
    indexed: int = 0
    length: int = 4  # tokens to guess; follows what is accepted
    share: float = 1.0  # of guesses accepted, recent ones weigh more
    rest: int = 0
    next_rest: int = REST

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
        return tokens[found : found + min(self.length, most)] if found else []

    def learn(self, proposed: int, accepted: int) -> None:
        """Guess longer after success, shorter after failure, and not at all for a while when it does not pay."""
        self.share = 0.8 * self.share + 0.2 * accepted / proposed
        self.length = min(2 * self.length, 16) if accepted == proposed else max(1, accepted + 1)
        if self.share < PAYS_FROM:
            self.rest, self.next_rest = self.next_rest, min(2 * self.next_rest, LONGEST_REST)
            self.share = PAYS_FROM + 0.1  # one more try after the rest
        elif self.share > 2 * PAYS_FROM:
            self.next_rest = REST


class Speculation:
    """Guesses for all running sequences; remembers each one's text and luck until it is gone."""

    def __init__(self, *, most: int, max_batch: int) -> None:
        """`most` tokens guessed at once; none with more than `max_batch` sequences, when the device is busy anyway."""
        self.most, self.max_batch = most, max_batch
        self.proposed = 0
        self.accepted = 0
        self._lookups: dict[int, Lookup] = {}

    def propose(self, running: list[Sequence], max_model_len: int) -> None:
        """Set `draft` of each sequence that may be guessed ahead; the scheduler takes what fits."""
        few = len(running) <= self.max_batch
        for seq in running:
            seq.draft = []
            most = min(self.most, max_model_len - len(seq.tokens) - 1, seq.sampling.max_tokens - seq.output_tokens - 1)
            # A grammar or a penalty depends on each token before: such rows are taken one by one.
            if not few or most < 1 or seq.uncomputed_tokens != 1 or seq.constraint or seq.sampling.edits_logits:
                continue
            lookup = self._lookups.setdefault(seq.id, Lookup())
            if lookup.rest:
                lookup.rest -= 1
                continue
            seq.draft = lookup.guess(seq.tokens, most)
        if len(self._lookups) > 2 * len(running) + 16:
            here = {seq.id for seq in running}
            self._lookups = {id_: lookup for id_, lookup in self._lookups.items() if id_ in here}

    def learn(self, seq: Sequence, proposed: int, accepted: int) -> None:
        """Book how a guess fared."""
        self.proposed += proposed
        self.accepted += accepted
        self._lookups[seq.id].learn(proposed, accepted)
