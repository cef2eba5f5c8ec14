"""What a model directory says about an encoder: a model that makes vectors or scores of texts. No torch here.

Source: `config.json` of transformers' BERT, `modules.json` and `1_Pooling/config.json` of sentence-transformers, read
2026-11.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from local_backend.errors import ModelUnavailable
from local_backend.model_config import read_json

ENCODERS = ("BertModel", "BertForSequenceClassification")


class EncoderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A BERT in numbers. labels: 0 for one that makes vectors, else of a cross-encoder: the scores of a pair."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    norm_eps: float
    max_position: int
    types: int
    pooling: str
    normalized: bool
    labels: int
    prefix: str
    """What stands before the names of its tensors."""


def is_encoder(model_dir: Path) -> bool:
    """True if the directory holds an encoder. Raises ModelUnavailable if it holds no model at all."""
    return bool(set(read_json(model_dir / "config.json").get("architectures") or ()) & set(ENCODERS))


def read_encoder_config(model_dir: Path) -> EncoderConfig:
    """Raises ModelUnavailable naming what is not served."""
    raw = read_json(model_dir / "config.json")
    cross = "BertForSequenceClassification" in raw["architectures"]
    if raw.get("hidden_act", "gelu") != "gelu":
        raise ModelUnavailable(f"{model_dir.name}: activation {raw['hidden_act']!r} is not served by encoders")
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise ModelUnavailable(f"{model_dir.name}: only absolute positions are served")
    pooling_path, modules_path = model_dir / "1_Pooling" / "config.json", model_dir / "modules.json"
    pooling = read_json(pooling_path) if pooling_path.exists() else {}
    by_first = bool(pooling.get("pooling_mode_cls_token"))
    if pooling and not by_first and not pooling.get("pooling_mode_mean_tokens"):
        raise ModelUnavailable(f"{model_dir.name}: pooled neither by mean nor by first token")
    modules: list[dict[str, Any]] = msgspec.json.decode(modules_path.read_bytes()) if modules_path.exists() else []
    try:
        return EncoderConfig(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            norm_eps=raw.get("layer_norm_eps", 1e-12),
            max_position=raw["max_position_embeddings"],
            types=raw.get("type_vocab_size", 2),
            pooling="first" if by_first else "mean",
            # Without a word about it, vectors are brought to length one: then a product is their cosine.
            normalized=not modules or any(str(m.get("type", "")).endswith("Normalize") for m in modules),
            labels=len(raw.get("id2label") or {0: "", 1: ""}) if cross else 0,
            prefix="bert." if cross else "",
        )
    except KeyError as error:
        raise ModelUnavailable(f"{model_dir.name}/config.json lacks {error}") from None
