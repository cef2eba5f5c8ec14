"""Rotary position embedding in the half-split form of Hugging Face checkpoints."""

from __future__ import annotations

import math

import torch

from local_backend.model_config import ModelConfig, RopeScaling


class Rotary:
    """Tables of cosine and sine, (positions, 1, rotary_dim / 2), made once and looked up once a step."""

    def __init__(
        self,
        config: ModelConfig,
        theta: float,
        scaling: RopeScaling | None,
        max_len: int,
        device: torch.device,
        factors: torch.Tensor | None = None,
    ) -> None:
        """factors: a GGUF file brings its scaling as one divisor each."""
        frequency = inverse_frequencies(config.rotary_dim, theta, scaling, max_len)
        if factors is not None:
            frequency = frequency / factors.cpu().float()
        angle = torch.outer(torch.arange(max_len, dtype=torch.float32), frequency).unsqueeze(1)
        stretch = 1.0 if scaling is None else scaling.attention_factor
        self.cos, self.sin = (angle.cos() * stretch).to(device), (angle.sin() * stretch).to(device)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine for each token of the step."""
        return self.cos[positions], self.sin[positions]


def inverse_frequencies(dim: int, theta: float, scaling: RopeScaling | None, max_len: int) -> torch.Tensor:
    """(dim / 2) radians per position. Source of the scalings: transformers modeling_rope_utils.py, read 2026-11."""
    exponent = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    plain = 1.0 / (theta**exponent)
    match scaling:
        case None:
            return plain
        case RopeScaling(kind="linear", factor=factor):
            return plain / factor
        case RopeScaling(kind="longrope"):
            # One choice for the engine's life: keys turned by one set of factors do not go with queries turned by the
            # other. transformers chooses anew at each call, which loses the cache when a text crosses the border.
            long = max_len > scaling.original_max_position
            return plain / torch.tensor(scaling.long_factor if long else scaling.short_factor, dtype=torch.float32)
        case RopeScaling(kind="yarn"):
            return _yarn(plain, dim, theta, scaling)
        case _:
            return _llama3(plain, scaling)


def _yarn(plain: torch.Tensor, dim: int, theta: float, s: RopeScaling) -> torch.Tensor:
    """Waves that turn often are left, those that turn seldom slowed by the factor, with a ramp between."""

    def dimension(turns: float) -> float:
        return dim * math.log(s.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(s.beta_fast), dimension(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain / s.factor * ramp + plain * (1 - ramp)


def _llama3(plain: torch.Tensor, s: RopeScaling) -> torch.Tensor:
    """Long waves are slowed by the factor, short ones left, those between blended."""
    wavelength = 2 * math.pi / plain
    low, high = s.original_max_position / s.low_freq_factor, s.original_max_position / s.high_freq_factor
    blend = (s.original_max_position / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    between = (1 - blend) * plain / s.factor + blend * plain
    return torch.where(wavelength > low, plain / s.factor, torch.where(wavelength < high, plain, between))
