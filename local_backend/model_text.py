"""How one model reads and writes, as the front knows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from local_backend.errors import ModelUnavailable
from local_backend.images import PLACE
from local_backend.model_config import ModelConfig, read_model_config
from local_backend.structured import Checker
from local_backend.template import ChatTemplate
from local_backend.tokenizer import Tokenizer


@dataclass(slots=True, frozen=True)
class ModelText:
    """Everything about a model that needs no tensors."""

    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    checker: Checker

    @classmethod
    def read(cls, model_dir: Path) -> ModelText:
        """Raises ModelUnavailable naming the file that is missing or malformed."""
        config = read_model_config(model_dir)
        checker = Checker(model_dir, config.eos_token_ids)
        tokenizer = Tokenizer(model_dir)
        if config.vision is not None and tokenizer.id_of(PLACE) != config.vision.image_token_id:
            raise ModelUnavailable(f"{model_dir.name}: the tokenizer's {PLACE!r} is not the config's image token")
        return cls(config, tokenizer, ChatTemplate(model_dir, in_parts=config.vision is not None), checker)
