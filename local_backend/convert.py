"""GGUF -> a directory as the engine reads it: safetensors, config and tokenizer. No torch; done once, then kept.

Quantized matrices stay what they are, in the neutral form; or all is widened to float16, and the directory is one of
Hugging Face's that others read, too.

Source: GGUF specification (ggml docs/gguf.md) and llama.cpp's convert_hf_to_gguf.py, which this undoes; read 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
from gguf.quants import dequantize
from safetensors.numpy import save_file

from local_backend.errors import ModelUnavailable
from local_backend.quantization import gguf_blocks
from local_backend.storage import make_directory
from local_backend.tokenizer_import import tokenizer_from_gguf

Q = GGMLQuantizationType
QUANTIZATIONS = {Q.F32, Q.F16, Q.BF16, *gguf_blocks.TAKE}

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MODEL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "rope_freqs.weight": "rope_freqs.weight",
}

Progress = Callable[[int, int | None, str], None]


def convert_gguf(path: Path, target: Path, progress: Progress | None = None, *, widened: bool = False) -> None:
    """Write the model of a GGUF file into the empty directory `target`. The caller makes the result visible at once.

    widened: quantized matrices as float16.

    Raises ModelUnavailable for a file that is broken, of another architecture, or in a quantization not known here."""
    try:
        reader = GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelUnavailable(f"{path.name} is not a readable GGUF file: {error}") from error
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise ModelUnavailable(f"{path.name}: GGUF architecture {architecture!r} is not served; known: llama")
    config = hf_config(fields, {tensor.name for tensor in reader.tensors})
    total = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    done = 0
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    kept: set[str] = set()
    for tensor in reader.tensors:
        name = hf_name(tensor.name)
        if tensor.tensor_type in gguf_blocks.TAKE and not widened:
            kept.add(tensor.tensor_type.name)
            for part, values in gguf_blocks.neutral(tensor.data, tensor.tensor_type).items():
                tensors[f"{name.removesuffix('weight')}{part}"] = _unpermuted(tensor, values, config)
        else:
            tensors[name] = _half(_unpermuted(tensor, _values(tensor, path), config))
        done += int(tensor.n_bytes)
        if progress is not None:
            progress(done, total, "converting weights")
    save_file(
        {name: np.ascontiguousarray(values) for name, values in tensors.items()},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    if kept:
        # `was` is for people: what `/health` calls the weights.
        config["quantization_config"] = {"quant_method": "farebox", "was": ", ".join(sorted(kept))}
    (target / "config.json").write_bytes(msgspec.json.encode(config))
    tokenizer_from_gguf(fields, target)


def hf_config(fields: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """config.json from GGUF metadata. Raises ModelUnavailable naming the key that is missing."""
    try:
        heads = fields["llama.attention.head_count"]
        hidden = fields["llama.embedding_length"]
        rope: dict[str, Any] = {"rope_theta": fields.get("llama.rope.freq_base", 10_000.0)}
        if (scaling := fields.get("llama.rope.scaling.type", "none")) not in ("none", "linear"):
            raise ModelUnavailable(f"rotary scaling {scaling!r} in GGUF is not served")
        if scaling == "linear":
            rope |= {"rope_scaling": {"rope_type": "linear", "factor": fields["llama.rope.scaling.factor"]}}
        eos = [fields["tokenizer.ggml.eos_token_id"]]
        if (turn := fields.get("tokenizer.ggml.eot_token_id")) is not None and turn not in eos:
            eos.append(turn)
        if fields.get("llama.expert_count"):
            raise ModelUnavailable("mixture-of-experts models are not served")
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "vocab_size": fields.get("llama.vocab_size", len(fields["tokenizer.ggml.tokens"])),
            "hidden_size": hidden,
            "intermediate_size": fields["llama.feed_forward_length"],
            "num_hidden_layers": fields["llama.block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": fields.get("llama.attention.head_count_kv", heads),
            "head_dim": fields.get("llama.attention.key_length", hidden // heads),
            "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
            "max_position_embeddings": fields["llama.context_length"],
            "tie_word_embeddings": "output.weight" not in names,
            "attention_bias": "blk.0.attn_q.bias" in names,
            "mlp_bias": "blk.0.ffn_up.bias" in names,
            "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": eos if len(eos) > 1 else eos[0],
        } | rope
    except KeyError as error:
        raise ModelUnavailable(f"the GGUF file lacks {error}") from None


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`. Raises ModelUnavailable for strangers."""
    if name in MODEL_NAMES:
        return MODEL_NAMES[name]
    match name.split("."):
        case ["blk", index, part, kind] if part in LAYER_NAMES:
            return f"model.layers.{index}.{LAYER_NAMES[part]}.{kind}"
    raise ModelUnavailable(f"the GGUF file has a tensor {name!r} that a Llama does not")


def _values(tensor: ReaderTensor, path: Path) -> np.ndarray[Any, Any]:
    if tensor.tensor_type not in QUANTIZATIONS:
        raise ModelUnavailable(f"{path.name}: quantization {tensor.tensor_type.name} is not known here")
    return dequantize(tensor.data, tensor.tensor_type)


def _unpermuted(tensor: ReaderTensor, values: np.ndarray[Any, Any], config: dict[str, Any]) -> np.ndarray[Any, Any]:
    """llama.cpp rotates neighbours, Hugging Face rotates halves; the converter to GGUF reordered q and k rows."""
    part = tensor.name.split(".")[-2]
    if part not in ("attn_q", "attn_k"):
        return values
    heads = config["num_attention_heads"] if part == "attn_q" else config["num_key_value_heads"]
    rows, *rest = values.shape
    return values.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(rows, *rest)


def _half(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float16 where it fits: every form of the engine then works on the same numbers, at half the disk.

    Rounding costs 2**-11 of a weight, far below the grid of any quantization we read. Norms and factors stay exact."""
    if values.ndim == 1 or np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
        return np.ascontiguousarray(values, dtype=np.float32)
    return np.ascontiguousarray(values, dtype=np.float16)


def converted(path: Path, data_dir: Path, progress: Progress | None = None) -> Path:
    """The converted form of a GGUF file of the user's, made on first use. Changing the file makes a new one."""
    stat = path.stat()
    target = data_dir / "converted" / f"{path.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
    if target.exists():
        return target

    def fill(folder: Path) -> None:
        convert_gguf(path, folder, progress)
        beside = path.parent / "tokenizer.json"
        if beside.exists():
            (folder / "tokenizer.json").write_bytes(beside.read_bytes())

    make_directory(target, fill)
    return target
