"""Logits -> one token a row. What a row gets depends on its own logits, parameters and seed alone, never on the batch.

Chance comes from a hash of (seed, position), not from a generator that others advance: the same seed gives the same
tokens alone, in a crowd, and after a preemption.
"""

from __future__ import annotations

import struct
from collections import Counter
from hashlib import blake2b

import torch
from msgspec import Struct

from local_backend.messages import Sampling, TokenLogprobs
from local_backend.sequence import Sequence

MINUS_INFINITY = float("-inf")
GREEDY_BELOW = 1e-5  # a lower temperature overflows float32 before it changes the choice
DRAWN, TESTED = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
"""Set apart, by exclusive or with the seed, the chances of a draft model's guess and of its test."""
CANDIDATES = 1024  # most nuclei are far smaller; a full sort of 49k logits takes 1.4 ms a row, this 0.2 (2026-11)


class Sampled(Struct, frozen=True, gc=False):
    """The next token of one sequence; token None if its logits were not numbers."""

    token: int | None
    logprobs: TokenLogprobs | None = None
    more: tuple[Sampled, ...] = ()  # what follows it in the same step: guesses that held, and the token after them


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing else."""
    digest = blake2b(struct.pack("<QQ", seed & (2**64 - 1), position), digest_size=8).digest()
    return int(struct.unpack("<Q", digest)[0] >> 11) / 2.0**53


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[Sampled]:
    """Choose a token for each row of float32 logits (rows, vocab). Changes the logits."""
    if not sequences:
        return []
    sane = logits.amax(dim=-1).isfinite().tolist()
    logprobs = _logprobs_base(logits, sequences)
    for row, seq in enumerate(sequences):
        if seq.sampling.edits_logits:
            edit_logits(logits[row], seq)
        if seq.constraint is not None:
            seq.constraint.restrict(logits[row])
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    rows = [i for i, s in enumerate(sequences) if s.sampling.temperature >= GREEDY_BELOW and sane[i]]
    if rows:
        for row, token in zip(rows, _draw(logits[rows], [sequences[i] for i in rows]), strict=True):
            tokens[row] = token
    return [
        Sampled(token, _logprobs(logprobs.get(row), token, sequences[row].sampling)) if sane[row] else Sampled(None)
        for row, token in enumerate(tokens)
    ]


def edit_logits(row: torch.Tensor, seq: Sequence) -> None:
    """Penalties and bias, in place, in vLLM's order. Repetition counts the prompt, the other two the output alone.

    Source: vLLM sampling_params and OpenAI's chat reference (frequency and presence penalties), read 2026-11."""
    s = seq.sampling
    if s.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(seq.tokens)), device=row.device)
        values = row[seen]
        row[seen] = torch.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
    if (s.frequency_penalty or s.presence_penalty) and seq.output_tokens:
        counts = Counter(seq.tokens[seq.prompt_tokens :])
        seen = torch.tensor(list(counts), device=row.device)
        often = torch.tensor(list(counts.values()), device=row.device, dtype=row.dtype)
        row[seen] -= s.frequency_penalty * often + s.presence_penalty
    for token, bias in s.logit_bias.items():
        row[token] += bias
    if seq.output_tokens < s.min_tokens:
        row[[token for token in s.stop_token_ids if token < len(row)]] = MINUS_INFINITY


