"""GGUF files of every quantization we read, against the model they were made from; and files that are broken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from local_backend.convert import LAYER_NAMES, MODEL_NAMES, convert_gguf, converted
from local_backend.errors import ModelUnavailable
from local_backend.model_config import read_model_config
from local_backend.quantization.gguf_blocks import TAKE, neutral
from local_backend.quantization.neutral import QuantizedWeight
from local_backend.tokenizer import Tokenizer, byte_level_alphabet
from local_backend.weights import Weights
from tests.local_backend.support import SPECIAL, greedy, make_engine, make_tiny_model, run_all

Q = GGMLQuantizationType
WIDE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TO_GGUF = {v: k for k, v in MODEL_NAMES.items()} | {v: k for k, v in LAYER_NAMES.items()}


def gguf_name(name: str) -> str:
    if name in TO_GGUF:
        return TO_GGUF[name]
    parts = name.split(".")
    return f"blk.{parts[2]}.{TO_GGUF['.'.join(parts[3:-1])]}.{parts[-1]}"


def permuted(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """What llama.cpp's converter does to q and k. Source: convert_hf_to_gguf.py LlamaModel.permute, read 2026-11."""
    return (
        values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    )


def write_gguf(
    path: Path,
    folder: Path,
    quantization: Q,
    *,
    architecture: str = "llama",
    pre: str = "smollm",
    forms: dict[str, Q] | None = None,
) -> None:
    """A GGUF file of the model in `folder`, as llama.cpp's converter would write it; `forms`: of some, by name."""
    config = read_model_config(folder)
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    alphabet = sorted(byte_level_alphabet().items(), key=lambda item: item[1])
    writer.add_token_list([*SPECIAL, *(c for c, _ in alphabet), "ab"])
    writer.add_token_types([3] * len(SPECIAL) + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = tensor.float().numpy()
        for part, heads in (("q_proj", config.heads), ("k_proj", config.kv_heads)):
            if part in name:
                values = permuted(values, heads)
        form = next((own for part, own in (forms or {}).items() if part in name), quantization)
        if values.ndim == 1 or form == Q.F32:
            writer.add_tensor(gguf_name(name), values)
        else:
            writer.add_tensor(gguf_name(name), quantize(values, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("widened", [False, True], ids=["as stored", "widened"])
@pytest.mark.parametrize("quantization", [Q.F32, Q.F16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1], ids=lambda q: q.name)
def test_gguf_gives_the_weights_it_was_made_from(tmp_path: Path, quantization: Q, widened: bool) -> None:
    make_tiny_model(tmp_path / "hf", **WIDE)
    write_gguf(tmp_path / "tiny.gguf", tmp_path / "hf", quantization)
    notes: list[tuple[int, int | None, str]] = []
    (tmp_path / "out").mkdir()
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out", lambda *note: notes.append(note), widened=widened)
    assert notes[-1][0] == notes[-1][1]
    got = Weights(tmp_path / "out", torch.device("cpu"))
    coded = quantization in TAKE and not widened
    assert got.quantization == (quantization.name if coded else None), "what `/health` calls it"
    for name, tensor in load_file(tmp_path / "hf" / "model.safetensors").items():
        values = tensor.float().numpy()
        if values.ndim == 1:
            assert torch.equal(got.get(name, *values.shape), tensor.float())
            continue
        if quantization != Q.F32:
            # Blocks run along a row and permuting moves whole rows: quantizing before or after is the same.
            values = dequantize(quantize(values, quantization), quantization)
        matrix = got.matrix(name.removesuffix(".weight"), *values.shape)
        assert isinstance(matrix, QuantizedWeight) == coded
        plain = matrix.dequantize() if isinstance(matrix, QuantizedWeight) else matrix.float()
        loss = {"atol": 1e-7, "rtol": 1e-6} if coded else {"atol": 1e-4, "rtol": 1e-3}
        torch.testing.assert_close(plain, torch.from_numpy(values), **loss)
    theirs, ours = read_model_config(tmp_path / "hf"), read_model_config(tmp_path / "out")
    for field in ("heads", "kv_heads", "head_dim", "layers", "vocab_size", "tied_embeddings", "eos_token_ids"):
        assert getattr(ours, field) == getattr(theirs, field)
    assert ours.norm_eps == pytest.approx(theirs.norm_eps)


SCALES_AT = {Q.Q6_K: (208,)} | dict.fromkeys((Q.Q4_1, Q.Q5_1, Q.Q4_K, Q.Q5_K), (0, 2))
"""Where in a block its float16 numbers stand, if not at its beginning alone."""


@pytest.mark.parametrize("kind", TAKE, ids=lambda q: q.name)
def test_every_block_that_can_be_is_read_as_what_it_means(kind: Q) -> None:
    """The library quantizes to few of these forms; but any bytes are blocks, if only their scales are numbers."""
    chance = np.random.default_rng(3)
    inputs, size = GGML_QUANT_SIZES[kind]
    blocks = chance.integers(0, 256, (40 * 3, size), dtype=np.uint8)
    for at in SCALES_AT.get(kind, (0,)):
        numbers = chance.standard_normal((len(blocks), 1)).astype(np.float16)
        numbers[::7] = 0
        blocks[:, at : at + 2] = numbers.view(np.uint8)
    data = blocks.reshape(40, -1)
    found = {name: torch.from_numpy(values) for name, values in neutral(data, kind).items()}
    scale, outs = found["scale"], len(data)
    read = QuantizedWeight(found["codes"], scale, found.get("zero"), 3 * inputs // scale.shape[1])
    assert read.shape == (outs, 3 * inputs)
    wanted = torch.from_numpy(dequantize(data, kind))
    assert wanted.isfinite().all()
    # A weight is a difference of two numbers: what rounding is left is of the larger one.
    torch.testing.assert_close(read.dequantize(), wanted, atol=2e-7 * float(wanted.abs().max()), rtol=1e-6)


def test_a_converted_model_says_what_transformers_says_of_its_widened_self(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "hf", **WIDE, tie_word_embeddings=False)
    write_gguf(tmp_path / "tiny.gguf", tmp_path / "hf", Q.Q8_0)
    folder = converted(tmp_path / "tiny.gguf", tmp_path / "data")
    assert converted(tmp_path / "tiny.gguf", tmp_path / "data") == folder, "made once"
    (tmp_path / "wide").mkdir()
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "wide", widened=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype=torch.float32)
    prompt = Tokenizer(folder).encode("12 é", special=True)
    assert len(prompt) == 5
    assert Tokenizer(folder).encode("cab", special=True) == [3 + ord("c"), 259]
    (output,) = run_all(make_engine(folder), [prompt], greedy(20))
    with torch.inference_mode():
        likeliest = model(torch.tensor([prompt + output])).logits[0].argmax(dim=-1).tolist()
    assert output == likeliest[len(prompt) - 1 : -1]
    os.utime(tmp_path / "tiny.gguf", (1, 1))
    assert converted(tmp_path / "tiny.gguf", tmp_path / "data") != folder, "a changed file is another model"


def test_matrices_of_one_product_may_differ_in_form(tmp_path: Path) -> None:
    """As files of llama.cpp do: 4 bits for most, more where a layer can bear less."""
    make_tiny_model(tmp_path / "hf", **WIDE)
    forms = {"v_proj": Q.Q8_0, "gate_proj": Q.F16}
    write_gguf(tmp_path / "mixed.gguf", tmp_path / "hf", Q.Q4_0, forms=forms)
    folder = converted(tmp_path / "mixed.gguf", tmp_path / "data")
    (tmp_path / "wide").mkdir()
    convert_gguf(tmp_path / "mixed.gguf", tmp_path / "wide", widened=True)
    prompts = [[5, 6, 7], [40, 41, 42, 43]]
    assert run_all(make_engine(folder), prompts, greedy(12)) == run_all(
        make_engine(tmp_path / "wide"), prompts, greedy(12)
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"architecture": "gemma"}, "architecture 'gemma'"), ({"pre": "tekken"}, "tekken")],
)
def test_what_is_not_known_is_refused_by_name(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    make_tiny_model(tmp_path / "hf", **WIDE)
    write_gguf(tmp_path / "x.gguf", tmp_path / "hf", Q.F16, **changes)
    with pytest.raises(ModelUnavailable, match=said):
        converted(tmp_path / "x.gguf", tmp_path / "data")
    assert list((tmp_path / "data" / "converted").iterdir()) == [], "nothing half done is left"


@settings(deadline=None, max_examples=25)
@given(cut=st.floats(0, 0.999))
def test_a_truncated_file_is_an_error_wherever_it_was_cut(tmp_path_factory: pytest.TempPathFactory, cut: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    make_tiny_model(folder / "hf", **WIDE, num_hidden_layers=1)
    write_gguf(folder / "x.gguf", folder / "hf", Q.Q8_0)
    whole = (folder / "x.gguf").read_bytes()
    (folder / "x.gguf").write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(ModelUnavailable):
        converted(folder / "x.gguf", folder / "data")
