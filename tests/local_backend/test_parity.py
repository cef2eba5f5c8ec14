"""Our model against transformers' on the same weights: logits on tiny random Llamas, greedy text on SmolLM2."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from local_backend.engine import Engine
from local_backend.messages import Sampling
from local_backend.model_runner import ModelRunner
from local_backend.quantization.run import HalfWeightLinear
from local_backend.scheduler import Step
from local_backend.sequence import Sequence
from local_backend.tokenizer import Tokenizer
from tests.local_backend.support import greedy, make_engine, make_tiny_model, run_all

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time, in 1923, there",
    "日本の首都は",
    "1, 2, 3, 5, 8,",
    "Water boils at 100",
    "SELECT name FROM",
    "The three laws of robotics are:\n1.",
    "🙂 means",
]

VARIANTS: dict[str, dict[str, Any]] = {
    "grouped queries, tied": {},
    "one kv head, untied": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "no grouping": {"num_key_value_heads": 6},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 16},
    "llama3 scaling": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "linear scaling": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
}


def sequences(lengths: list[int], seed: int = 0) -> list[Sequence]:
    chance = random.Random(seed)
    return [
        Sequence(i, [chance.randrange(3, 259) for _ in range(n)], Sampling(max_tokens=8)) for i, n in enumerate(lengths)
    ]


def reference(model: LlamaForCausalLM, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
        return logits


def compute(engine: Engine, batch: list[tuple[Sequence, int]]) -> torch.Tensor:
    """Run the next tokens of each sequence in one step. Returns: logits of those that reach their end."""
    step = Step(10_000)
    for seq, count in batch:
        assert engine.scheduler.blocks.grow(seq, count)
        step.add(seq, count)
    assert isinstance(engine.runner, ModelRunner)
    logits = engine.runner.logits(step)
    for chunk in step.chunks:
        engine.scheduler.blocks.commit(chunk.seq, chunk.end)
    return logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers_over_prefill_decode_and_mixed_steps(variant: str, tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path, seed=3, **VARIANTS[variant])
    engine = make_engine(tmp_path, block_size=4, prefix_caching=False)
    seqs = sequences([1, 2, 3, 4, 5, 17, 40, 130])
    logits = compute(engine, [(s, len(s.tokens)) for s in seqs])
    for row, seq in zip(logits, seqs, strict=True):
        torch.testing.assert_close(row, reference(model, seq.tokens)[-1], atol=1e-4, rtol=1e-4)
    newcomer = sequences([23], seed=9)[0]
    for seq in seqs:
        seq.tokens.append(5)
    mixed: list[tuple[Sequence, int]] = [(seqs[0], 1), (newcomer, 23), *((s, 1) for s in seqs[1:])]
    for row, (seq, _) in zip(compute(engine, mixed), mixed, strict=True):
        torch.testing.assert_close(row, reference(model, seq.tokens)[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_every_chunk_size_gives_the_same_logits(tiny: Path, block_size: int) -> None:
    engine = make_engine(tiny, block_size=block_size, prefix_caching=False)
    (whole,) = sequences([37])
    want = compute(engine, [(whole, 37)])
    for size in range(1, 37):
        seq = Sequence(size, list(whole.tokens), Sampling(max_tokens=1))
        for start in range(0, 37, size):
            got = compute(engine, [(seq, min(size, 37 - start))])
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        engine.scheduler.blocks.release(seq)


def test_prefix_hit_preemption_and_budget_change_no_token(tiny: Path) -> None:
    chance = random.Random(1)
    shared = [chance.randrange(3, 259) for _ in range(40)]
    prompts = [[*shared[: chance.randrange(1, 40)], chance.randrange(3, 259)] for _ in range(12)]
    alone = [run_all(make_engine(tiny, prefix_caching=False), [p], greedy(20))[0] for p in prompts]
    for budget, blocks, caching in [(512, 400, True), (7, 400, True), (64, 20, True), (64, 20, False), (1, 18, True)]:
        engine = make_engine(tiny, token_budget=budget, blocks=blocks, block_size=4, prefix_caching=caching)
        assert run_all(engine, prompts, greedy(20)) == alone, (budget, blocks, caching)
        assert (engine.scheduler.preemptions > 0) == (blocks == 20)
        assert run_all(engine, prompts, greedy(20)) == alone, "and again, with a warm cache"
        assert (engine.scheduler.blocks.hit_tokens > 0) == caching


@pytest.mark.parametrize("kv_dtype", ["auto", "int8", "fp8"])
def test_prefixes_come_back_from_host_memory_as_they_were(tiny: Path, kv_dtype: str) -> None:
    chance = random.Random(2)
    prompts = [[chance.randrange(3, 259) for _ in range(41)] for _ in range(3)]
    # A prompt that comes from a cache of fewer bits may be answered otherwise than when it was computed.
    roomy = make_engine(tiny, block_size=4, kv_dtype=kv_dtype)
    wanted = [[run_all(roomy, [prompt], greedy(12)) for prompt in prompts] for _ in range(2)]
    engine = make_engine(tiny, blocks=16, block_size=4, max_model_len=60, kv_dtype=kv_dtype, kv_host_bytes=2**20)
    assert [[run_all(engine, [prompt], greedy(12)) for prompt in prompts] for _ in range(2)] == wanted
    # Two of three prompts have left the device when they are asked for again: all came back but their last token.
    assert engine.scheduler.blocks.hit_tokens == 3 * 40


def test_greedy_tokens_of_smollm2_equal_transformers(smollm2: Path) -> None:
    tokenizer = Tokenizer(smollm2)
    prompts = [tokenizer.encode(text, special=True) for text in PROMPTS]
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    outputs = run_all(make_engine(smollm2), prompts, greedy(40, stop_token_ids=(2,)))
    for text, prompt, output in zip(PROMPTS, prompts, outputs, strict=True):
        # If after each of our tokens theirs is the same one, then their greedy output is ours: one pass instead of 40.
        likeliest = reference(model, [*prompt, *output]).argmax(dim=-1).tolist()
        assert output == likeliest[len(prompt) - 1 : -1], text
        assert len(output) == 40 or output[-1] == 2
    assert "Paris" in tokenizer.decode(outputs[0])
    with torch.inference_mode():
        whole = model.generate(torch.tensor([prompts[2]]), max_new_tokens=12, do_sample=False, pad_token_id=2)
    assert outputs[2][:12] == whole[0].tolist()[len(prompts[2]) :]


def test_fifty_prompts_in_one_batch_give_the_same_text_as_alone(smollm2: Path) -> None:
    tokenizer = Tokenizer(smollm2)
    engine = make_engine(smollm2)
    prompts = [tokenizer.encode(f"{text} {n}", special=True) for n in range(5) for text in PROMPTS]
    alone = [run_all(engine, [p], greedy(6))[0] for p in prompts]
    assert run_all(make_engine(smollm2), prompts, greedy(6)) == alone


@pytest.mark.skipif(not HalfWeightLinear.available(), reason="this build of torch has no fbgemm: no float16 weights")
def test_half_weights_are_lossless_where_the_checkpoint_is_half(smollm2: Path) -> None:
    tokenizer = Tokenizer(smollm2)
    prompts = [tokenizer.encode(text, special=True) for text in PROMPTS]
    full, half = (run_all(make_engine(smollm2, dtype=d), prompts, greedy(12)) for d in ("float32", "float16"))
    assert full == half


def test_cuda_gives_the_same_greedy_tokens(tiny: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("NO GPU HERE: the CUDA path of the engine is NOT tested by this run")
    prompts = [s.tokens for s in sequences([1, 5, 17, 100])]
    want = run_all(make_engine(tiny), prompts, greedy(30))
    assert run_all(make_engine(tiny, device="cuda", token_budget=16), prompts, greedy(30)) == want
