"""Every model family against transformers on tiny random weights: prefill, decode, mixed batches, chunks, windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from local_backend.engine import Engine
from local_backend.errors import ModelUnavailable
from local_backend.messages import Sampling
from local_backend.model_config import FAMILIES, read_model_config
from local_backend.models import CLASSES
from local_backend.sequence import Sequence
from tests.local_backend.support import greedy, make_byte_tokenizer, make_engine, run_all
from tests.local_backend.test_parity import compute, sequences

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * n for n in range(4)],
    "long_factor": [2.0 + 0.5 * n for n in range(4)],
    "original_max_position_embeddings": 64,
}
LOCAL = {
    "full_attention": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 2.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
EXPERTS = {"num_experts_per_tok": 2, "intermediate_size": 40}

# Case: family, changes to the config.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral, window": ("Mistral", {"sliding_window": 9}),
    "mistral, no window": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "llama, yarn": ("Llama", {"rope_parameters": YARN}),
    "llama, yarn untruncated": (
        "Llama",
        {"rope_parameters": YARN | {"truncate": False, "mscale": 0.7, "mscale_all_dim": 0.4, "beta_fast": 16}},
    ),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, windows above a layer": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3, yarn": ("Qwen3", {"head_dim": 16, "rope_parameters": YARN}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 20}),
    "gemma2, hard caps": (
        "Gemma2",
        {"head_dim": 8, "sliding_window": 30, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3",
        {"head_dim": 16, "sliding_window": 9, "rope_parameters": LOCAL, "layer_types": ALTERNATING},
    ),
    "phi3": ("Phi3", {"sliding_window": 50}),
    "phi3, part of each head": ("Phi3", {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
    "phi3, longrope": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
    "mixtral": ("Mixtral", EXPERTS | {"num_local_experts": 4}),
    "qwen3 moe": (
        "Qwen3Moe",
        EXPERTS | {"num_experts": 6, "moe_intermediate_size": 24, "head_dim": 8, "norm_topk_prob": True},
    ),
    "qwen3 moe, a dense layer": (
        "Qwen3Moe",
        EXPERTS | {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8, "mlp_only_layers": [1]},
    ),
}


def make(folder: Path, family: str, changes: dict[str, Any]) -> PreTrainedModel:
    """A random model in `folder`, as transformers sees it."""
    settings: dict[str, Any] = {
        "vocab_size": 259,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.2,
    }
    config_class = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")
    torch.manual_seed(7)
    config = config_class(**(settings | changes))
    config._attn_implementation = "eager"  # soft caps are nowhere else
    model: PreTrainedModel = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name or name.endswith(".bias"):
                tensor.normal_(0.5, 0.3)  # ones and zeros would hide a norm or a bias that is left out
    model.train(False)
    model.save_pretrained(folder)
    make_byte_tokenizer(folder)
    return model


def last_logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0, -1]
        return logits


def agree(model: PreTrainedModel, engine: Engine, batch: list[tuple[Sequence, int]]) -> None:
    for row, (seq, _) in zip(compute(engine, batch), batch, strict=True):
        torch.testing.assert_close(row, last_logits(model, seq.tokens), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_in_prefill_chunks_decode_and_mixed_batches(case: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    model = make(tmp_path, family, changes)
    # longrope is chosen once for an engine, by its longest context; transformers chooses at each call.
    lengths = [70, 100, 130] if "longrope" in case else [1, 2, 5, 17, 40, 130]
    engine = make_engine(tmp_path, block_size=4, prefix_caching=False)
    seqs = sequences(lengths)
    agree(model, engine, [(s, len(s.tokens)) for s in seqs])
    for seq in seqs:
        seq.tokens.append(5)
    newcomer, chunked = sequences([73, 91], seed=9)
    compute(engine, [(chunked, 37)])
    agree(model, engine, [(seqs[0], 1), (newcomer, 73), (chunked, 91 - 37), *((s, 1) for s in seqs[1:])])


def test_longrope_has_its_short_form_where_contexts_are_short(tmp_path: Path) -> None:
    family, changes = CASES["phi3, longrope"]
    model = make(tmp_path, family, changes)
    engine = make_engine(tmp_path, block_size=4, prefix_caching=False, max_model_len=64)
    agree(model, engine, [(s, len(s.tokens)) for s in sequences([3, 40, 60])])


@pytest.mark.parametrize("case", ["gemma3", "qwen3 moe", "phi3"])
def test_budget_prefix_hits_and_neighbours_change_no_token(case: str, tmp_path: Path) -> None:
    make(tmp_path, *CASES[case])
    prompts = [s.tokens for s in sequences([3, 9, 30, 61], seed=4)]
    prompts += [[*prompts[3][:40], 9], prompts[3][:50]]
    alone = [run_all(make_engine(tmp_path, prefix_caching=False), [p], greedy(8))[0] for p in prompts]
    engine = make_engine(tmp_path, token_budget=16, blocks=64, block_size=4)
    assert run_all(engine, prompts, greedy(8)) == alone
    assert run_all(engine, prompts, greedy(8)) == alone
    assert engine.scheduler.blocks.hit_tokens > 0


def test_every_family_that_is_told_is_run() -> None:
    assert set(FAMILIES) == set(CLASSES)


OLD_GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 9,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 7,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "query_pre_attn_scalar": 256,
}


def test_configs_of_transformers_4_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OLD_GEMMA3))
    config = read_model_config(tmp_path)
    assert config.windows == (512, 512, 512, 512, 512, 0, 512)
    assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
    assert config.rope_scaling is not None
    assert config.rope_scaling.factor == 8.0
    assert config.tied_embeddings
    (tmp_path / "config.json").write_text(json.dumps(OLD_GEMMA3 | {"hidden_activation": "relu2"}))
    with pytest.raises(ModelUnavailable, match="relu2"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(OLD_GEMMA3 | {"rope_scaling": {"rope_type": "dynamic"}}))
    with pytest.raises(ModelUnavailable, match="dynamic"):
        read_model_config(tmp_path)


def test_a_random_sample_is_reproducible_in_every_family(tmp_path: Path) -> None:
    make(tmp_path, *CASES["mixtral"])
    sampling = Sampling(max_tokens=6, temperature=1.0, seed=11)
    first = run_all(make_engine(tmp_path), [[5, 6, 7]], sampling)
    assert run_all(make_engine(tmp_path), [[5, 6, 7], [8, 9]], sampling)[0] == first[0]
