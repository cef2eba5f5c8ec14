"""Rotary position embedding in the half-split form of Hugging Face checkpoints."""

from __future__ import annotations

import math

import torch

from local_backend.model_config import ModelConfig, RopeScaling


class Rotary:
    """Tables of cosine and sine, (positions, 1, head_dim / 2), made once and looked up once a step."""

    def __init__(self, config: ModelConfig, max_len: int, device: torch.device, factors: torch.Tensor | None) -> None:
        frequency = inverse_frequencies(config)
        if factors is not None:
            frequency = frequency / factors.cpu().float()  # a GGUF file brings its scaling as one divisor each
        angle = torch.outer(torch.arange(max_len, dtype=torch.float32), frequency).unsqueeze(1)
        self.cos, self.sin = angle.cos().to(device), angle.sin().to(device)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine for each token of the step."""
        return self.cos[positions], self.sin[positions]


def inverse_frequencies(config: ModelConfig) -> torch.Tensor:
    """(head_dim / 2) radians per position."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    plain = 1.0 / (config.rope_theta**exponent)
    match config.rope_scaling:
        case None:
            return plain
        case RopeScaling(kind="linear", factor=factor):
            return plain / factor
        case scaling:
            return _llama3(plain, scaling)


def _llama3(plain: torch.Tensor, s: RopeScaling) -> torch.Tensor:
    """Long waves are slowed by the factor, short ones left, those between blended.

    Source: transformers modeling_rope_utils._compute_llama3_parameters, read 2026-11."""
    wavelength = 2 * math.pi / plain
    low, high = s.original_max_position / s.low_freq_factor, s.original_max_position / s.high_freq_factor
    blend = (s.original_max_position / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    between = (1 - blend) * plain / s.factor + blend * plain
    return torch.where(wavelength > low, plain / s.factor, torch.where(wavelength < high, plain, between))
