"""Cohere: chat by its OpenAI-compatible API; reranking, and embeddings that want to know what they are for, by its own.

Source: docs.cohere.com "Using Cohere models via the OpenAI SDK" (base URL, fields that it does not know) and
cohere-python 7.3, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from msgspec.structs import replace

from providers.base import (
    Call,
    Capabilities,
    EmbeddingAnswer,
    EmbeddingCall,
    Operation,
    each_at_once,
    read_whole,
)
from providers.dialects import bedrock_embeddings, openai_chat
from providers.dialects.base import Dialect, Encoded
from providers.dialects.rerank import Flavour
from providers.neutral import EmbeddingResponse
from providers.openai_like import PATHS, OpenAILike
from providers.wire import jsonio


class Cohere(OpenAILike):
    name = "cohere"
    lists_models = False
    default_base_url = "https://api.cohere.ai"
    capabilities = Capabilities(
        operations=frozenset({"chat", "embeddings", "rerank"}), candidates=False, file_input=False
    )
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
        own = {"rerank": "/v2/rerank", "embeddings": "/v2/embed"}
        return own.get(operation) or f"/compatibility/v1{PATHS[operation]}"

    async def embed(self, call: EmbeddingCall, model: str) -> EmbeddingAnswer:
        """See `providers.base.Embedder`. Up to 96 texts a call; more are several."""
        dialect = bedrock_embeddings.CohereOwn()
        texts, size = call.request.input, bedrock_embeddings.COHERE_TEXTS_MAX
        parts = [replace(call.request, input=texts[at : at + size]) for at in range(0, len(texts), size)]
        bodies = [dialect.encode_request(part, model=model, strict=call.strict) for part in parts]

        async def ask(encoded: Encoded) -> EmbeddingResponse:
            place = self.place("embeddings", model)
            response = await self.exchange("POST", place, jsonio.encode(encoded.body), None, openai_chat.DIALECT)
            return dialect.decode_response(await read_whole(response))

        return EmbeddingAnswer(await each_at_once(bodies, ask), bodies[0].dropped)

    async def models(self) -> tuple[str, ...]:
        """Its list is of another form, and tells nothing that a request would not."""
        return ()
