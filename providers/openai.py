"""OpenAI itself. Source: platform.openai.com API reference and openai-python 3.54, read 2026-11."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from providers.base import Call
from providers.openai_like import OpenAILike


class OpenAI(OpenAILike):
    name = "openai"
    default_base_url = "https://api.openai.com/v1"
    output_limit: ClassVar[str] = "max_completion_tokens"  # reasoning models refuse the older name
    # Knobs of the open engines: OpenAI answers 400 to a field it does not know.
    denied: ClassVar[Mapping[str, tuple[Any, ...]]] = {"top_k": (-1, 0), "min_p": (0,), "repetition_penalty": (1,)}

    def headers(self, call: Call) -> tuple[tuple[str, str], ...]:
        options = self.endpoint.options
        named = (("openai-organization", options.get("organization")), ("openai-project", options.get("project")))
        return tuple((name, str(value)) for name, value in named if value)
