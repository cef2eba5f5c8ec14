"""Model families, one file each, over `layers/`. Which class runs which architecture."""

from __future__ import annotations

import torch

from local_backend.kernels.reference import ReferenceOps
from local_backend.layers.decoder import Decoder
from local_backend.layers.linear import Linears
from local_backend.model_config import ModelConfig
from local_backend.models.gemma import Gemma2, Gemma3
from local_backend.models.llama import Llama
from local_backend.models.moe import Mixtral, Qwen3Moe
from local_backend.models.phi import Phi3
from local_backend.models.qwen import Qwen2, Qwen3
from local_backend.models.smolvlm import SmolVlm

CLASSES: dict[str, type[Decoder]] = {
    "LlamaForCausalLM": Llama,
    "MistralForCausalLM": Llama,
    "Qwen2ForCausalLM": Qwen2,
    "Qwen3ForCausalLM": Qwen3,
    "Gemma2ForCausalLM": Gemma2,
    "Gemma3ForCausalLM": Gemma3,
    "Phi3ForCausalLM": Phi3,
    "MixtralForCausalLM": Mixtral,
    "Qwen3MoeForCausalLM": Qwen3Moe,
    "Idefics3ForConditionalGeneration": SmolVlm,
    "SmolVLMForConditionalGeneration": SmolVlm,
}
"""Those of `model_config.FAMILIES`."""


def build(
    config: ModelConfig, linears: Linears, ops: ReferenceOps, *, max_model_len: int, device: torch.device
) -> Decoder:
    """The model of a config, its weights read through `linears`."""
    return CLASSES[config.family](config, linears, ops, max_model_len=max_model_len, device=device)
