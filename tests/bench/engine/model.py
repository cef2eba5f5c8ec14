"""Random weights of a known shape, the same ones in each peer's own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
from gguf.quants import quantize
from safetensors.numpy import save_file

Array = np.ndarray[Any, Any]


class Shape(msgspec.Struct, frozen=True):
    """A Llama in numbers."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int = 2048

    @property
    def parameters(self) -> int:
        """Weights that a step of one token reads."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.vocab * self.hidden


L491M = Shape("llama-491m", 28, 1024, 4096, 16, 8, 64, 49152)
TINY = Shape("llama-tiny", 2, 64, 128, 4, 2, 16, 512, 256)

FILE_TYPES = {"Q8_0": gguf.GGMLQuantizationType.Q8_0, "Q4_0": gguf.GGMLQuantizationType.Q4_0}


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint by its Hugging Face name; the head is the embedding."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, shape.hidden)}
    for i in range(shape.layers):
        at = f"model.layers.{i}."
        sizes |= {
            f"{at}self_attn.q_proj.weight": (q, shape.hidden),
            f"{at}self_attn.k_proj.weight": (kv, shape.hidden),
            f"{at}self_attn.v_proj.weight": (kv, shape.hidden),
            f"{at}self_attn.o_proj.weight": (shape.hidden, q),
            f"{at}mlp.gate_proj.weight": (shape.intermediate, shape.hidden),
            f"{at}mlp.up_proj.weight": (shape.intermediate, shape.hidden),
            f"{at}mlp.down_proj.weight": (shape.hidden, shape.intermediate),
            f"{at}input_layernorm.weight": (shape.hidden,),
            f"{at}post_attention_layernorm.weight": (shape.hidden,),
        }
    return sizes | {"model.norm.weight": (shape.hidden,)}


def tensors(shape: Shape, seed: int = 0) -> dict[str, Array]:
    """Random weights: matrices in float16, norms of ones."""
    chance = np.random.default_rng(seed)
    return {
        name: np.ones(size, dtype=np.float32)
        if len(size) == 1
        else (chance.standard_normal(size, dtype=np.float32) * 0.02).astype(np.float16)
        for name, size in tensor_shapes(shape).items()
    }


def write_safetensors(folder: Path, shape: Shape, weights: dict[str, Array]) -> Path:
    """A Hugging Face directory."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_gguf(path: Path, shape: Shape, weights: dict[str, Array], kind: str) -> Path:
    """The same weights for llama.cpp, with a vocabulary of made-up words."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("llama")
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    words += [f"\u2581w{i}" for i in range(shape.vocab - len(words))]
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * shape.vocab)
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * (shape.vocab - 259)
    writer.add_token_types([int(kind) for kind in kinds[: shape.vocab]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, values in weights.items():
        to = gguf_name(name)
        if values.ndim == 1:
            writer.add_tensor(to, values)
            continue
        plain = values.astype(np.float32)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            plain = _interleaved(plain, shape.head_dim)
        writer.add_tensor(to, quantize(plain, FILE_TYPES[kind]), raw_dtype=FILE_TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in whole:
        return whole[name]
    parts = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    _, _, index, *middle, kind = name.split(".")
    return f"blk.{index}.{parts['.'.join(middle)]}.{kind}"


def _interleaved(weight: Array, head_dim: int) -> Array:
    """llama.cpp rotates neighbours where Hugging Face rotates halves: its converter reorders the rows of q and k."""
    outs, ins = weight.shape
    return weight.reshape(outs // head_dim, 2, head_dim // 2, ins).swapaxes(1, 2).reshape(outs, ins)
