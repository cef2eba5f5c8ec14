"""Cerebras: the OpenAI dialect behind a bearer key.

Source: inference-docs.cerebras.ai and cerebras_cloud_sdk 1.91, read 2026-11. Its stream may hold an error object in
place of a chunk, which the dialect turns into its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from providers.base import Capabilities
from providers.openai_like import OpenAILike


class Cerebras(OpenAILike):
    name = "cerebras"
    default_base_url = "https://api.cerebras.ai/v1"
    capabilities = Capabilities(operations=frozenset({"chat", "completions"}), image_input=False, file_input=False)
    # Unset, it admits a request as if it wrote to the end of the window: the gateway's bound is always passed on.
    output_limit: ClassVar[str] = "max_completion_tokens"
    denied: ClassVar[Mapping[str, tuple[Any, ...]]] = {"top_k": (-1, 0), "min_p": (0,), "repetition_penalty": (1,)}