def _draw(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    """One token a row, all with temperature above zero."""
    temperature = torch.tensor([s.sampling.temperature for s in sequences], device=logits.device)
    scaled = logits / temperature.unsqueeze(1)
    chance = torch.tensor(
        [uniform(s.sampling.seed, s.output_tokens) for s in sequences], device=logits.device, dtype=torch.float64
    )
    tokens = [0] * len(sequences)
    cut = [i for i, s in enumerate(sequences) if s.sampling.top_k or s.sampling.top_p < 1.0]
    whole = [i for i in range(len(sequences)) if i not in set(cut)]
    if whole:
        probs = torch.softmax(scaled[whole], dim=-1)
        floor = torch.tensor([sequences[i].sampling.min_p for i in whole], device=logits.device)
        probs.masked_fill_(probs < floor.unsqueeze(1) * probs.amax(dim=-1, keepdim=True), 0.0)
        for i, token in zip(whole, _invert(probs, chance[whole]).tolist(), strict=True):
            tokens[i] = token
    if cut:
        for i, token in zip(
            cut, _draw_cut(scaled[cut], chance[cut], [sequences[i].sampling for i in cut]), strict=True
        ):
            tokens[i] = token
    return tokens


def _draw_cut(scaled: torch.Tensor, chance: torch.Tensor, params: list[Sampling]) -> list[int]:
    """Rows with top-k or top-p: look among the likeliest; a row whose nucleus is wider is sorted whole."""
    values, likeliest = torch.topk(scaled, min(CANDIDATES, scaled.shape[-1]), dim=-1)
    tokens: list[int] = []
    for i, s in enumerate(params):
        kept, ids = _nucleus(values[i], scaled[i], s)
        ids = likeliest[i] if ids is None else ids
        tokens.append(int(ids[_invert(kept.unsqueeze(0), chance[i : i + 1])[0]]))
    return tokens


def _nucleus(values: torch.Tensor, scaled: torch.Tensor, s: Sampling) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What top-k, min-p and top-p leave of one row, descending; `values` are its likeliest logits.

    Returns: probabilities, not normalised, and the ids in their order if the row had to be sorted whole."""
    weight = torch.logsumexp(scaled, dim=-1)
    probs, ids = (values - weight).exp(), None
    if not (float(probs.sum()) >= s.top_p or 0 < s.top_k <= len(probs)):
        values, ids = torch.sort(scaled, descending=True)
        probs = (values - weight).exp()
    return _cut(probs, s), ids


def odds_of(row: torch.Tensor, s: Sampling) -> torch.Tensor:
    """The distribution (vocab,) that a row of logits is sampled from, in float64, as `sample` would."""
    scaled = row / s.temperature
    if not (s.top_k or s.top_p < 1.0):
        odds = torch.softmax(scaled, dim=-1).double()
        odds.masked_fill_(odds < s.min_p * odds.amax(), 0.0)
    else:
        values, likeliest = torch.topk(scaled, min(CANDIDATES, len(scaled)))
        kept, ids = _nucleus(values, scaled, s)
        ids = likeliest if ids is None else ids
        odds = torch.zeros(len(row), dtype=torch.float64, device=row.device)
        odds[ids[: len(kept)]] = kept.double()
    return odds / odds.sum()


def pick(odds: torch.Tensor, chance: float) -> int:
    """The token of a distribution (vocab,) at which its running sum passes `chance`."""
    return int(_invert(odds.unsqueeze(0), torch.tensor([chance], dtype=torch.float64, device=odds.device))[0])


def accept(logits: torch.Tensor, seq: Sequence, draft: tuple[int, ...]) -> Sampled:
    """Rejection sampling: guesses drawn from `seq.odds` become a draw from the model's own distribution.

    logits: (guesses + 1, vocab), each row after the guesses before it. A guess x drawn from q is kept with probability
    min(1, p(x) / q(x)); else the token is drawn from what p has more than q, and the rest is dropped. When all are
    kept, the last row gives one more. Source: Leviathan et al., 2023, algorithm 1."""
    s, at = seq.sampling, seq.output_tokens
    base = _logprobs_base(logits, [seq] * len(logits))
    out: list[Sampled] = []
    for nth, row in enumerate(logits):
        if not bool(row.amax().isfinite()):
            return Sampled(None) if not out else _chained(out)
        odds = odds_of(row, s)
        if nth < len(draft):
            guess, drawn_from = draft[nth], seq.odds[nth]
            kept = uniform(s.seed ^ TESTED, at + nth) * float(drawn_from[guess]) < float(odds[guess])
            if kept:
                out.append(Sampled(guess, _logprobs(base.get(nth), guess, s)))
                continue
            more = (odds - drawn_from).clamp_(min=0.0)
            odds = more if float(more.sum()) > 0 else odds  # equal but for rounding: then p is as good
        token = pick(odds, uniform(s.seed, at + nth))
        out.append(Sampled(token, _logprobs(base.get(nth), token, s)))
        break
    return _chained(out)


def _chained(found: list[Sampled]) -> Sampled:
    return Sampled(found[0].token, found[0].logprobs, tuple(found[1:]))


def _cut(probs: torch.Tensor, s: Sampling) -> torch.Tensor:
    """Descending probabilities, with what top-k, min-p and top-p rule out taken off the end. Never empty."""
    if s.top_k:
        probs = probs[: s.top_k]
    if s.min_p:
        probs = probs[probs >= s.min_p * probs[0]]
    if s.top_p < 1.0:
        cumulative = probs.cumsum(0)
        goal = s.top_p * (cumulative[-1] if s.top_k or s.min_p else 1.0)  # top-p is a share of what the others left
        probs = probs[: int((cumulative - probs < goal).sum().clamp(min=1))]
    return probs


def _invert(weights: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """Index in each row of unnormalised weights (rows, n) at which its running sum passes chance * total."""
    cumulative = weights.double().cumsum(dim=-1)
    index = torch.searchsorted(cumulative, (chance * cumulative[:, -1]).unsqueeze(1), right=True).squeeze(1)
    return index.clamp(max=weights.shape[-1] - 1)


def _logprobs_base(logits: torch.Tensor, sequences: list[Sequence]) -> dict[int, torch.Tensor]:
    """Log-softmax of the rows whose client wants logprobs, taken before anything is edited."""
    rows = [i for i, s in enumerate(sequences) if s.sampling.logprobs is not None]
    return dict(zip(rows, torch.log_softmax(logits[rows], dim=-1), strict=True)) if rows else {}


def _logprobs(base: torch.Tensor | None, token: int, s: Sampling) -> TokenLogprobs | None:
    if base is None:
        return None
    values, ids = torch.topk(base, s.logprobs or 0)
    return TokenLogprobs(float(base[token]), ids.tolist(), values.tolist())
