"""Hosts of the OpenAI dialect that differ from `openai_like` by where they live and by a few fields: one class each.

Documents are parts of a message at OpenRouter alone: Mistral, Perplexity and Fireworks have words of their own.
What they price is in the price book under the same names. Source: each host's API reference; for Mistral also the 422s
that its users report (extra_forbidden on stream_options and max_completion_tokens), read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from providers.base import Call, Capabilities, Operation
from providers.dialects import openai_chat
from providers.dialects.base import Dialect
from providers.errors import Unsupported
from providers.openai_like import OpenAILike

_CHAT: Mapping[Operation, Dialect] = {"chat": openai_chat.DIALECT}


class DeepSeek(OpenAILike):
    """Answers by chat in JSON, and to no schema: 400 "This response_format type is unavailable now".

    Source: api-docs.deepseek.com (guides/json_mode), UKGovernmentBEIS/inspect_ai 4916 and llm-exe 662, read 2026-11."""

    name = "deepseek"
    default_base_url = "https://api.deepseek.com/v1"
    capabilities = Capabilities(candidates=False, file_input=False)
    dialects: ClassVar[Mapping[Operation, Dialect]] = _CHAT

    def adjust(self, body: dict[str, Any], call: Call, model: str) -> dict[str, Any]:
        body = super().adjust(body, call, model)
        if lost := self.losses(call):
            if call.strict:
                raise Unsupported(lost, self.name)
            # JSON without a schema would be refused where the prompt does not speak of JSON.
            body.pop("response_format", None)
        return body

    def losses(self, call: Call) -> tuple[str, ...]:
        shape = call.request.response_format
        asks = shape is not None and shape.kind == "json_schema" and not self.speaks_responses(call, "")
        return ("response_format: json_schema",) if asks else ()


class Fireworks(OpenAILike):
    name = "fireworks"
    default_base_url = "https://api.fireworks.ai/inference/v1"
    capabilities = Capabilities(operations=frozenset({"chat", "completions", "embeddings", "rerank"}), file_input=False)


class Mistral(OpenAILike):
    """Refuses every field that it does not know. A stream's last chunk has the usage without being asked."""

    name = "mistral"
    default_base_url = "https://api.mistral.ai/v1"
    capabilities = Capabilities(
        operations=frozenset({"chat", "embeddings", "transcriptions"}), logprobs=False, file_input=False
    )
    dialects: ClassVar[Mapping[Operation, Dialect]] = _CHAT
    renamed: ClassVar[Mapping[str, str]] = {"seed": "random_seed"}
    denied: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "logprobs": (False,),
        "top_logprobs": (0,),
        "logit_bias": ({},),
        "user": (),
        "metadata": ({},),
        "store": (False,),
        "service_tier": ("auto", "default"),
        "top_k": (-1, 0),
        "min_p": (0,),
        "repetition_penalty": (1,),
    }

    def adjust(self, body: dict[str, Any], call: Call, model: str) -> dict[str, Any]:
        body = super().adjust(body, call, model)
        body.pop("stream_options", None)
        return body


class Moonshot(OpenAILike):
    name = "moonshotai"
    default_base_url = "https://api.moonshot.ai/v1"
    capabilities = Capabilities(logprobs=False, file_input=False)
    dialects: ClassVar[Mapping[Operation, Dialect]] = _CHAT


class NvidiaNim(OpenAILike):
    """NVIDIA's catalogue; a NIM container of one's own takes a base URL."""

    name = "nvidia_nim"
    default_base_url = "https://integrate.api.nvidia.com/v1"
    capabilities = Capabilities(operations=frozenset({"chat", "completions", "embeddings"}), file_input=False)


class OpenRouter(OpenAILike):
    name = "openrouter"
    default_base_url = "https://openrouter.ai/api/v1"
    capabilities = Capabilities(operations=frozenset({"chat", "completions", "embeddings"}))


class Perplexity(OpenAILike):
    name = "perplexity"
    default_base_url = "https://api.perplexity.ai"
    capabilities = Capabilities(tools=False, logprobs=False, candidates=False, file_input=False)
    dialects: ClassVar[Mapping[Operation, Dialect]] = _CHAT


class Together(OpenAILike):
    name = "together"
    default_base_url = "https://api.together.xyz/v1"
    capabilities = Capabilities(operations=frozenset({"chat", "completions", "embeddings", "rerank"}), file_input=False)


class XAI(OpenAILike):
    name = "xai"
    default_base_url = "https://api.x.ai/v1"
    capabilities = Capabilities(operations=frozenset({"chat", "images"}), file_input=False)
    dialects: ClassVar[Mapping[Operation, Dialect]] = _CHAT
    output_limit: ClassVar[str] = "max_completion_tokens"
