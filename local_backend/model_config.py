"""What a model directory says about its model: shapes, limits, special tokens. No torch here; the front reads it too.

Source: `config.json` and `generation_config.json` of Hugging Face transformers 4 and 5, read 2026-11.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from local_backend.errors import ModelUnavailable
from local_backend.vision_config import (
    TEXT_PREFIX,
    VISION_FAMILIES,
    VisionConfig,
    processor_file,
    read_vision_config,
    text_config,
    vision_family,
)

FAMILIES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
    "MixtralForCausalLM",
    "Qwen3MoeForCausalLM",
    *VISION_FAMILIES,
)
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}
QUANTIZED_BY = ("compressed-tensors", "gptq", "awq", "fp8", "farebox")


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True):
    """How rotary frequencies are stretched: `linear` all alike, `llama3` the low ones, `yarn` by a ramp,
    `longrope` each by a factor of its own."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    attention_factor: float = 1.0
    """What cosine and sine are multiplied by."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder in numbers. Shapes in elements, positions in tokens; 0 stands for 'none' unless said otherwise."""

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
    rotary_dim: int
    """How much of each head is turned by position; the rest stays."""
    local_rope_theta: float | None = None
    """Base of the layers with a window, where it is another; without scaling."""
    max_position: int
    tied_embeddings: bool
    attention_bias: bool
    out_bias: bool
    mlp_bias: bool
    head_bias: bool = False
    activation: str = "silu"
    windows: tuple[int, ...] = ()
    """For each layer how many tokens back it looks, 0 all; empty: all layers look at all."""
    attention_scale: float = 0.0
    """Of scores; 0: the usual one, head_dim ** -0.5."""
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    experts: int = 0
    experts_each: int = 0
    """How many experts a token is sent to."""
    expert_size: int = 0
    normalized_experts: bool = True
    dense_layers: tuple[int, ...] = ()
    vision: VisionConfig | None = None
    """Its eyes, if it takes images."""
    text_prefix: str = ""
    """Before the names of its tensors, where they stand beside an encoder's; "": they have their usual ones."""
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
    vision = None
    if vision_family(raw) is not None:
        processor = read_json(processor_file(model_dir))
        vision = read_vision_config(raw, processor.get("image_processor", processor), model_dir.name)
        raw = text_config(raw, model_dir.name)
    activation = raw.get("hidden_activation") or raw.get("hidden_act") or "silu"
    if activation not in ACTIVATIONS:
        raise ModelUnavailable(f"{model_dir.name}: activation {activation!r} is not served; known: {list(ACTIVATIONS)}")
    stored = (raw.get("quantization_config") or {}).get("quant_method")
    if raw.get("quantization_config") and stored not in QUANTIZED_BY:
        raise ModelUnavailable(f"{model_dir.name}: quantized by {stored!r} is not served; known: {list(QUANTIZED_BY)}")
    gemma, qwen2 = family.startswith("Gemma"), family == "Qwen2ForCausalLM"
    try:
        heads = int(raw["num_attention_heads"])
        head_dim = raw.get("head_dim") or (256 if gemma else raw["hidden_size"] // heads)
        rope, local_theta = _rope(raw)
        eos = generation.get("eos_token_id", raw.get("eos_token_id"))
        bias = bool(raw.get("attention_bias", qwen2))
        return ModelConfig(
            family=family,
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            layers=raw["num_hidden_layers"],
            heads=heads,
            kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            norm_eps=raw["rms_norm_eps"],
            rope_theta=rope.get("rope_theta", 10_000.0),
            rope_scaling=_scaling(rope, raw),
            rotary_dim=int(head_dim * rope.get("partial_rotary_factor", 1.0)),
            local_rope_theta=local_theta if family == "Gemma3ForCausalLM" else None,
            max_position=raw["max_position_embeddings"],
            # Early configs leave out what is their family's default.
            tied_embeddings=raw.get("tie_word_embeddings", gemma),
            attention_bias=bias,
            out_bias=bias and not qwen2,
            mlp_bias=raw.get("mlp_bias", False),
            head_bias=raw.get("lm_head_bias", False),
            activation=ACTIVATIONS[activation],
            windows=_windows(family, raw),
            attention_scale=raw.get("query_pre_attn_scalar", 256) ** -0.5 if gemma else 0.0,
            attention_softcap=raw.get("attn_logit_softcapping") or 0.0,
            final_softcap=raw.get("final_logit_softcapping") or 0.0,
            experts=raw.get("num_local_experts") or raw.get("num_experts") or 0,
            experts_each=raw.get("num_experts_per_tok") or 0,
            expert_size=raw.get("moe_intermediate_size") or 0,
            normalized_experts=raw.get("norm_topk_prob", False),
            dense_layers=_dense_layers(raw),
            vision=vision,
            text_prefix=TEXT_PREFIX if vision else "",
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


def _windows(family: str, raw: Mapping[str, Any]) -> tuple[int, ...]:
    """For each layer its window. Newer configs list the layers' types, older ones have a rule per family."""
    window, layers = raw.get("sliding_window"), raw["num_hidden_layers"]
    if not window or raw.get("use_sliding_window") is False:
        return ()
    types = raw.get("layer_types")
    if types is None:
        match family:
            case "Gemma2ForCausalLM":
                slides = [i % 2 == 0 for i in range(layers)]
            case "Gemma3ForCausalLM":
                pattern = raw.get("sliding_window_pattern") or 6
                slides = [(i + 1) % pattern != 0 for i in range(layers)]
            case "Qwen2ForCausalLM" | "Qwen3ForCausalLM":
                slides = [i >= raw.get("max_window_layers", 0) for i in range(layers)]
            case _:
                slides = [True] * layers
    else:
        slides = [kind == "sliding_attention" for kind in types]
    return tuple(window if slide else 0 for slide in slides)


def _dense_layers(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """Layers without experts, in a model that has them."""
    step, named = raw.get("decoder_sparse_step") or 1, raw.get("mlp_only_layers") or []
    return tuple(i for i in range(raw["num_hidden_layers"]) if i in named or (i + 1) % step)


def _rope(raw: Mapping[str, Any]) -> tuple[dict[str, Any], float | None]:
    """The rotary parameters, and the base of windowed layers if it is another.

    transformers 5 writes one `rope_parameters`, by layer type where types differ; 4 wrote `rope_theta` beside
    `rope_scaling` and, for Gemma 3, `rope_local_base_freq`."""
    keys = ("rope_theta", "partial_rotary_factor")
    flat = {key: raw[key] for key in keys if raw.get(key) is not None}
    given = raw.get("rope_parameters") or {}
    if "full_attention" in given:
        return flat | given["full_attention"], given["sliding_attention"]["rope_theta"]
    return flat | (raw.get("rope_scaling") or {}) | given, raw.get("rope_local_base_freq", 10_000.0)


def _scaling(rope: Mapping[str, Any], raw: Mapping[str, Any]) -> RopeScaling | None:
    """Source: transformers modeling_rope_utils.py, read 2026-11."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    kind = {"su": "longrope"}.get(kind, kind)
    if kind == "default":
        return None
    if kind not in ("llama3", "linear", "yarn", "longrope"):
        raise ModelUnavailable(f"rotary scaling {kind!r} is not served; known: llama3, linear, yarn, longrope")
    max_position = raw["max_position_embeddings"]
    original = rope.get("original_max_position_embeddings") or raw.get("original_max_position_embeddings")
    original = original or max_position
    factor = rope.get("factor") or max_position / original
    return RopeScaling(
        kind=kind,
        factor=factor,
        low_freq_factor=rope.get("low_freq_factor", 1.0),
        high_freq_factor=rope.get("high_freq_factor", 4.0),
        original_max_position=original,
        beta_fast=rope.get("beta_fast") or 32.0,
        beta_slow=rope.get("beta_slow") or 1.0,
        truncate=rope.get("truncate", True),
        short_factor=tuple(rope.get("short_factor") or ()),
        long_factor=tuple(rope.get("long_factor") or ()),
        attention_factor=rope.get("attention_factor") or _attention_factor(kind, factor, original, rope),
    )


def _attention_factor(kind: str, factor: float, original: int, rope: Mapping[str, Any]) -> float:
    """How much longer contexts flatten attention, where the config does not say."""
    if factor <= 1.0:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original))
    if kind == "yarn":
        scale, all_dims = float(rope.get("mscale") or 0), float(rope.get("mscale_all_dim") or 0)
        if not scale or not all_dims:
            return 0.1 * math.log(factor) + 1.0
        return (0.1 * scale * math.log(factor) + 1.0) / (0.1 * all_dims * math.log(factor) + 1.0)
    return 1.0
