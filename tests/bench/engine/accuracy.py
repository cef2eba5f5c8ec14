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
WINDOWS = 4
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
    "float16": {"quantization": "none"},
    "int8wo": {"quantization": "int8wo"},
    "int4wo": {"quantization": "int4wo"},
    "fp8": {"quantization": "fp8"},
    "int8": {"quantization": "int8"},
    "float16, kv int8": {"quantization": "none", "kv_dtype": "int8"},
    "float16, kv fp8": {"quantization": "none", "kv_dtype": "fp8"},
}


def table(folder: Path) -> dict[str, dict[str, Any]]:
    """One row a scheme. Agreement: the share of float32's greedy tokens given before the first that differs."""
    tokenizer = Tokenizer(folder)
    ids = tokenizer.encode(TEXT.read_text(), special=False)[: WINDOW * WINDOWS]
    prompts = [tokenizer.encode(prompt, special=False) for prompt in PROMPTS]
    rows: dict[str, dict[str, Any]] = {}
    wanted: list[list[int]] = []
    for name, changes in SCHEMES.items():
        settings = Settings(model=str(folder), data=str(folder.parent), device="cpu", max_model_len=1024, **changes)
        runner = ModelRunner(folder, settings)
        answers = [answer(runner, prompt) for prompt in prompts]
        wanted = wanted or answers
        same = sum(_agreement(a, b) for a, b in zip(answers, wanted, strict=True)) / (len(prompts) * ANSWER)
        rows[name] = {"perplexity": round(perplexity(runner, ids), 2), "greedy_agreement": round(same, 3)}
    return rows


def perplexity(runner: ModelRunner, ids: list[int]) -> float:
    """exp of the mean surprise at each next token, in windows; keys and values pass through the cache as in serving."""
    surprise, count = 0.0, 0
    for start in range(0, len(ids), WINDOW):
        window = ids[start : start + WINDOW]
        logits = every_logit(runner, window)
        targets = torch.tensor(window[1:])
        surprise += float(torch.nn.functional.cross_entropy(logits[:-1], targets, reduction="sum"))
        count += len(targets)
    return math.exp(surprise / count)


def every_logit(runner: ModelRunner, tokens: list[int]) -> torch.Tensor:
    """Logits after each token of a sequence, fed in pieces of 32 so that later ones read the cache."""
    out = []
    seq = Sequence(0, list(tokens), Sampling(max_tokens=1))
    seq.block_table = list(range(-(-len(tokens) // runner.cache.block_size)))
    for start in range(0, len(tokens), 32):
        chunk = Chunk(seq, start, min(32, len(tokens) - start))
        out.append(runner.all_logits(chunk))
    return torch.cat(out)


def answer(runner: ModelRunner, prompt: list[int]) -> list[int]:
    """Greedy continuation, one sequence alone."""
    seq = Sequence(0, list(prompt), Sampling(max_tokens=ANSWER, temperature=0.0))
    seq.block_table = list(range(-(-(len(prompt) + ANSWER) // runner.cache.block_size)))
    computed = 0
    while seq.output_tokens < ANSWER:
        step = Step(10_000, [Chunk(seq, computed, len(seq.tokens) - computed)])
        computed = len(seq.tokens)
        (sampled,) = runner.run(step)
        assert sampled is not None
        assert sampled.token is not None
        seq.tokens.append(sampled.token)
    return seq.tokens[len(prompt) :]


def _agreement(answer_: list[int], wanted: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(answer_, wanted, strict=True)) if a != b), len(wanted))
