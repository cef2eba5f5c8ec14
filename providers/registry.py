"""Provider name -> class, imported on first use: a gateway pays, in memory and start-up, only for what it uses."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from providers.base import Endpoint, Provider
    from providers.transport.base import Timeouts, Transport

_PLACES = {
    "anthropic": "providers.anthropic:Anthropic",
    "azure_ai": "providers.azure_ai:AzureAI",
    "bedrock": "providers.bedrock:Bedrock",
    "bedrock_openai": "providers.bedrock_openai:BedrockOpenAI",
    "cerebras": "providers.cerebras:Cerebras",
    "cohere": "providers.cohere:Cohere",
    "deepseek": "providers.hosts:DeepSeek",
    "fireworks": "providers.hosts:Fireworks",
    "gemini": "providers.gemini:Gemini",
    "groq": "providers.groq:Groq",
    "local": "providers.local:Local",
    "mistral": "providers.hosts:Mistral",
    "moonshotai": "providers.hosts:Moonshot",
    "nvidia_nim": "providers.hosts:NvidiaNim",
    "openai": "providers.openai:OpenAI",
    "openai_like": "providers.openai_like:OpenAILike",
    "openrouter": "providers.hosts:OpenRouter",
    "perplexity": "providers.hosts:Perplexity",
    "sagemaker": "providers.sagemaker:SageMaker",
    "together": "providers.hosts:Together",
    "vertex": "providers.vertex:Vertex",
    "xai": "providers.hosts:XAI",
}


def names() -> tuple[str, ...]:
    return tuple(_PLACES)


def create(endpoint: Endpoint, transport: Transport, timeouts: Timeouts | None = None) -> Provider:
    """The adapter for one endpoint. It does not close the transport, which endpoints share.

    Raises: KeyError for an unknown provider; ValueError for an endpoint that the provider cannot use."""
    provider: Provider = class_of(endpoint.provider)(endpoint, transport, timeouts)
    return provider


def class_of(name: str) -> type[Any]:
    """What an adapter declares of itself, without an endpoint. Raises: KeyError for an unknown provider."""
    module, _, cls = _PLACES[name].partition(":")
    found: type[Any] = getattr(import_module(module), cls)
    return found
