"""SmolVLM, SmolVLM2 and Idefics 3: a Llama with eyes. A SigLIP encoder sees an image in square tiles, neighbouring
patches are folded into one, and a linear map makes them tokens that stand in the prompt like others.

Names of tensors and arithmetic follow transformers' modeling_smolvlm.py and modeling_idefics3.py, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from local_backend.forward import Span
from local_backend.kernels.reference import ReferenceOps
from local_backend.layers.linear import Linears
from local_backend.layers.norm import LayerNorm
from local_backend.model_config import ModelConfig
from local_backend.models.llama import Llama
from local_backend.pictures import Pictures
from local_backend.vision_config import VisionConfig


class EyeLayer:
    """Norms come before attention and MLP; every patch sees all others."""

    def __init__(self, at: str, config: VisionConfig, linears: Linears) -> None:
        c, self.heads = config, config.heads
        names = [f"{at}self_attn.{name}_proj" for name in "qkv"]
        self.qkv = linears.column(names, [c.hidden_size] * 3, c.hidden_size, bias=True)
        self.out = linears.row(f"{at}self_attn.out_proj", c.hidden_size, c.hidden_size, bias=True)
        self.up = linears.column([f"{at}mlp.fc1"], [c.intermediate_size], c.hidden_size, bias=True)
        self.down = linears.row(f"{at}mlp.fc2", c.hidden_size, c.intermediate_size, bias=True)
        self.norm_1 = LayerNorm(f"{at}layer_norm1", c.hidden_size, c.norm_eps, linears)
        self.norm_2 = LayerNorm(f"{at}layer_norm2", c.hidden_size, c.norm_eps, linears)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(patches, hidden)."""
        query, key, value = self.qkv(self.norm_1(x)).view(len(x), 3, self.heads, -1).permute(1, 2, 0, 3).unsqueeze(1)
        attended = F.scaled_dot_product_attention(query, key, value)[0]
        x = x + self.out(attended.transpose(0, 1).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class Eyes:
    """One tile -> its tokens. Tiles are seen one by one, so that company changes none of them."""

    def __init__(self, config: VisionConfig, hidden: int, linears: Linears, device: torch.device) -> None:
        """hidden: width of the text model. linears: in plain numbers; schemes are for the text half."""
        c, at = config, "model.vision_model."
        self.config, self.device, self.dtype = c, device, linears.dtype
        name, pixels = f"{at}embeddings.patch_embedding", 3 * c.patch_size**2
        shape = (c.hidden_size, 3, c.patch_size, c.patch_size)
        self.patch = linears.tensor(f"{name}.weight", *shape).view(c.hidden_size, pixels)
        self.patch_bias = linears.tensor(f"{name}.bias", c.hidden_size)
        learned = linears.tensor(f"{at}embeddings.position_embedding.weight", places(c) ** 2, c.hidden_size)
        self.positions = learned[grid_places(c).to(device)]
        self.layers = [EyeLayer(f"{at}encoder.layers.{i}.", c, linears) for i in range(c.layers)]
        self.norm = LayerNorm(f"{at}post_layernorm", c.hidden_size, c.norm_eps, linears)
        self.project = linears.column(
            ["model.connector.modality_projection.proj"], [hidden], c.hidden_size * c.shuffle**2
        )
        self.mean = torch.tensor(c.mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(c.std, device=device).view(3, 1, 1)

    def normalised(self, tile: bytes) -> torch.Tensor:
        """A tile's pixels (3, size, size) as the encoder wants them, in float32."""
        size = self.config.tile_size
        pixels = torch.frombuffer(bytearray(tile), dtype=torch.uint8).view(3, size, size).to(self.device)
        return (pixels.float() * self.config.rescale - self.mean) / self.std

    def __call__(self, tile: bytes) -> torch.Tensor:
        """(tile_tokens, hidden of the text model)."""
        c, side, size = self.config, self.config.side, self.config.patch_size
        # What is left of a whole number of patches is not seen.
        pixels = self.normalised(tile)[:, : side * size, : side * size].to(self.dtype)
        patches = pixels.view(3, side, size, side, size).permute(1, 3, 0, 2, 4).reshape(side**2, 3 * size**2)
        x = F.linear(patches, self.patch, self.patch_bias) + self.positions
        for layer in self.layers:
            x = layer(x)
        folded, n = side // c.shuffle, c.shuffle
        x = self.norm(x).view(folded, n, folded, n, c.hidden_size).transpose(1, 2)
        seen: torch.Tensor = self.project(x.reshape(folded**2, n * n * c.hidden_size))
        return seen


def places(config: VisionConfig) -> int:
    """Learned positions, each way."""
    return config.image_size // config.patch_size


def grid_places(config: VisionConfig) -> torch.Tensor:
    """Which learned position each patch of a tile has: by its share of the way, as transformers rounds it."""
    learned = places(config)
    bounds = torch.arange(1 / learned, 1.0, 1 / learned)
    share = torch.arange(config.side, dtype=torch.float32) * (1.0 / torch.tensor(config.side))
    place = torch.bucketize(share.clamp(max=1.0 - 1e-6), bounds, right=True)
    return (place[:, None] * learned + place[None, :]).flatten()


class SmolVlm(Llama):
    """The whole: tokens of images take the places that the prompt keeps for them."""

    def __init__(
        self, config: ModelConfig, linears: Linears, ops: ReferenceOps, *, max_model_len: int, device: torch.device
    ) -> None:
        super().__init__(config, linears, ops, max_model_len=max_model_len, device=device)
        assert config.vision is not None
        self.eyes = Eyes(config.vision, config.hidden_size, linears.plain, device)

    def look(self, spans: list[Span], pictures: Mapping[int, Pictures]) -> list[tuple[int, torch.Tensor]]:
        """What is seen in a pass: from which of its rows on, and the tokens (rows, hidden).

        A tile is looked at when the first of its tokens is computed, and its pixels give way to what was seen; who is
        computed again after a preemption, or found it in the prefix cache, costs nothing."""
        seen: list[tuple[int, torch.Tensor]] = []
        row = 0
        for span in spans:
            if span.pictures in pictures:
                own = pictures[span.pictures]
                for at in own.between(span.start, span.end):
                    if isinstance(own.tiles[at], bytes):
                        own.tiles[at] = self.eyes(own.tiles[at])
                    start = own.starts[at]
                    first, last = max(start, span.start), min(start + own.tile_tokens, span.end)
                    seen.append((row + first - span.start, own.tiles[at][first - start : last - start]))
            row += span.count
        return seen
