"""What each scheme costs in accuracy: perplexity on a fixed text, and how far greedy answers stay those of float32."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from local_backend.config import Settings
from local_backend.messages import Sampling
from local_backend.model_runner import ModelRunner
from local_backend.scheduler import Chunk, Step
from local_backend.sequence import Sequence
from local_backend.tokenizer import Tokenizer

TEXT = Path(__file__).resolve().parents[3] / "LICENSE"  # fixed, plain English, in every checkout
WINDOW = 512
WINDOWS = 2
PIECE = 32
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Water boils at 100 degrees",
    "The three laws of robotics are:\n1.",
    "Once upon a time, in 1923, there",
    "To make a cup of tea, first",
    "SELECT name FROM customers WHERE",
    "The theory of relativity says that",
)
ANSWER = 24
SCHEMES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32", "kernels": "plain"},
    "none": {"quantization": "none"},
    "int16": {"quantization": "int16"},
    "int8wo": {"quantization": "int8wo"},
    "int4wo": {"quantization": "int4wo"},
    "fp8": {"quantization": "fp8"},
    "int8": {"quantization": "int8"},
    "none, kv int8": {"quantization": "none", "kv_dtype": "int8"},
    "none, kv fp8": {"quantization": "none", "kv_dtype": "fp8"},
}


def table(folder: Path) -> dict[str, dict[str, Any]]:
    """One row a scheme. same_next: after how many positions of the text the likeliest token is that of float32;
    same_answer: the share of float32's greedy tokens given before the first that differs, after which all may."""
    tokenizer = Tokenizer(folder)
    ids = tokenizer.encode(TEXT.read_text(), special=False)[: WINDOW * WINDOWS]
    prompts = [tokenizer.encode(prompt, special=False) for prompt in PROMPTS]
    rows: dict[str, dict[str, Any]] = {}
    wanted: list[list[int]] = []
    likeliest = torch.empty(0)
    for name, changes in SCHEMES.items():
        settings = Settings(model=str(folder), data=str(folder.parent), device="cpu", max_model_len=1024, **changes)
        runner = ModelRunner(folder, settings)
        answers = greedy(runner, prompts)
        wanted = wanted or answers
        same = sum(_agreement(a, b) for a, b in zip(answers, wanted, strict=True)) / (len(prompts) * ANSWER)
        perplexity, found = read(runner, ids)
        likeliest = likeliest if len(likeliest) else found
        rows[name] = {
            "perplexity": round(perplexity, 2),
            "same_next": round(float((found == likeliest).float().mean()), 3),
            "same_answer": round(same, 3),
        }
    return rows


def read(runner: ModelRunner, ids: list[int]) -> tuple[float, torch.Tensor]:
    """Perplexity, exp of the mean surprise at each next token, and the likeliest token after each.

    In windows side by side, in pieces of 32 tokens: later ones read keys and values from the cache, as in serving."""
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]
    pages = -(-WINDOW // runner.cache.block_size)
    sequences = [_sequence(window, at * pages, pages, 1) for at, window in enumerate(windows)]
    surprise, found = 0.0, []
    for start in range(0, WINDOW, PIECE):
        logits = runner.all_logits(Step(10_000, [Chunk(seq, start, PIECE) for seq in sequences]))
        logits = logits.view(len(windows), PIECE, -1)[:, : WINDOW - 1 - start]
        targets = torch.tensor([window[start + 1 : start + 1 + PIECE] for window in windows])
        surprise += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
        found.append(logits.argmax(-1))
    return math.exp(surprise / (len(windows) * (WINDOW - 1))), torch.cat(found, dim=1)


def greedy(runner: ModelRunner, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy continuations, all in one batch."""
    pages = -(-(max(map(len, prompts)) + ANSWER) // runner.cache.block_size)
    sequences = [_sequence(prompt, at * pages, pages, ANSWER) for at, prompt in enumerate(prompts)]
    for _ in range(ANSWER):
        step = Step(10_000, [Chunk(seq, seq.computed, len(seq.tokens) - seq.computed) for seq in sequences])
        for seq, sampled in zip(sequences, runner.run(step), strict=True):
            assert sampled is not None
            assert sampled.token is not None
            seq.computed = len(seq.tokens)
            seq.tokens.append(sampled.token)
    return [seq.tokens[seq.prompt_tokens :] for seq in sequences]


def _sequence(tokens: list[int], first: int, pages: int, max_tokens: int) -> Sequence:
    seq = Sequence(first, list(tokens), Sampling(max_tokens=max_tokens, temperature=0.0))
    seq.block_table = list(range(first, first + pages))
    return seq


def _agreement(answer: list[int], wanted: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(answer, wanted, strict=True)) if a != b), len(wanted))
