"""What a model directory says about a model's eyes: its image encoder, and how images are brought to it. No torch here.

Source: `config.json`, `preprocessor_config.json` and `processor_config.json` of transformers' Idefics3 and SmolVLM,
read 2026-11.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from local_backend.errors import ModelUnavailable

VISION_FAMILIES = ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration")
TEXT_PREFIX = "model.text_model."
"""Before the names of the text model's tensors, where alone they have `model.`."""
NEEDED = ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize")


class VisionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An encoder in numbers, and the tiles that it sees. Sizes in pixels unless said otherwise."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    norm_eps: float
    image_size: int
    """What positions were learned for."""
    patch_size: int
    shuffle: int
    """So many patches in each direction become one token."""
    image_token_id: int
    tile_size: int
    """Of a tile, each way. All tiles are equal, so none is padded and no pixel masked."""
    longest_edge: int
    """To which the longer side of an image is brought before it is cut into tiles."""
    splits: bool
    """False: every image is one tile."""
    resample: int
    """Pillow's number of the filter."""
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def side(self) -> int:
        """Patches of a tile, each way."""
        return self.tile_size // self.patch_size

    @property
    def tile_tokens(self) -> int:
        """Tokens that a tile becomes."""
        return (self.side // self.shuffle) ** 2

    @property
    def tile_bytes(self) -> int:
        """Of a tile's pixels, three colours, a byte each."""
        return 3 * self.tile_size**2


def vision_family(raw: dict[str, Any]) -> str | None:
    """The architecture, if it is one that takes images."""
    return next((name for name in raw.get("architectures") or () if name in VISION_FAMILIES), None)


def text_config(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The text half's config as it would stand alone. Raises ModelUnavailable if it is no Llama."""
    text: dict[str, Any] = raw.get("text_config") or {}
    if text.get("model_type", "llama") != "llama":
        raise ModelUnavailable(
            f"{where}: a text model {text['model_type']!r} behind images is not served; known: llama"
        )
    # The head belongs to the whole, and so do these.
    own = {key: raw[key] for key in ("quantization_config", "bos_token_id", "eos_token_id") if raw.get(key) is not None}
    tied = {"tie_word_embeddings": raw.get("tie_word_embeddings", False)}
    return {"rms_norm_eps": 1e-5} | text | own | tied | {"architectures": raw["architectures"]}


def read_vision_config(raw: dict[str, Any], pictures: dict[str, Any], where: str) -> VisionConfig:
    """raw: the model's config; pictures: its image processor's. Raises ModelUnavailable naming what is not served."""
    eyes: dict[str, Any] = raw.get("vision_config") or {}
    if eyes.get("hidden_act", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise ModelUnavailable(f"{where}: activation {eyes['hidden_act']!r} is not served in an image encoder")
    if off := [name for name in NEEDED if pictures.get(name) is False]:
        raise ModelUnavailable(f"{where}: images are always converted, resized and normalised here; {off[0]} is false")
    try:
        config = VisionConfig(
            hidden_size=eyes.get("hidden_size", 1152),
            intermediate_size=eyes.get("intermediate_size", 3072),
            layers=eyes.get("num_hidden_layers", 12),
            heads=eyes.get("num_attention_heads", 16),
            norm_eps=eyes.get("layer_norm_eps", 1e-6),
            image_size=_number(eyes.get("image_size", 224), where),
            patch_size=_number(eyes.get("patch_size", 32), where),
            shuffle=raw.get("scale_factor", 2),
            image_token_id=raw["image_token_id"],
            tile_size=_number(pictures.get("max_image_size", {}).get("longest_edge", 364), where),
            longest_edge=_number(pictures.get("size", {}).get("longest_edge", 4 * 364), where),
            splits=pictures.get("do_image_splitting", True),
            resample=pictures.get("resample", 1),
            rescale=pictures.get("rescale_factor", 1 / 255),
            mean=tuple(pictures.get("image_mean") or (0.5, 0.5, 0.5)),
            std=tuple(pictures.get("image_std") or (0.5, 0.5, 0.5)),
        )
    except KeyError as error:
        raise ModelUnavailable(f"{where}/config.json lacks {error}") from None
    if not config.side or config.side % config.shuffle or config.hidden_size % config.heads:
        raise ModelUnavailable(
            f"{where}: tiles of {config.tile_size} pixels make {config.side} patches of {config.patch_size} each way, "
            f"which do not divide by {config.shuffle}"
        )
    return config


def processor_file(model_dir: Path) -> Path:
    """Where the image processor's config lies: transformers 5 writes one file for all processors of a model."""
    joint = model_dir / "processor_config.json"
    alone = model_dir / "preprocessor_config.json"
    return alone if alone.exists() or not joint.exists() else joint


def _number(value: Any, where: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise ModelUnavailable(f"{where}: {value!r} is no size of an image or patch; one whole number is")
    return value
