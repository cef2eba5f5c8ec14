"""What a model directory says about its model: shapes, limits, special tokens. No torch here; the front reads it too.

Source: `config.json` and `generation_config.json` of Hugging Face transformers 4 and 5, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from local_backend.errors import ModelUnavailable

FAMILIES = ("LlamaForCausalLM",)
QUANTIZED_BY = ("compressed-tensors", "gptq", "awq", "fp8", "farebox")


class RopeScaling(msgspec.Struct, frozen=True):
    """How rotary frequencies are stretched: `llama3` bends the low ones, `linear` all alike."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A Llama-family decoder in numbers. Shapes in elements, positions in tokens."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position: int
    tied_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    temperature: float = 1.0
    """This and the next three: what the model's makers advise, for a request that does not say."""
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelUnavailable naming the file."""
    try:
        value = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise ModelUnavailable(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ModelUnavailable(f"cannot read {path}: not a JSON object")
    return value


def read_model_config(model_dir: Path) -> ModelConfig:
    """Raises ModelUnavailable if the directory has no such model, or one of a family we do not run."""
    raw = read_json(model_dir / "config.json")
    generation_path = model_dir / "generation_config.json"
    generation = read_json(generation_path) if generation_path.exists() else {}
    families = raw.get("architectures") or []
    family = next((name for name in families if name in FAMILIES), None)
    if family is None:
        raise ModelUnavailable(f"{model_dir.name}: architecture {families} is not served; known: {list(FAMILIES)}")
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelUnavailable(f"{model_dir.name}: activation {raw['hidden_act']!r} is not served")
    stored = (raw.get("quantization_config") or {}).get("quant_method")
    if raw.get("quantization_config") and stored not in QUANTIZED_BY:
        raise ModelUnavailable(f"{model_dir.name}: quantized by {stored!r} is not served; known: {list(QUANTIZED_BY)}")
    try:
        heads = int(raw["num_attention_heads"])
        eos = generation.get("eos_token_id", raw.get("eos_token_id"))
        return ModelConfig(
            family=family,
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            layers=raw["num_hidden_layers"],
            heads=heads,
            kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            norm_eps=raw["rms_norm_eps"],
            rope_theta=_rope(raw).get("rope_theta", 10_000.0),
            rope_scaling=_scaling(_rope(raw), raw),
            max_position=raw["max_position_embeddings"],
            tied_embeddings=raw.get("tie_word_embeddings", False),
            attention_bias=raw.get("attention_bias", False),
            mlp_bias=raw.get("mlp_bias", False),
            bos_token_id=raw.get("bos_token_id"),
            eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
            temperature=_advised(generation, "temperature", 1.0),
            top_p=_advised(generation, "top_p", 1.0),
            top_k=int(_advised(generation, "top_k", 0)),
            repetition_penalty=_advised(generation, "repetition_penalty", 1.0),
        )
    except KeyError as error:
        raise ModelUnavailable(f"{model_dir.name}/config.json lacks {error}") from None


def _advised(generation: Mapping[str, Any], name: str, otherwise: float) -> float:
    value = generation.get(name)
    return otherwise if value is None else float(value)


def _rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 writes one `rope_parameters`; 4 wrote `rope_theta` beside `rope_scaling`."""
    flat = {"rope_theta": raw["rope_theta"]} if "rope_theta" in raw else {}
    return flat | (raw.get("rope_scaling") or {}) | (raw.get("rope_parameters") or {})


def _scaling(rope: Mapping[str, Any], raw: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind not in ("llama3", "linear"):
        raise ModelUnavailable(f"rotary scaling {kind!r} is not served; known: llama3, linear")
    return RopeScaling(
        kind=kind,
        factor=rope["factor"],
        low_freq_factor=rope.get("low_freq_factor", 1.0),
        high_freq_factor=rope.get("high_freq_factor", 4.0),
        original_max_position=rope.get("original_max_position_embeddings", raw["max_position_embeddings"]),
    )
