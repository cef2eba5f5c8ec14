"""Cohere: chat and embeddings by its OpenAI-compatible API, reranking by its own.

Source: docs.cohere.com "Using Cohere models via the OpenAI SDK" (base URL, fields that it does not know) and
cohere-python 7.3, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from providers.base import Call, Capabilities, Operation
from providers.dialects import openai_chat
from providers.dialects.base import Dialect
from providers.dialects.rerank import Flavour
from providers.openai_like import PATHS, OpenAILike


class Cohere(OpenAILike):
    name = "cohere"
    default_base_url = "https://api.cohere.ai"
    capabilities = Capabilities(operations=frozenset({"chat", "embeddings", "rerank"}), candidates=False)
    dialects: ClassVar[Mapping[Operation, Dialect]] = {"chat": openai_chat.DIALECT}
    rerank_flavour: ClassVar[Flavour] = "cohere"
    denied: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "n": (1,),
        "logit_bias": ({},),
        "top_logprobs": (0,),
        "parallel_tool_calls": (True,),
        "service_tier": ("auto", "default"),
        "min_p": (0,),
        "repetition_penalty": (1,),
    }

    def path(self, call: Call, model: str) -> str:
        return self.place(self._operation(call), model)

    def place(self, operation: Operation, model: str) -> str:
        return "/v2/rerank" if operation == "rerank" else f"/compatibility/v1{PATHS[operation]}"

    async def models(self) -> tuple[str, ...]:
        """Its list is of another form, and tells nothing that a request would not."""
        return ()
